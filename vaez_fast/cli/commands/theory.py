"""vaez-fast theory."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...system.errors import printable
from ...system.progress import waiting
from .. import settings

DESCRIPTION = """\
Compute the KL term of one latent dimension: its minimum, its gradient flow, momentum, Monte Carlo
estimators and their variance, and the KL of a fit to exactly normal draws. Then the linear VAE,
where the whole ELBO and the law of z are known, and the KL's invariance under rotation. Writes
DIR/theory.json and its figures, in seconds."""
EXAMPLE = "vaez-fast theory --out runs/theory"


def add_options(parser: argparse.ArgumentParser) -> None:
    settings.add_output(parser, "the content of theory.json")


def run(options: argparse.Namespace) -> int:
    out: Path = settings.needed(options, "out", "a folder for the results")

    from ...theory import record as theory

    with waiting("computing", show=True):
        record = theory.write(out)
    if options.json:
        print((out / "theory.json").read_text(), end="")
    else:
        print("\n".join(theory.table(record)))
        print(f"wrote {printable(out / 'theory.json')} and its figures")
    return 0
