"""vaez-fast latents."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...measures.intervals import Interval
from ...system.errors import printable
from ...system.progress import waiting
from .. import settings
from ..kinds import PATH

if TYPE_CHECKING:
    from ...runs.latents import Measured
    from ...runs.trained import Trained

DESCRIPTION = """\
Measure and draw the law of a trained VAE's z: KL(q(z) ‖ N(0, I)) between two bounds, tests of
normality beside those of exact normals, and pictures. Writes DIR/latents.json, DIR/latents.npz (mu,
logvar and z of the training and test images), DIR/latents.png (what z looks like), marginals.png,
quantiles.png, shell.png, pairs.png, and images: reconstructions.png, interpolations.png and
traversals.png. Takes a minute or a few; the full MNIST's latents.npz may have 100 MB."""
EXAMPLE = "vaez-fast latents runs/first --out runs/first/latents"
LIGHTER = "a smaller model"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=PATH, metavar="RUN", help="the folder of a training run")
    data = parser.add_argument_group("data")
    settings.add_data_root(data, "where data sets lie (default: the run's own)", default=None)
    settings.add_device(parser.add_argument_group("machine"))
    settings.add_output(parser, "the content of latents.json")


def run(options: argparse.Namespace) -> int:
    out: Path = settings.needed(options, "out", "a folder for the results")

    from ...runs import latents
    from ...runs.folder import prepare_beside
    from ...runs.trained import open_run

    trained = open_run(options.run, data_root=options.data_root, device=options.device)
    prepare_beside(out, latents.FILES)
    with waiting("loading images", show=True):
        images = trained.images()
    with waiting("measuring the law of z", show=True):
        found = latents.measure(trained, images)
    config = {name: getattr(options, name) for name in ("data_root", "device")}
    record = latents.record(trained, found, config)
    with waiting("drawing", show=True):
        latents.write(out, trained, images, found, record)
    if options.json:
        print(json.dumps(record, indent=1, allow_nan=False))
    else:
        print("\n".join(_table(trained, record, found)))
        pictures = sum(name.endswith(".png") for name in latents.FILES)
        print(f"wrote {printable(out / 'latents.json')}, latents.npz and {pictures} pictures")
    return 0


def _table(trained: Trained, record: dict[str, Any], found: Measured) -> Iterator[str]:
    from ...measures.codes import INFORMATIVE

    lower, upper = record["kl_lower"], record["kl_upper"]
    seen = found.rejected > 0 or lower["value"] > 2 * lower["standard_error"]
    answer = "z is not N(0, I)" if seen else "z cannot be told from N(0, I)"
    yield trained.title
    yield ""
    yield f"{answer}: {_number(**lower)} ≤ KL(q(z) ‖ N(0, I)) ≤ {_number(**upper)} nats"
    yield (
        f"  {'informative':<13}{len(record['informative'])} of {found.codes.kl.numel()} latents: "
        f"mean KL(q(z_j|x) ‖ N(0, 1)) > {INFORMATIVE:g} nat"
    )
    yield (
        f"  {'tests':<13}{found.rejected} of {len(found.tests)} reject N(0, I) at 5 % after Holm's "
        f"correction; of exact normals {found.false_alarms}"
    )
    norm = record["squared_norm"]
    yield (
        f"  {'|z|²':<13}mean {norm['mean']:.1f}, variance {norm['variance']:.1f}; "
        f"N(0, I) has {norm['d']} and {2 * norm['d']}"
    )
    for name, bound in record["lower"].items():
        yield f"  KL ≥ {_number(**bound):<19} {name}"
    yield f"  KL ≤ {_number(**upper):<19} {upper['how']}"
    yield ""


def _number(value: float, standard_error: float, how: str) -> str:
    """The value and its standard error, which has two significant digits."""
    return Interval(value, standard_error, 1).text()
