"""vaez-fast theory."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "what the KL term does by itself: numbers and figures, no training"
DESCRIPTION = """\
Compute what the KL term does to one latent dimension: its minimum, its gradient flow, momentum,
Monte Carlo estimators and their variance, and what a fit finds in exactly normal draws. Writes
DIR/theory.json and its figures, in seconds."""
EXAMPLE = "vaez-fast theory --out runs/theory"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a folder for the results"
    )


def run(options: argparse.Namespace) -> int:
    from .. import theory

    record = theory.write(options.out)
    print("\n".join(theory.table(record)))
    print(f"wrote {options.out / 'theory.json'} and its figures")
    return 0
