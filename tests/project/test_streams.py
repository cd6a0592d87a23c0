"""The list of the noise's steps: no two uses share one, and nobody draws from a step of its own."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vaez_fast import streams
from vaez_fast.streams import Use
from vaez_kernels import noise_key

ROOT = Path(__file__).parents[2]
FOLDERS = ("vaez_fast", "bench/likelihood", "bench/speedrun", "bench/training")
LIST = "vaez_fast/streams.py"
OF_USERS = "vaez_fast/latents/noise.py"  # makes the keys of a user's own seed and purpose


def uses() -> Iterator[tuple[str, Use]]:
    for name, value in vars(streams).items():
        if isinstance(value, Use):
            yield name, value
        elif isinstance(value, dict) and name.isupper():
            yield from ((f"{name}[{key!r}]", use) for key, use in value.items())


def overlaps(listed: list[tuple[str, Use]]) -> list[str]:
    return [
        f"{name} and {other} share steps of {a.purpose!r}"
        for (name, a), (other, b) in itertools.combinations(listed, 2)
        if a.purpose == b.purpose and a.first < b.first + b.count and b.first < a.first + a.count
    ]


def own_keys(source: str) -> list[str]:
    """Calls in a module that make a key without the list."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    called = [(node, ast.unparse(node.func).split(".")[-1]) for node in calls]
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node, name in called
        if name in ("noise_key", "Use")
    ]


def test_no_two_uses_share_a_step() -> None:
    listed = list(uses())
    assert len(listed) > 15
    assert not overlaps(listed)


def test_every_step_can_be_drawn_from() -> None:
    for _, use in uses():
        assert 0 <= use.first < use.first + use.count <= 2**32
        assert torch.equal(use.key(3), noise_key(3, use.purpose, use.first))
        last = use.first + use.count - 1
        assert torch.equal(use.key(3, use.count - 1), noise_key(3, use.purpose, last))
        with pytest.raises(ValueError, match="index must be below"):
            use.key(3, use.count)


def test_an_overlap_is_found() -> None:
    first, second = Use("evaluate", 10, 5), Use("evaluate", 14)
    assert overlaps([("a", first), ("b", second)]) == ["a and b share steps of 'evaluate'"]
    assert not overlaps([("a", first), ("b", Use("evaluate", 15)), ("c", Use("generate", 14))])


def test_every_key_comes_from_the_list() -> None:
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in (LIST, OF_USERS) and (calls := own_keys(path.read_text())):
                found[name] = calls
    assert not found


def test_a_key_of_ones_own_is_found() -> None:
    assert own_keys('noise = ops.noise_key(seed, "evaluate", 7)') == [
        "line 1: ops.noise_key(seed, 'evaluate', 7)"
    ]
    assert own_keys("DRAW = Use('evaluate', 14)")
    assert not own_keys("noise = LAW_OF_Z.key(seed)")
