"""What the parts run, and in which order: what is worth most comes first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

COMPARISON = "bench/gpu/comparison.py"


@dataclass(frozen=True)
class Part:
    """Rows that one call runs.

    Args:
        name: as the command line calls it.
        files: of rows, for pytest, the most valuable first.
        timed: its rows are timed alone on the machine, after all kernels were compiled in
            parallel; others are checks, which run in parallel.
        interleave_files: a group of each file, then the next of each; else one file after the
            other.
        digits: it needs mnist-5k.
    """

    name: str
    files: tuple[str, ...]
    timed: bool
    interleave_files: bool = False
    digits: bool = False


PARTS = {
    part.name: part
    for part in (
        Part(
            "correctness",
            (
                "tests/cuda/test_numbers.py",
                "tests/cuda/test_training.py",
                "tests/cuda/test_launches.py",
                "tests/cuda/test_products.py",
                COMPARISON,
            ),
            timed=False,
        ),
        Part(
            "ops",
            (
                "bench/ops/bench_latent.py",
                "bench/ops/bench_likelihood.py",
                "bench/ops/bench_linear.py",
                "bench/ops/bench_importance.py",
                "bench/ops/bench_mixture.py",
                "bench/ops/bench_noise.py",
            ),
            timed=True,
            interleave_files=True,
        ),
        Part(
            "training",
            ("bench/training/bench_step.py", "bench/training/bench_training.py"),
            timed=True,
            digits=True,
        ),
        Part("rivals", ("bench/jax/bench_jax.py", "bench/ops/bench_autotuned.py"), timed=True),
    )
}


def group_of(row: str, provider: str | None) -> str:
    """A row's id without its provider, which ends it: rows of one group are timed in turn."""
    return row.removesuffix("]").removesuffix(f"-{provider}") if provider else row


def in_order(groups: Iterable[str], part: Part) -> list[str]:
    """Groups of rows as the part runs them.

    The files' sizes rise. Where files take turns, each begins with forward and backward of its
    largest size in float32, then the other sizes, then bfloat16, and last the forward alone.
    """
    of_file: dict[str, list[str]] = {file: [] for file in part.files}
    for group in groups:
        of_file[group.partition("::")[0]].append(group)
    if not part.interleave_files:
        return [group for file in of_file.values() for group in file]
    for file in of_file.values():
        file.reverse()
        file.sort(key=_later)
    turns = zip_longest(*of_file.values())
    return [group for turn in turns for group in turn if group is not None]


def _later(group: str) -> tuple[bool, bool]:
    return group.endswith("-forward"), "bfloat16" in group
