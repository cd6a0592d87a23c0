"""The command line. Exit status: 0 done, 1 the run failed, 2 a setting cannot be."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .compare import BACKENDS, CompareError, available, chosen, compare, record, table
from .comparison import OPS
from .config import (
    DECODERS,
    KLS,
    NOT_BUILT_YET,
    OBJECTIVES,
    PRECISIONS,
    ConfigError,
    TrainConfig,
    choose_device,
)
from .data import BINARIZATIONS, DATA_SETS, DataError, load
from .environment import environment
from .model import MODELS
from .results import OutputError, prepare_file, prepare_folder, save, write_atomically
from .train import LOG_PX_SAMPLES, Result, TrainingError, train

TRAIN_EXAMPLE = """example:
  vaez-fast train --data mnist-5k --model altosaar --epochs 30 --seed 0 --out runs/first
"""
COMPARE_EXAMPLE = """example:
  vaez-fast compare --ops rsample_kl/analytic,normal --json comparison.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; argv without the program's name. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot print σ or ² goes on
    options = _parser().parse_args(argv)
    # Where a CUDA toolkit but no GPU is installed, compiling for the CPU logs a warning about it.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    name = f"vaez-fast {options.command}"
    try:
        return _train(options) if options.command == "train" else _compare(options)
    except ConfigError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except (DataError, OutputError, TrainingError, CompareError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vaez-fast",
        description="What distribution do a VAE's latents really have?",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vaez-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "train",
        help="train a VAE; write metrics.json and checkpoint.pt",
        description="Train a VAE, choose its best state by validation ELBO, evaluate it on the\n"
        "test split, and write DIR/metrics.json and DIR/checkpoint.pt.",
        epilog=TRAIN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_train_options(command)
    command = commands.add_parser(
        "compare",
        help="hold every op to float64, and the kernels to the fallback",
        description="Run every op, forward and backward, over a grid of shapes, dtypes and\n"
        "values, and print its largest errors against the float64 reference beside those of\n"
        "textbook PyTorch, and the distance of kernels from the fallback. Takes minutes.\n"
        "Exit status 1 if anything is off by more than stated.",
        epilog=COMPARE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_compare_options(command)
    return parser


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backends",
        type=_names,
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(BACKENDS)} (default: all that can run here)",
    )
    parser.add_argument(
        "--ops",
        type=_names,
        default=list(OPS),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(OPS)} (default: all)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every comparison to FILE"
    )


def _names(text: str) -> list[str]:
    return text.split(",")


def _compare(options: argparse.Namespace) -> int:
    backends = chosen(options.backends)
    if options.json is not None:
        prepare_file(options.json)
    rows = compare(backends, options.ops, show_progress=True)
    content = record(rows, environment("cuda" if "cuda" in backends else "cpu"))
    if options.json is not None:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_atomically(options.json, text.encode())
    for name, reason in available().items():
        if reason:
            print(f"not compared: {name}: {reason}")
    print("\n".join(table(rows)))
    return 0 if content["passed"] else 1


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    d = TrainConfig()

    def choices(values: Sequence[str], setting: str = "") -> str:
        return "|".join(v for v in values if v not in NOT_BUILT_YET.get(setting, ()))

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default=d.data,
        metavar="NAME",
        help=f"{choices(DATA_SETS)} (default {d.data}, which needs no network)",
    )
    data.add_argument(
        "--data-root",
        default=d.data_root,
        metavar="DIR",
        help=f"where data sets lie, or are downloaded to (default {d.data_root})",
    )
    data.add_argument(
        "--binarize",
        default=d.binarize,
        metavar="HOW",
        help=f"{choices(BINARIZATIONS)} (default {d.binarize}: drawn once, the same for all seeds)",
    )
    arm = parser.add_argument_group("model and regime")
    arm.add_argument(
        "--model", default=d.model, help=f"{choices(list(MODELS))} (default {d.model})"
    )
    arm.add_argument(
        "--objective",
        default=d.objective,
        help=f"what the encoder minimises: {choices(OBJECTIVES, 'objective')}"
        f" (default {d.objective})",
    )
    arm.add_argument(
        "--kl", default=d.kl, help=f"how the KL is computed: {choices(KLS, 'kl')} (default {d.kl})"
    )
    arm.add_argument(
        "--decoder",
        default=d.decoder,
        help=f"how the decoder learns: {choices(DECODERS, 'decoder')} (default {d.decoder})",
    )
    arm.add_argument(
        "--beta",
        type=float,
        default=d.beta,
        help=f"the rate's weight in the ELBO (default {d.beta:g})",
    )
    recipe = parser.add_argument_group("recipe (Adam, 5 % of the steps warm-up, then a cosine)")
    length = recipe.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help=f"passes over the data (default {d.epochs})")
    length.add_argument("--steps", type=int, help="length in steps instead")
    recipe.add_argument(
        "--batch-size", type=int, default=d.batch_size, help=f"images (default {d.batch_size})"
    )
    recipe.add_argument(
        "--lr", type=float, default=d.lr, help=f"highest learning rate (default {d.lr})"
    )
    recipe.add_argument(
        "--seed",
        type=int,
        default=d.seed,
        help=f"fixes weights, order and noise; 0 to 2³²−1 (default {d.seed})",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--precision",
        default=d.precision,
        help=f"of matrix products: {choices(PRECISIONS)} (default {d.precision}: bfloat16 where the"
        " processor multiplies it)",
    )
    machine.add_argument(
        "--device", default=d.device, help=f"auto|cpu|cuda|cuda:N (default {d.device})"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a folder for the results"
    )


def _train(options: argparse.Namespace) -> int:
    settings = vars(options).copy()
    del settings["command"]
    out: Path = settings.pop("out")
    if settings["steps"] is None and settings["epochs"] is None:
        settings["epochs"] = TrainConfig().epochs
    config = TrainConfig(**settings)
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
        ("distortion", test.distortion, f"−E log p(x|z), {LOG_PX_SAMPLES} samples"),
        ("log p(x)", test.log_px, f"importance sampling, {LOG_PX_SAMPLES} samples"),
    )
    lines = [title, "", "test split, nats per image"]
    lines += [f"  {name:<11}{value:9.2f}   {how}" for name, value, how in quantities]
    lines += [
        "",
        f"{result.steps} steps in {result.train_seconds:.1f} s of training "
        f"({speed['images_per_second']:,.0f} images/s), {result.compile_seconds:.1f} s compiling, "
        f"{result.eval_seconds:.1f} s evaluating; "
        + ("best validation ELBO" if config.decoder == "joint" else "last state")
        + f" at step {result.best_step}",
        f"wrote {out / 'metrics.json'} and {out / 'checkpoint.pt'}",
    ]
    return "\n".join(lines)
