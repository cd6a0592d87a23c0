"""Settings that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..config import PRECISIONS, ConfigError, TrainConfig
from ..names import BINARIZATIONS, DATA_SETS, MODELS
from .kinds import DEVICE, INTEGER, NUMBER, PATH, TEXT, one_of

Group = argparse._ArgumentGroup

DEFAULTS = TrainConfig()


def choices(values: Sequence[str]) -> str:
    """The possible values, for a help text."""
    return "|".join(values)


def add_data(parser: argparse.ArgumentParser) -> None:
    d = DEFAULTS
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=TEXT,
        default=d.data,
        metavar="NAME",
        help=f"{choices(DATA_SETS)} (default {d.data}, which needs no network)",
    )
    add_data_root(data, f"where data sets lie, or are downloaded to (default {d.data_root})")
    data.add_argument(
        "--binarize",
        type=TEXT,
        default=d.binarize,
        metavar="HOW",
        help=f"{choices(BINARIZATIONS)} (default {d.binarize}: drawn once, the same for all seeds)",
    )


def add_data_root(group: Group, what: str, default: str | None = DEFAULTS.data_root) -> None:
    group.add_argument("--data-root", type=TEXT, default=default, metavar="DIR", help=what)


def add_model(group: Group) -> None:
    d = DEFAULTS
    group.add_argument(
        "--model",
        type=TEXT,
        default=d.model,
        metavar="NAME",
        help=f"{choices(MODELS)} (default {d.model})",
    )


def add_recipe(parser: argparse.ArgumentParser) -> Group:
    """The recipe without its seeds; returns the group."""
    d = DEFAULTS
    recipe = parser.add_argument_group(
        "recipe (by default Adam, 5 % of the steps warm-up, then a cosine)"
    )
    # No defaults here: TrainConfig's default holds if neither is given.
    recipe.add_argument(
        "--epochs",
        type=INTEGER,
        metavar="N",
        help=f"length of each phase in passes over the data (default {d.epochs})",
    )
    recipe.add_argument("--steps", type=INTEGER, metavar="N", help="or in steps")
    recipe.add_argument(
        "--batch-size",
        type=INTEGER,
        default=d.batch_size,
        metavar="N",
        help=f"images a step (default {d.batch_size})",
    )
    recipe.add_argument(
        "--lr",
        type=NUMBER,
        default=d.lr,
        metavar="RATE",
        help=f"highest learning rate, or the constant one of rmsprop (default {d.lr:g})",
    )
    return recipe


def add_test_samples(group: Group) -> None:
    group.add_argument(
        "--test-samples",
        type=INTEGER,
        default=DEFAULTS.test_samples,
        metavar="N",
        help="importance samples an image for log p(x) of the test split"
        f" (default {DEFAULTS.test_samples})",
    )


def add_machine(
    parser: argparse.ArgumentParser, precision: str | None = DEFAULTS.precision
) -> None:
    machine = parser.add_argument_group("machine")
    fallback = f"default {precision}" if precision else "default: the run's own; auto"
    machine.add_argument(
        "--precision",
        type=one_of(PRECISIONS),
        default=precision,
        metavar="DTYPE",
        help=f"of matrix products: {choices(PRECISIONS)} ({fallback}: bfloat16 where the"
        " processor multiplies it)",
    )
    add_device(machine)


def add_device(group: Group) -> None:
    group.add_argument(
        "--device",
        type=DEVICE,
        default=DEFAULTS.device,
        metavar="NAME",
        help=f"auto|cpu|cuda|cuda:N (default {DEFAULTS.device}: the first CUDA device, else the"
        " CPU)",
    )


def add_output(parser: argparse.ArgumentParser, what: str) -> Group:
    """--out DIR and --json; `needed` requires the first. Returns the group."""
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=PATH, metavar="DIR", help="a folder for the results (needed)")
    add_json(output, what)
    return output


def add_json(group: Group, what: str) -> None:
    group.add_argument(
        "--json", action="store_true", help=f"print one JSON document instead of the table: {what}"
    )


def needed(options: argparse.Namespace, name: str, what: str) -> Any:
    """The value of a setting that has no default.

    Raises:
        ConfigError: it is given neither on the command line nor in a file.
    """
    value = getattr(options, name)
    if value is None:
        flag = name.replace("_", "-")
        raise ConfigError(f"{name} is needed: {what} (--{flag}, or {name} in the --config file)")
    return value


def train_config(options: argparse.Namespace) -> TrainConfig:
    """The training settings among a command's settings; missing ones have their defaults.

    Raises:
        ConfigError: a value that `TrainConfig` refuses.
    """
    names = {field.name for field in fields(TrainConfig)}
    values = {name: value for name, value in vars(options).items() if name in names}
    if values["steps"] is None and values["epochs"] is None:
        values["epochs"] = DEFAULTS.epochs
    return TrainConfig(**values)
