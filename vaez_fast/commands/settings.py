"""Settings that the commands which train have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..config import PRECISIONS, TrainConfig
from ..data import BINARIZATIONS, DATA_SETS
from ..model import MODELS

Group = argparse._ArgumentGroup


def choices(values: Sequence[str]) -> str:
    """The values that can be had, for a help text."""
    return "|".join(values)


def add_data(parser: argparse.ArgumentParser) -> None:
    d = TrainConfig()
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


def add_model(group: Group) -> None:
    d = TrainConfig()
    group.add_argument(
        "--model", default=d.model, help=f"{choices(list(MODELS))} (default {d.model})"
    )


def add_recipe(parser: argparse.ArgumentParser) -> Group:
    """The recipe but for its seeds; returns the group."""
    d = TrainConfig()
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
    return recipe


def add_machine(parser: argparse.ArgumentParser) -> None:
    d = TrainConfig()
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
