"""vaez-fast train."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import DECODERS, IWAE_KLS, KLS, OBJECTIVES, TrainConfig, choose_device
from ..data import load
from ..results import prepare_folder, save
from ..train import Result, train
from . import settings
from .settings import choices

HELP = "train a VAE; write metrics.json and checkpoint.pt"
DESCRIPTION = """\
Train a VAE, evaluate it on the test split, and write DIR/metrics.json and DIR/checkpoint.pt. Where
a bound on log p(x) is trained on (elbo, iwae), the state kept is the one with the best bound on the
validation split."""
EXAMPLE = "vaez-fast train --data mnist-5k --model altosaar --epochs 30 --seed 0 --out runs/first"


def add_options(parser: argparse.ArgumentParser) -> None:
    d = TrainConfig()
    settings.add_data(parser)
    arm = parser.add_argument_group("model and regime")
    settings.add_model(arm)
    arm.add_argument(
        "--objective",
        default=d.objective,
        help=f"what the encoder minimises: {choices(OBJECTIVES)} (default {d.objective})",
    )
    arm.add_argument(
        "--kl",
        help=f"how the KL is computed, or the gradient of iwae: {choices(KLS)} (default {d.kl}, and"
        f" {IWAE_KLS[0]} for iwae)",
    )
    arm.add_argument(
        "--decoder",
        default=d.decoder,
        help=f"how the decoder learns: {choices(DECODERS)} (default {d.decoder})",
    )
    arm.add_argument(
        "--beta",
        type=float,
        default=d.beta,
        help=f"the rate's weight in the ELBO (default {d.beta:g})",
    )
    arm.add_argument(
        "--num-samples",
        type=int,
        default=d.num_samples,
        metavar="K",
        help="samples of z an image: the elbo is their mean, iwae the logarithm of their mean"
        f" importance weight (default {d.num_samples})",
    )
    recipe = settings.add_recipe(parser)
    recipe.add_argument(
        "--seed",
        type=int,
        default=d.seed,
        help=f"fixes weights, order and noise; 0 to 2³²−1 (default {d.seed})",
    )
    parser.add_argument(
        "--test-samples",
        type=int,
        default=d.test_samples,
        metavar="N",
        help="importance samples an image for log p(x) of the test split"
        f" (default {d.test_samples})",
    )
    settings.add_machine(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a folder for the results"
    )


def run(options: argparse.Namespace) -> int:
    values = vars(options).copy()
    del values["command"]
    out: Path = values.pop("out")
    if values["steps"] is None and values["epochs"] is None:
        values["epochs"] = TrainConfig().epochs
    config = TrainConfig(**values)
    choose_device(config.device)
    prepare_folder(out)
    dataset = load(config.data, config.data_root)
    result = train(config, dataset, show_progress=True)
    save(out, config, result)
    print(_table(config, result, out))
    return 0


def _table(config: TrainConfig, result: Result, out: Path) -> str:
    test, speed = result.test, result.speed()
    title = (
        f"{config.model} on {config.data} ({config.binarize}), {config.arm}, seed {config.seed}, "
        f"{result.precision} on {result.device}"
    )
    quantities = (
        ("ELBO", test.elbo, "−(rate + distortion)"),
        ("rate", test.rate, "mean analytic KL(q(z|x) ‖ N(0, I))"),
        ("distortion", test.distortion, f"−E log p(x|z), {test.log_px_samples} samples"),
        (
            "log p(x)",
            test.log_px,
            f"± {test.log_px_standard_error:.2f} (standard error over the images), "
            f"{test.log_px_samples} importance samples",
        ),
    )
    lines = [title, "", "test split, nats per image"]
    lines += [f"  {name:<11}{value:9.2f}   {how}" for name, value, how in quantities]
    lines += [
        "",
        f"{result.steps} steps in {result.train_seconds:.1f} s of training "
        f"({speed['images_per_second']:,.0f} images/s), {result.compile_seconds:.1f} s compiling, "
        f"{result.eval_seconds:.1f} s evaluating; "
        + ("best validation bound" if config.decoder == "joint" else "last state")
        + f" at step {result.best_step}",
        f"wrote {out / 'metrics.json'} and {out / 'checkpoint.pt'}",
    ]
    return "\n".join(lines)
