"""vaez-fast sample."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...names import SAMPLERS
from ...system.errors import printable
from ...system.progress import waiting
from .. import settings
from ..kinds import COUNT, PATH, SEED, one_of

CHOICES = (*SAMPLERS, "prior")
KIND, SCHEMA = "vaez-fast sample", 1

DESCRIPTION = """\
Draw z from N(0, I), from the run's own prior, or from a law fitted to the z of the training images,
and decode it. Writes DIR/samples.png, a picture of the first 100 images, and DIR/samples.npz with
z (N, D) and the means of the pixels (N, 784), float32. The same seed gives the same files; image n
does not depend on how many there are."""
EXAMPLE = "vaez-fast sample runs/first --sampler mixture --count 100 --out runs/first/mixture"
LIGHTER = "a smaller count"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=PATH, metavar="RUN", help="the folder of a training run")
    samples = parser.add_argument_group("samples")
    samples.add_argument(
        "--sampler",
        type=one_of(CHOICES),
        default=SAMPLERS[0],
        metavar="NAME",
        help=f"{settings.choices(CHOICES)} (default {SAMPLERS[0]}; prior is the run's own, learned"
        " or not; the others need the run's training images)",
    )
    samples.add_argument(
        "--count", type=COUNT, default=100, metavar="N", help="images (default 100)"
    )
    samples.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="of the draws; 0 to 2³²−1 (default 0)"
    )
    settings.add_data_root(samples, "where data sets lie (default: the run's own)", default=None)
    settings.add_device(parser.add_argument_group("machine"))
    settings.add_output(parser, "the settings and the files")


def run(options: argparse.Namespace) -> int:
    out: Path = settings.needed(options, "out", "a folder for the samples")

    from ...runs import samples as generate
    from ...runs.folder import prepare_beside
    from ...runs.trained import draw, open_run

    trained = open_run(options.run, data_root=options.data_root, device=options.device)
    prepare_beside(out, generate.FILES)
    with waiting(f"sampling from {options.sampler}", show=True):
        z, means = draw(trained, options.sampler, options.count, options.seed)
        files = [str(path) for path in generate.write(out, z, means)]
    if options.json:
        names = ("sampler", "count", "seed", "data_root", "device")
        config = {name: getattr(options, name) for name in names}
        found = {"run": str(options.run), "arm": trained.config.arm, "files": files}
        document = {"kind": KIND, "schema": SCHEMA, "config": config} | found
        print(json.dumps(document, indent=1))
    else:
        print(f"{trained.title}\n{options.count:,} images, z from {options.sampler}")
        print(f"wrote {' and '.join(map(printable, files))}")
    return 0
