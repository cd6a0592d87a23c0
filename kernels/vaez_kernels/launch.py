"""Launch parameters: a fixed table per architecture; VAEZ_AUTOTUNE=1 times others instead.

What a program computes never depends on them, only how fast: eps, z and gradients are the same to
the last bit at all of them, sums over a row to 4 ulp.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .backend import triton


class Tile(NamedTuple):
    """What one program holds at once: so many elements, by so many warps."""

    elements: int
    num_warps: int

    def block(self, columns: int, lanes: int = 1) -> dict[str, int]:
        """The tile's shape for rows of so many columns, in whole quads, of so many samples."""
        elements = self.elements // lanes
        block_d = min(max(4, 1 << (columns - 1).bit_length()), elements)
        rows = elements // block_d
        return {"BLOCK_ROWS": rows, "BLOCK_D": block_d}


# Chosen from offline builds (tests/test_offline*.py), not from times. Latents: eight elements for
# each of 128 threads keep 128-bit accesses, 40 registers in the fused forward, and no spills.
# Likelihood: a warp sums its rows alone, without barriers, with eight 128-bit loads in flight.
FROM_OFFLINE_BUILDS = {
    "noise": Tile(1024, 4),
    "latent_forward": Tile(1024, 4),
    "latent_backward": Tile(1024, 4),
    "bernoulli_forward": Tile(1024, 1),
    "bernoulli_backward": Tile(1024, 1),
}
TABLE: dict[str, dict[str, Tile]] = {
    "sm_80": FROM_OFFLINE_BUILDS,
    "sm_90": FROM_OFFLINE_BUILDS,
    "sm_100": FROM_OFFLINE_BUILDS,
    "gfx942": FROM_OFFLINE_BUILDS,
}
# Four to 32 elements a thread: beyond, registers spill.
CANDIDATES = [
    Tile(elements, warps)
    for elements in (512, 1024, 2048, 4096)
    for warps in (1, 2, 4, 8)
    if 4 <= elements // (32 * warps) <= 32
]

_forced: list[Tile] = []
_fastest: dict[object, Tile] = {}


@functools.cache
def architecture(device: torch.device) -> str:
    """Of a CUDA (or ROCm) device, as its compiler names it; "cpu" and so on for others."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@contextmanager
def use_tile(tile: Tile) -> Iterator[None]:
    """Launch every kernel inside the block with this tile: for tests, and for who tunes by hand."""
    _forced.append(tile)
    try:
        yield
    finally:
        _forced.pop()


def launch(
    kernel: Any,
    name: str,
    columns: int,
    programs: Callable[[int], int],
    args: tuple[Any, ...],
    constants: dict[str, Any],
    lanes: int = 1,
) -> None:
    """Run a kernel once, with the table's tile or, under VAEZ_AUTOTUNE=1, the fastest one.

    Args:
        kernel: a Triton function that writes nothing but its outputs, so that it can be timed.
        name: its key in the table.
        columns: the length of a row.
        programs: from BLOCK_ROWS to the number of programs.
        args: positional arguments; the first tensor among them says where it runs.
        constants: its constexprs, but for BLOCK_ROWS and BLOCK_D.
        lanes: how many samples of each row a tile holds.
    """

    def run(tile: Tile) -> None:
        block = tile.block(columns, lanes)
        # Four warps are Triton's default; naming them would make a traced launch an autotuned one.
        options = {} if tile.num_warps == 4 else {"num_warps": tile.num_warps}
        kernel[(programs(block["BLOCK_ROWS"]),)](*args, **constants, **block, **options)

    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    if _forced:
        tile = _forced[-1]
    elif device.type == "cuda" and os.environ.get("VAEZ_AUTOTUNE") == "1":
        tile = _tuned(kernel, name, device, (columns, *constants.items()), run)
    else:
        tile = from_table(name, device)
    run(tile)


def from_table(name: str, device: torch.device) -> Tile:
    return TABLE.get(architecture(device), FROM_OFFLINE_BUILDS)[name]


def _tuned(
    kernel: Any, name: str, device: torch.device, case: object, run: Callable[[Tile], None]
) -> Tile:
    # Of sizes the first one seen decides: timing each anew would stop a training loop repeatedly.
    key = (name, device, case)
    # A traced launch is not run and a captured one cannot be timed: they take what was found.
    idle = isinstance(kernel, triton.runtime.JITFunction)
    if key not in _fastest and idle and not torch.cuda.is_current_stream_capturing():
        _fastest[key] = fastest(run, triton.testing.do_bench)
    return _fastest.get(key) or from_table(name, device)


def fastest(run: Callable[[Tile], None], time: Callable[[Callable[[], None]], float]) -> Tile:
    """The candidate whose `run` takes least by `time`."""
    return min(CANDIDATES, key=lambda tile: time(lambda: run(tile)))
