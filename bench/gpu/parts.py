"""The rows of each part and their order: the most valuable rows come first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

COMPARISON = "bench/gpu/comparison.py"


@dataclass(frozen=True)
class Part:
    """The rows that one call runs.

    Args:
        name: its name on the command line.
        files: the pytest files of its rows, the most valuable first.
        timed: whether its rows are timed, one process alone on the machine, after all kernels were
            compiled in parallel. Rows that are not timed are checks, which run in parallel.
        take_turns: take one group from each test in turn, instead of one file after another.
        digits: whether it needs mnist-5k.
    """

    name: str
    files: tuple[str, ...]
    timed: bool
    take_turns: bool = False
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
                "bench/ops/bench_ops.py",
                "bench/ops/bench_importance.py",
                "bench/ops/bench_noise.py",
            ),
            timed=True,
            take_turns=True,
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
    """A row's id without the provider at its end: the rows of one group are timed in turn."""
    return row.removesuffix("]").removesuffix(f"-{provider}") if provider else row


def in_order(groups: Iterable[str], part: Part) -> list[str]:
    """Groups of rows in the order in which the part runs them.

    In a test sizes rise. Where tests take turns, each begins with forward and backward in float32,
    from the largest size to the smallest; then comes bfloat16, and last the forward alone.
    """
    if not part.take_turns:
        return sorted(groups, key=lambda group: part.files.index(group.partition("::")[0]))
    of_test: dict[str, list[str]] = {}
    for group in sorted(groups, key=lambda group: part.files.index(group.partition("::")[0])):
        of_test.setdefault(group.partition("[")[0], []).append(group)
    for test in of_test.values():
        test.reverse()
        test.sort(key=_later)
    turns = zip_longest(*of_test.values())
    return [group for turn in turns for group in turn if group is not None]


def _later(group: str) -> tuple[bool, bool]:
    return group.endswith("-forward"), "bfloat16" in group
