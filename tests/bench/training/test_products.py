"""The floor of a training step: each product by the fastest code at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.timing.clock import Times
from bench.training import products
from bench.training.checks import check_products
from bench.training.products import Product, Way, fastest, floor, peak, replay, ways

CPU = torch.device("cpu")
Works = dict[str, Callable[[], object]]


def product(m: int, k: int, n: int, dtype: torch.dtype = torch.float32) -> Product:
    return Product(((m, k), (k, 1)), ((k, n), (n, 1)), dtype)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str], list[float]]) -> list[Works]:
    """Times are those that `seconds` gives for a work's name. Returns the works that were timed."""
    asked: list[Works] = []

    def interleave(works: Works, *_: Any, **__: Any) -> dict[str, Times]:
        asked.append(works)
        return {name: Times(seconds(name)) for name in works}

    monkeypatch.setattr(products, "interleave", interleave)
    return asked


@pytest.mark.parametrize(
    ("way", "dtype"),
    [(way, dtype) for dtype in (torch.float32, torch.bfloat16) for way in ways(dtype)],
    ids=str,
)
def test_every_way_computes_the_product_it_says(way: Way, dtype: torch.dtype) -> None:
    job = way.job(product(33, 70, 19, dtype))
    assert (job.left.shape, job.right.shape) == ((33, 70), (70, 19))
    assert job.left.dtype == job.right.dtype == job.run().dtype == dtype
    for operand, lines in ((job.left, way.left), (job.right, way.right)):
        assert operand.stride(1 if lines == "rows" else 0) == 1
    assert job.left.std() > 0.5
    assert check_products([job]).passed


def test_onednn_is_tried_where_pytorch_has_it() -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        assert {way.library for way in ways(torch.float32)} == {"torch.mm"}
    tried = {way.library for way in ways(torch.float32)}
    assert ("oneDNN linear" in tried) == torch.backends.mkldnn.is_available()


def test_the_fastest_way_has_the_lowest_median(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Way("torch.mm", "columns", "rows")
    # The others have the lowest time and the lowest mean.
    asked = timed(
        monkeypatch, lambda name: [1.0, 2.0, 90.0] if name == str(wanted) else [0.5, 3.0, 4.0]
    )
    assert fastest(product(8, 16, 4)) == wanted
    assert set(asked[0]) == {str(way) for way in ways(torch.float32)}


def test_each_product_of_a_step_is_computed_in_the_fastest_way_for_its_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_step = [product(8, 16, 4), product(4, 8, 2), product(8, 16, 4)]
    asked = timed(monkeypatch, lambda name: [1.0 if "columns" in name else 2.0])
    found = floor(of_step, CPU)
    assert len(asked) == 2  # sizes that differ
    sizes = [(*job.left.shape, job.right.shape[1]) for job in found.jobs]
    assert sizes == [(8, 16, 4), (4, 8, 2), (8, 16, 4)]
    assert found.libraries == {"torch.mm": 3}
    # Each has operands of its own, as in a step, where they do not stay in a cache.
    assert len({job.left.data_ptr() for job in found.jobs}) == 3
    ran: list[int] = []
    for i, job in enumerate(found.jobs):
        object.__setattr__(job, "run", lambda i=i: ran.append(i))
    found.run()
    assert ran == [0, 1, 2]


def test_a_gpu_keeps_to_the_products_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, lambda _: [1.0])
    meta = torch.device("meta")
    assert floor([product(8, 16, 4)] * 2, meta).libraries == {"torch.mm": 2}
    assert not asked


def test_the_peak_is_what_one_large_product_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    peak.cache_clear()
    timed(monkeypatch, lambda _: [0.25, 0.5, 8.0])
    assert peak(torch.float32, CPU) == 2 * 1024**3 / 0.5
    peak.cache_clear()


def test_a_replay_runs_every_product_of_a_step() -> None:
    with torch.profiler.profile() as profile:
        replay([product(8, 16, 4), product(4, 8, 2)], CPU).run()
    shapes = [event.name for event in profile.events() if event.name == "aten::mm"]
    assert len(shapes) == 4  # two for the outputs, and two by the replay
