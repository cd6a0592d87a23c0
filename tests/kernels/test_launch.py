"""Launch parameters: which tile a launch uses, and that tuning only happens on request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vaez_kernels import launch
from vaez_kernels.backend import triton


class Recorder:
    """Replaces a kernel and records the grid and the options of each launch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **constants: self.seen.append({"grid": grid, **constants})


def run(columns: int = 20) -> dict[str, Any]:
    kernel = Recorder()
    launch.launch(
        kernel, "noise", columns, lambda rows: -(-100 // rows), (torch.zeros(1),), {"D": columns}
    )
    (seen,) = kernel.seen
    return seen


@pytest.mark.parametrize("columns", [1, 3, 4, 5, 20, 784, 1024, 5000])
@pytest.mark.parametrize("tile", launch.CANDIDATES)
def test_a_tile_holds_its_elements_in_whole_quads(tile: launch.Tile, columns: int) -> None:
    block = tile.block(columns)
    assert block["BLOCK_ROWS"] * block["BLOCK_D"] == tile.elements
    assert block["BLOCK_D"] % 4 == 0
    assert block["BLOCK_D"] >= min(columns, tile.elements)


@pytest.mark.parametrize("lanes", [2, 8])
def test_a_tiles_elements_are_shared_by_its_samples(lanes: int) -> None:
    for columns in (1, 20, 5000):
        block = launch.Tile(1024, 4).block(columns, lanes)
        assert block["BLOCK_ROWS"] * block["BLOCK_D"] * lanes == 1024


def test_a_launch_takes_the_tables_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(launch.TILES, "noise", launch.Tile(64, 2))
    assert run() == {"grid": (50,), "D": 20, "BLOCK_ROWS": 2, "BLOCK_D": 32, "num_warps": 2}


def test_four_warps_are_left_to_triton() -> None:
    assert "num_warps" not in run()


def test_a_forced_tile_outranks_the_table_inside_its_block() -> None:
    before = run()
    with launch.use_tile(launch.Tile(512, 8)):
        assert run()["num_warps"] == 8
        with launch.use_tile(launch.Tile(512, 2)):
            assert run()["num_warps"] == 2
        assert run()["num_warps"] == 8
    assert run() == before


def test_the_fastest_candidate_is_the_one_of_least_time() -> None:
    ran: list[launch.Tile] = []
    wanted = launch.CANDIDATES[3]

    def time(work: Callable[[], None]) -> float:
        work()
        return 1.0 if ran[-1] == wanted else 2.0

    assert launch.fastest(ran.append, time, launch.CANDIDATES) == wanted
    assert ran == launch.CANDIDATES


@pytest.fixture
def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> list[launch.Tile]:
    """Simulate a CUDA device on which candidates are timed; returns the tiles that tuning chose."""
    asked: list[launch.Tile] = []

    def fastest(run: Callable[[launch.Tile], None], time: Any, candidates: Any) -> launch.Tile:
        asked.append(launch.Tile(2048, 8))
        return asked[-1]

    monkeypatch.setattr(launch, "fastest", fastest)
    monkeypatch.setattr(launch, "_fastest", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return asked


@pytest.mark.skipif(triton is None, reason="triton is not installed: nothing to tune")
def test_tuning_times_a_case_once_and_never_a_traced_launch(
    pretend_cuda: list[launch.Tile], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = launch.USUAL

    def tuned(eager: bool, case: object) -> launch.Tile:
        return launch.tuned_tile(eager, ("noise", case), usual, lambda tile: None)

    traced, eager = False, True
    assert tuned(traced, 1) == usual
    assert pretend_cuda == []
    assert tuned(eager, 1) == tuned(eager, 1) == tuned(traced, 1) == launch.Tile(2048, 8)
    assert len(pretend_cuda) == 1
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuned(eager, 2) == usual


def test_each_dtype_has_its_own_fastest_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[object] = []

    def tuned(eager: bool, key: object, usual: launch.Tile, run: Any) -> launch.Tile:
        keys.append(key)
        return usual

    monkeypatch.setattr(launch, "tuned_tile", tuned)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setenv("VAEZ_AUTOTUNE", "1")
    with FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            args = (torch.empty(1, dtype=dtype, device="cuda"),)
            launch.with_tile("noise", (), args, launch.USUAL, lambda tile: None)
    assert keys[0] == keys[2] != keys[1]


def test_nothing_is_tuned_unless_asked_for(
    pretend_cuda: list[launch.Tile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VAEZ_AUTOTUNE", raising=False)
    run()
    monkeypatch.setenv("VAEZ_AUTOTUNE", "1")
    run()  # and never on a CPU
    assert pretend_cuda == []
