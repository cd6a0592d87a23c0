"""vaez-fast train."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import (
    CHECKPOINT_SECONDS,
    DECODERS,
    IWAE_KLS,
    KLS,
    OBJECTIVES,
    OPTIMIZERS,
    ConfigError,
    TrainConfig,
    check_backend,
    choose_device,
)
from ...names import POSTERIORS, PRIORS
from ...system.errors import printable, shown
from ...system.files import OutputError, claimed, read_json
from ...system.messages import say
from ...system.progress import waiting
from ...system.stopping import Signals, Stopped
from .. import own_model, settings
from ..kinds import INTEGER, NUMBER, PATH, TEXT
from ..metrics_table import table_of_metrics
from ..settings import DEFAULTS, choices

if TYPE_CHECKING:
    from ...system.world import World
    from ...training.train import Result

DESCRIPTION = """\
Train a VAE, evaluate it on the test split, and write DIR/metrics.json and DIR/checkpoint.pt. If a
bound on log p(x) is trained (elbo, iwae), the state kept is the one with the best bound on the
validation split.

--resume DIR continues a run that was stopped (Ctrl-C and SIGTERM end it after the step, with a
checkpoint) or killed. On the same machine it ends bit for bit like an uninterrupted run.

--model PACKAGE.MODULE:CLASS trains a model of yours on the entries of an .npz that --data names
(docs/own-model.md).

Several processes share the rows of every batch and draw the same noise as one process would:
  torchrun --nproc-per-node 2 -m vaez_fast train --out runs/first"""
EXAMPLE = "vaez-fast train --data mnist-5k --model altosaar --epochs 30 --seed 0 --out runs/first"
LIGHTER = "a smaller batch_size, fewer num_samples, or a smaller model (burda has the fewest units)"


def add_options(parser: argparse.ArgumentParser) -> None:
    d = DEFAULTS
    settings.add_data(parser)
    arm = parser.add_argument_group("model and arm")
    settings.add_model(arm)
    arm.add_argument(
        "--latent",
        type=INTEGER,
        metavar="D",
        help="the number of latents (default: the model's own)",
    )
    arm.add_argument(
        "--objective",
        type=TEXT,
        default=d.objective,
        metavar="NAME",
        help=f"what the encoder minimises: {choices(OBJECTIVES)} (default {d.objective})",
    )
    arm.add_argument(
        "--kl",
        type=TEXT,
        metavar="HOW",
        help=f"how the KL is computed, or the gradient of iwae: {choices(KLS)} (default {d.kl};"
        f" {IWAE_KLS[0]} for iwae, posterior iaf and learned priors)",
    )
    arm.add_argument(
        "--decoder",
        type=TEXT,
        default=d.decoder,
        metavar="HOW",
        help=f"how the decoder learns: {choices(DECODERS)} (default {d.decoder})",
    )
    arm.add_argument(
        "--beta",
        type=NUMBER,
        default=d.beta,
        metavar="WEIGHT",
        help=f"the rate's weight in the ELBO (default {d.beta:g})",
    )
    arm.add_argument(
        "--num-samples",
        type=INTEGER,
        default=d.num_samples,
        metavar="K",
        help="samples of z an image: the elbo is their mean, iwae the logarithm of their mean"
        f" importance weight (default {d.num_samples})",
    )
    arm.add_argument(
        "--posterior",
        type=TEXT,
        default=d.posterior,
        metavar="NAME",
        help=f"the family of q(z|x): {choices(POSTERIORS)} (default {d.posterior})",
    )
    arm.add_argument(
        "--prior",
        type=TEXT,
        default=d.prior,
        metavar="NAME",
        help=f"p(z): {choices(PRIORS)} (default {d.prior}; the others are learned)",
    )
    arm.add_argument(
        "--free-bits",
        type=NUMBER,
        default=d.free_bits,
        metavar="NATS",
        help=f"the rate of a latent that costs nothing, in nats (default {d.free_bits:g})",
    )
    arm.add_argument(
        "--kl-warmup",
        type=NUMBER,
        default=d.kl_warmup,
        metavar="FRACTION",
        help="the fraction of the steps over which the rate's weight rises from 0"
        f" (default {d.kl_warmup:g})",
    )
    recipe = settings.add_recipe(parser)
    recipe.add_argument(
        "--optimizer",
        type=TEXT,
        default=d.optimizer,
        metavar="NAME",
        help=f"{choices(OPTIMIZERS)} (default {d.optimizer}; rmsprop is the article's, centred,"
        " at a constant rate)",
    )
    recipe.add_argument(
        "--seed",
        type=INTEGER,
        default=d.seed,
        metavar="N",
        help=f"fixes weights, order and noise; 0 to 2³²−1 (default {d.seed})",
    )
    evaluation = parser.add_argument_group("evaluation")
    settings.add_test_samples(evaluation)
    settings.add_machine(parser)
    output = settings.add_output(parser, "the content of metrics.json")
    output.add_argument(
        "--resume",
        type=PATH,
        metavar="DIR",
        help="instead of --out: continue the unfinished run in DIR with its own settings; only"
        " --data-root, --device and --checkpoint-seconds may be added",
    )
    output.add_argument(
        "--checkpoint-seconds",
        type=NUMBER,
        default=CHECKPOINT_SECONDS,
        metavar="T",
        help="time between two checkpoints of an unfinished run, at least 0"
        f" (default {CHECKPOINT_SECONDS:g})",
    )


# Settings allowed beside --resume: where files are and where the run runs, not what it computes.
BESIDE_RESUME = {"resume", "data_root", "device", "checkpoint_seconds", "json"}


def run(options: argparse.Namespace) -> int:
    if not options.checkpoint_seconds >= 0:
        raise ConfigError(
            f"checkpoint_seconds must be at least 0, got {options.checkpoint_seconds:g}"
        )
    if options.resume is None:
        out: Path = settings.needed(options, "out", "a folder for the results")
    elif extra := sorted(options.given - BESIDE_RESUME):
        raise ConfigError(f"resume: the run has its own settings; leave out {', '.join(extra)}")
    else:
        out = options.resume
    if own_model.is_own(options.model):
        return own_model.run(options, out)
    config = None if options.resume else settings.train_config(options)

    from ...system.world import joined
    from ...training.checkpoint import Keeping

    def say_stopped(stopped: Stopped) -> None:
        say("train", f"{stopped}; {Keeping(out).last()}")

    with Signals() as signals, joined(signals, say_stopped) as world:
        if config is None and not out.is_dir():
            raise OutputError(
                f"resume: {out} is not the folder of a run; `vaez-fast train` makes one"
            )
        try:
            # The other ranks read and write under the first rank's claim.
            with claimed(out) if world.rank == 0 else nullcontext():
                return _run(options, config, out, signals, world)
        except Stopped as stopped:
            if world.first_to_speak():
                say_stopped(stopped)
            return stopped.exit_status


def _run(
    options: argparse.Namespace,
    config: TrainConfig | None,
    out: Path,
    signals: Signals,
    world: World,
) -> int:
    from ...data import load
    from ...runs.folder import begun, is_whole, prepare, save, unfinished
    from ...system.environment import environment
    from ...system.world import own_device
    from ...training.checkpoint import Keeping
    from ...training.train import train

    world.wait()  # until the first rank has claimed the folder
    resumed = None
    if config is None:
        if is_whole(out):
            if world.rank == 0:
                said = f"{printable(out)} holds a finished run: there is nothing to resume"
                _print(options, out, said)
            return 0
        config, resumed = unfinished(out)
        moved = {n: getattr(options, n) for n in ("data_root", "device") if n in options.given}
        config = replace(config, **moved)
    if world.rank == 0:
        prepare(out)
    device = own_device(choose_device(config.device))
    check_backend(device)
    if resumed is not None and world.rank == 0:
        _compare_machines(resumed.environment, environment(device) | {"ranks": world.size})
    new = options.resume is None and world.rank == 0
    with begun(out, config) if new else nullcontext():
        with waiting("loading images", show=world.rank == 0):
            dataset = world.first_then_others(lambda: load(config.data, config.data_root))
        keeping = Keeping(out, options.checkpoint_seconds, resumed, signals)
        one = replace(config, device=str(device))
        result = train(one, dataset, show_progress=True, world=world, keeping=keeping)
        if world.rank == 0:
            save(out, config, result)
    if world.rank == 0:
        _print(options, out, _table(config, result, out))
    return 0


def _compare_machines(before: dict[str, Any], now: dict[str, Any]) -> None:
    from ...system.environment import SAME_DIGITS

    names = (*SAME_DIGITS, "revision", "ranks")
    changed = [name for name in names if before.get(name) != now[name]]
    if changed:
        was = ", ".join(f"{name} was {shown(before.get(name))}" for name in changed)
        said = f"the last digits may not be those of an undisturbed run: {was}"
        say("train", f"note: {said}")


def _print(options: argparse.Namespace, out: Path, otherwise: str) -> None:
    print(json.dumps(read_json(out / "metrics.json"), indent=1) if options.json else otherwise)


def _table(config: TrainConfig, result: Result, out: Path) -> str:
    speed = result.speed()
    lines = [
        f"{config.model} on {config.data} ({config.binarize}), {config.arm}, seed {config.seed}, "
        f"{result.precision} on {result.device}",
        "",
        *table_of_metrics(config, result.test, "test"),
        "",
        f"{result.steps} steps in {result.train_seconds:.1f} s of training "
        f"({speed['images_per_second']:,.0f} images/s), {result.compile_seconds:.1f} s compiling, "
        f"{result.eval_seconds:.1f} s evaluating; "
        + ("best validation bound" if config.decoder == "joint" else "last state")
        + f" at step {result.best_step}",
        f"wrote {printable(out / 'metrics.json')} and {printable(out / 'checkpoint.pt')}",
    ]
    return "\n".join(lines)
