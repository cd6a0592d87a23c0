"""Launch parameters of all kernels, and how a kernel is started.

Tiles come from tables. On CUDA, VAEZ_AUTOTUNE=1 instead times candidate tiles, for every kernel
except the mixture's, whose tile fills the registers of its only warp. A tile changes the speed of a
kernel, and at most the order of its sums: eps, z and the gradients of elementwise kernels are
bit-identical for all tiles, sums over a row agree to 4 ulp, and products are summed in another
order, in values and gradients.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

from .backend import TRITON_VERSION, interpreting, is_traced, launcher, triton


class Tile(NamedTuple):
    """How many elements a program of an elementwise kernel holds, and its number of warps."""

    elements: int
    num_warps: int

    def block(self, columns: int, lanes: int = 1) -> dict[str, int]:
        """The tile's shape for rows of `columns` columns, in whole quads, and `lanes` samples."""
        elements = self.elements // lanes
        block_d = min(max(4, 1 << (columns - 1).bit_length()), elements)
        rows = elements // block_d
        return {"BLOCK_ROWS": rows, "BLOCK_D": block_d}


class ProductTile(NamedTuple):
    """Sizes of the product of one step of a program: rows × pixels, over `hidden` terms of H."""

    rows: int
    pixels: int
    hidden: int
    num_warps: int
    # Steps of a loop whose operands are loaded at once, while the first is computed.
    stages: int = 1


AnyTile = TypeVar("AnyTile", Tile, ProductTile)
Result = TypeVar("Result")

# Tiles of elementwise kernels, for all architectures. They were chosen from offline builds
# (tests/kernels/*/test_offline*.py), not from timings. Latents: with eight elements for each of 128
# threads, accesses stay 128-bit, the fused forward uses 40 registers and nothing spills.
# Likelihood: one warp sums its own rows, without barriers, with eight 128-bit loads in flight.
USUAL = Tile(1024, 4)
# A warp with four elements for each of its threads, for calls that would not fill a GPU otherwise.
SMALL = Tile(128, 1)
TILES = {"bernoulli_forward": Tile(1024, 1), "bernoulli_backward": Tile(1024, 1)}
# The last layer's kernels, by the type of the operands: "logits" are rows × pixels, over hidden
# units; "product" is any other product, rows × columns over terms. Nothing spills but a register of
# float32 residuals on Hopper with triton 3.6.
LAYER_TILES = {
    "logits": {
        "16 bits": ProductTile(64, 64, 64, 8, 2),
        "tf32": ProductTile(64, 64, 32, 8, 2),
        "float32": ProductTile(32, 32, 16, 4),
    },
    "product": {
        "16 bits": ProductTile(64, 64, 64, 4, 2),
        "tf32": ProductTile(64, 64, 32, 8, 2),
        "float32": ProductTile(32, 64, 32, 8),
    },
}
# For outputs so small that the tiles above would leave multiprocessors idle.
FEW_LAYER_TILES = {
    "logits": {
        "16 bits": ProductTile(16, 32, 64, 4, 2),
        "tf32": ProductTile(16, 32, 32, 4, 2),
        "float32": ProductTile(16, 16, 32, 4),
    },
    "product": {
        "16 bits": ProductTile(16, 32, 64, 4, 2),
        "tf32": ProductTile(16, 32, 32, 4, 2),
        "float32": ProductTile(16, 32, 32, 4),
    },
}
# If a row's hidden units are this many bytes at most and products are of 16 bits, a program keeps
# those of its rows, or the weights of its pixels. These are bytes before rounding: float32 operands
# are copied to shared memory as they are.
HELD_BYTES = 512
# The decoder's kernel, by precision and by whether the second layer has more than 256 units.
# With the replacements below, nothing spills with triton 3.6 and 3.8. Rows are samples. The first
# layer is computed `hidden` units at a time, and each block immediately goes into the product of
# the second layer. Entries are missing where no tile fits.
DECODER_TILES: dict[str, dict[tuple[str, bool], ProductTile]] = {
    "sm_80": {
        ("bfloat16", False): ProductTile(32, 64, 32, 8, 3),
        ("bfloat16", True): ProductTile(64, 64, 64, 8, 2),
        ("tf32", False): ProductTile(32, 32, 32, 8, 3),
        ("tf32", True): ProductTile(32, 32, 32, 8, 2),
    },
    "sm_90": {
        ("bfloat16", False): ProductTile(128, 64, 64, 8, 3),
        ("bfloat16", True): ProductTile(64, 64, 32, 8, 2),
        ("tf32", False): ProductTile(64, 32, 32, 8, 3),
        ("tf32", True): ProductTile(32, 32, 32, 8, 2),
    },
    "sm_100": {
        ("bfloat16", False): ProductTile(64, 64, 64, 8, 3),
        ("bfloat16", True): ProductTile(32, 64, 32, 8, 2),
        ("tf32", False): ProductTile(64, 32, 32, 8, 3),
        ("tf32", True): ProductTile(32, 32, 16, 8, 2),
    },
    "gfx942": {
        ("bfloat16", False): ProductTile(64, 64, 32, 8),
        ("bfloat16", True): ProductTile(64, 64, 32, 8),
    },
}
# Five of the tiles above spill with triton 3.6, whose compilers need more registers. For Blackwell
# it also ends in an assertion if several loads are under way. These replace them there.
DECODER_TILES_BEFORE_3_8: dict[str, dict[tuple[str, bool], ProductTile]] = {
    "sm_80": {
        ("bfloat16", True): ProductTile(64, 64, 16, 8, 2),
        ("tf32", False): ProductTile(32, 32, 16, 8, 3),
    },
    "sm_90": {("bfloat16", False): ProductTile(128, 64, 32, 8, 3)},
    "sm_100": {
        ("bfloat16", False): ProductTile(64, 64, 64, 8),
        ("bfloat16", True): ProductTile(32, 64, 16, 8),
        ("tf32", False): ProductTile(64, 32, 32, 8),
        ("tf32", True): ProductTile(32, 32, 16, 8),
    },
    "gfx942": {("bfloat16", False): ProductTile(64, 64, 16, 8)},
}
if TRITON_VERSION < (3, 8):
    for _gpu, _tiles in DECODER_TILES_BEFORE_3_8.items():
        DECODER_TILES[_gpu].update(_tiles)

# Four to 32 elements per thread; with more, registers spill.
CANDIDATES = [
    Tile(elements, warps)
    for elements in (512, 1024, 2048, 4096)
    for warps in (1, 2, 4, 8)
    if 4 <= elements // (32 * warps) <= 32
]
PRODUCT_CANDIDATES = [
    ProductTile(rows, pixels, hidden, warps)
    for rows in (32, 64, 128)
    for pixels in (32, 64)
    for hidden in (16, 32, 64)
    for warps in (4, 8)
]

_forced: list[Tile | ProductTile] = []
_fastest: dict[object, Any] = {}
_kept: dict[object, Any] = {}
# Launches and plans that are kept for the next call like them. A validation split has few sizes of
# batches; lengths that vary from call to call must not pile up.
MOST_KEPT = 1024


@functools.cache
def architecture(device: torch.device) -> str:
    """The compiler's name of a CUDA or ROCm device's architecture; else the device type ("cpu")."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA or ROCm device; 0 for any other."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def filling(elements: int, on: torch.Tensor) -> Tile:
    """The tile with which an elementwise kernel fills the device of `on`.

    A traced launch always takes the usual tile, because its graph serves other sizes, too.
    """
    if is_traced(on) or elements >= USUAL.elements * multiprocessors(on.device):
        return USUAL
    return SMALL


@contextmanager
def use_tile(tile: Tile | ProductTile) -> Iterator[None]:
    """Inside the block, launch every kernel that takes this type of tile with this tile.

    For tests, and for tuning by hand.
    """
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
    """Run an elementwise kernel once.

    Args:
        kernel: a Triton function that only writes its outputs, so that it can be run repeatedly.
        name: its key in `TILES`.
        columns: the length of a row.
        programs: BLOCK_ROWS → the number of programs.
        args: positional arguments, tensors before numbers; the first tensor determines the device.
        constants: its constexprs, except BLOCK_ROWS and BLOCK_D.
        lanes: how many samples of each row a tile holds.
    """
    tensors = tuple([arg for arg in args if isinstance(arg, torch.Tensor)])
    numbers = args[len(tensors) :]

    def run(tile: Tile) -> None:
        block = tile.block(columns, lanes)
        count = programs(block["BLOCK_ROWS"])
        run_kept(kernel, count, tensors, numbers, constants | block, tile.num_warps)

    usual = TILES.get(name, USUAL)
    if keeps_launches(tensors[0]):
        run(usual)
    else:
        with_tile(name, tuple(constants.items()), args, usual, run)


def with_tile(
    name: str, case: object, args: tuple[Any, ...], usual: AnyTile, run: Callable[[AnyTile], Result]
) -> Result:
    """Run a launch with the forced tile, else the fastest if tuning is on, else the usual one.

    Args:
        name: the kernel's name.
        case: everything that the choice depends on, besides the device and the dtypes of `args`.
            Batch sizes are not part of it: the first call decides, because timing each new size
            would keep stopping a training loop.
        args: the kernel's arguments; the first tensor among them determines the device.
        usual: the table's tile.
        run: launches the kernel with a given tile.

    Returns:
        The result of `run`.
    """
    forced = next((tile for tile in reversed(_forced) if type(tile) is type(usual)), None)
    if forced is not None:
        return run(forced)
    on = _first_tensor(args)
    if on.device.type == "cuda" and os.environ.get("VAEZ_AUTOTUNE") == "1":
        eager = not (is_traced(on) or interpreting())
        dtypes = tuple(arg.dtype for arg in args if isinstance(arg, torch.Tensor))
        with torch.cuda.device_of(on):
            usual = tuned_tile(eager, (name, on.device, dtypes, case), usual, run)
    return run(usual)


def start_kernel(
    kernel: Any,
    grid: tuple[Any, ...],
    args: tuple[Any, ...],
    constants: dict[str, Any],
    num_warps: int,
) -> None:
    """Run a kernel, or trace its launch if its arguments are traced."""
    on = _first_tensor(args)
    if is_traced(on):
        launcher(kernel)[grid](*args, **constants, **_options(num_warps))
        return
    with torch.cuda.device_of(on):  # Triton launches on the current device
        kernel[grid](*args, **constants, **_options(num_warps))


def _options(num_warps: int) -> dict[str, int]:
    # Four warps are Triton's default. Passing them would make a traced launch an autotuned one.
    return {} if num_warps == 4 else {"num_warps": num_warps}


def keeps_launches(on: torch.Tensor) -> bool:
    """Whether a call like this one may reuse what an earlier one decided about its launch.

    It may on CUDA with the usual tiles. A traced launch must be traced anew.
    """
    return (
        on.is_cuda
        and not is_traced(on)
        and not _forced
        and os.environ.get("VAEZ_AUTOTUNE") != "1"
        and not interpreting()
    )


def kept_for(key: object) -> Any:
    """What `keep` was given under this key; None if nothing was."""
    return _kept.get(key)


def keep(key: object, value: object) -> None:
    """Keep `value` for calls with this key, in place of the oldest if there are `MOST_KEPT`."""
    if len(_kept) >= MOST_KEPT:
        del _kept[next(iter(_kept))]
    _kept[key] = value


class Launch:
    """A kernel with its grid, numbers and constants: all but the tensors of a call.

    Triton binds and inspects all arguments of a launch in 24 µs. A second call with tensors of the
    same dtypes and alignment starts the compiled kernel itself, in 8 µs.

    Args:
        kernel: takes tensors, then numbers, then constexprs.
        grid, numbers, constants, num_warps: as for `start_kernel`.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int],
        numbers: tuple[Any, ...],
        constants: dict[str, Any],
        num_warps: int,
    ) -> None:
        self.kernel, self.grid, self.numbers = kernel, grid, numbers
        self.constants, self.num_warps = constants, num_warps
        self.compiled: dict[tuple[bool, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __call__(self, *tensors: torch.Tensor | None) -> None:
        """Run the kernel; the first tensor determines the device. Tracing traces the launch."""
        start_kernel(
            self.kernel, self.grid, (*tensors, *self.numbers), self.constants, self.num_warps
        )

    def again(self, *tensors: torch.Tensor | None) -> None:
        """The same for tensors that are not traced, of the same dtypes in every call."""
        on = tensors[0]
        assert on is not None
        # Triton compiles a kernel for pointers that are multiples of 16, or for any.
        alignment = tuple([x is None or x.data_ptr() % 16 == 0 for x in tensors])
        with torch.cuda.device_of(on):
            found = self.compiled.get(alignment)
            if found is not None:
                compiled, constants = found
                compiled[(*self.grid, 1, 1)](*tensors, *self.numbers, *constants)
                return
            args = (*tensors, *self.numbers)
            options = _options(self.num_warps)
            compiled = self.kernel[self.grid](*args, **self.constants, **options)
            names = self.kernel.arg_names[len(args) :]
            self.compiled[alignment] = compiled, tuple(self.constants[name] for name in names)


def run_kept(
    kernel: Any,
    programs: int,
    tensors: tuple[torch.Tensor | None, ...],
    numbers: tuple[Any, ...],
    constants: dict[str, Any],
    num_warps: int,
) -> None:
    """Run a kernel, and on CUDA keep its launch for calls that differ in the tensors alone.

    Args:
        kernel: takes tensors, then numbers, then constexprs.
        programs: how many.
        tensors: the first is not None and determines the device.
        numbers, constants, num_warps: as for `Launch`.
    """
    on = tensors[0]
    assert on is not None
    if not keeps_launches(on):
        Launch(kernel, (programs,), numbers, constants, num_warps)(*tensors)
        return
    dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
    which = (kernel.__name__, num_warps, on.device, programs)
    key = (*which, *dtypes, *numbers, *constants.values())
    found = kept_for(key)
    if found is None:
        found = Launch(kernel, (programs,), numbers, constants, num_warps)
        keep(key, found)
    found.again(*tensors)


def blocks_of(count: Any, block: Any) -> Any:
    """The number of blocks that hold `count` elements. Sizes of a trace may be open."""
    return -(-count // block)


def _first_tensor(args: tuple[Any, ...]) -> torch.Tensor:
    return next(arg for arg in args if isinstance(arg, torch.Tensor))


def tuned_tile(eager: bool, key: object, usual: AnyTile, run: Callable[[AnyTile], Any]) -> AnyTile:
    # A traced launch does not run, and a captured one cannot be timed. Both use an earlier result.
    if key not in _fastest and eager and not torch.cuda.is_current_stream_capturing():
        candidates: Sequence[Tile | ProductTile] = CANDIDATES
        if isinstance(usual, ProductTile):
            candidates = [tile._replace(stages=usual.stages) for tile in PRODUCT_CANDIDATES]
        _fastest[key] = fastest(run, triton.testing.do_bench, candidates)
    found: AnyTile = _fastest.get(key, usual)
    return found


def fastest(
    run: Callable[[Any], Any],
    time: Callable[[Callable[[], None]], float],
    candidates: Sequence[Any],
) -> Any:
    """The candidate for which `time` measures the shortest `run`."""

    def seconds(tile: Any) -> float:
        try:
            return time(lambda: run(tile))
        except triton.runtime.errors.OutOfResources:
            return math.inf  # more shared memory or registers than this GPU has

    return min(candidates, key=seconds)
