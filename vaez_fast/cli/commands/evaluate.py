"""vaez-fast evaluate."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...config import LOG_PX_SAMPLES, choose_device
from ...system.files import OutputError
from ...system.messages import say
from ...system.progress import waiting
from ...system.stopping import Signals, Stopped
from .. import settings
from ..kinds import COUNT, PATH, one_of
from ..metrics_table import table_of_metrics

if TYPE_CHECKING:
    from ...measures.evaluate import Metrics
    from ...runs.trained import Law, Trained
    from ...system.world import World

KIND, SCHEMA = "vaez-fast evaluate", 1
SPLITS = ("validation", "test")

DESCRIPTION = """\
Evaluate the models that training runs kept: ELBO, rate, distortion and importance-sampled log p(x)
in nats per image, and how far z is from N(0, I). The noise is that of training's own evaluation, so
the test split with the run's own settings gives the numbers of its metrics.json again.

Several processes share the images:
  torchrun --nproc-per-node 2 -m vaez_fast evaluate runs/first"""
EXAMPLE = "vaez-fast evaluate runs/first --split test --test-samples 5000"
LIGHTER = "a smaller model (the number of samples does not matter)"
ONLY_PRINTS = True


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", type=PATH, nargs="+", metavar="RUN", help="the folder of a training run"
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--split",
        type=one_of(SPLITS),
        default="test",
        metavar="NAME",
        help=f"{settings.choices(SPLITS)} (default test)",
    )
    what.add_argument(
        "--test-samples",
        type=COUNT,
        metavar="N",
        help="importance samples an image for log p(x) (default: the run's own --test-samples,"
        f" which are {LOG_PX_SAMPLES} by default)",
    )
    settings.add_data_root(what, "where data sets lie (default: the run's own)", default=None)
    settings.add_machine(parser, precision=None)
    output = parser.add_argument_group("output")
    settings.add_json(output, "the numbers of every run")


def run(options: argparse.Namespace) -> int:
    from ...runs.trained import open_run
    from ...system.world import joined, own_device

    with Signals() as signals, joined(signals, _say_stopped) as world:
        device = own_device(choose_device(options.device))
        runs = [
            open_run(
                folder,
                data_root=options.data_root,
                device=str(device),
                precision=options.precision,
            )
            for folder in options.runs
        ]
        found = [_measure(run, options, world) for run in runs]
    if world.rank > 0:
        return 0
    if options.json:
        names = ("split", "test_samples", "data_root", "precision", "device")
        config = {name: getattr(options, name) for name in names}
        document = {"kind": KIND, "schema": SCHEMA, "config": config, "runs": found}
        print(json.dumps(document, indent=1, allow_nan=False))
    elif len(images_of := {(one.config.data, one.config.binarize) for one in runs}) > 1:
        listed = ", ".join(f"{data} ({how})" for data, how in sorted(images_of))
        print(f"\nNot to be compared with each other: these are numbers on {listed}.")
    return 0


def _say_stopped(stopped: Stopped) -> None:
    say("evaluate", str(stopped))


def _measure(run: Trained, options: argparse.Namespace, world: World) -> dict[str, Any]:
    from ...runs.trained import evaluate, law_of_z

    first = world.rank == 0
    with waiting("loading images", show=first):
        images = world.first_then_others(run.images)
    count = options.test_samples or run.config.test_samples
    metrics = evaluate(run, images, options.split, count, show_progress=first, world=world)
    law = law_of_z(run, images, options.split)
    if not all(math.isfinite(x) for x in (*metrics.as_dict().values(), law.sample_kl)):
        raise OutputError(f"{run.folder}: a measured number is not finite: its weights are damaged")
    if first and not options.json:
        print("\n".join(_table(run, options.split, metrics, law)))
    return _record(run, options.split, metrics, law)


def _record(run: Trained, split: str, metrics: Metrics, law: Law) -> dict[str, Any]:
    names = ("data", "binarize", "model", "seed", "precision", "device")
    return {
        "run": str(run.folder),
        "arm": run.config.arm,
        **{name: getattr(run.config, name) for name in names},
        "split": split,
        "metrics": metrics.as_dict(),
        "latents": asdict(law),
    }


def _table(run: Trained, split: str, metrics: Metrics, law: Law) -> Iterator[str]:
    yield run.title
    yield ""
    yield from table_of_metrics(run.config, metrics, split)
    yield (
        f"  {'sample KL':<11}{law.sample_kl:9.4f}   of a diagonal Gaussian fitted to {law.n:,} z, "
        f"one an image; N(0, I) itself {law.null_sample_kl:.4f}"
    )
    if law.active_units is not None:
        yield f"  {'active':<11}{law.active_units:9}   of {law.latent} latents: Var E[z|x] > 0.01"
    yield ""
