"""The latent kernels, interpreted, on latents of any shape and memory format.

tests/kernels/test_interpreter.py runs this in a separate process.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.latent import events
from tests.kernels.latent.events import KEY, Call
from vaez_kernels import (
    interpreting,
    kl_standard_normal,
    launch,
    normal,
    rsample,
    use_backend,
)

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)


# Every third call meets all layouts, reductions and options; the fallback's tests make all calls.
@pytest.mark.parametrize("call", list(events.calls())[::3], ids=str)
def test_values_and_gradients_are_the_references(call: Call) -> None:
    events.check(call)


@pytest.mark.parametrize("tile", [launch.Tile(64, 1), launch.SMALL], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last halves", "mixed"])
def test_a_line_of_several_tiles_has_the_kl_of_all_of_them(layout: str, tile: launch.Tile) -> None:
    for reduce in events.REDUCTIONS:
        with launch.use_tile(tile):
            events.check(Call((2, 3, 5, 8), layout, "total-derivative", reduce, samples=2))


@pytest.mark.parametrize("layout", events.LAYOUTS)
def test_kernel_and_fallback_draw_the_same_noise_in_every_memory_format(layout: str) -> None:
    given = events.inputs(Call((2, 3, 5, 5), layout))
    mu = torch.zeros_like(given["mu"])
    z = rsample(mu, mu, KEY, 2)
    with use_backend("torch"):
        eps = normal(KEY, 2, 2, 75).view(2, 2, 3, 5, 5)
    assert torch.equal(z, eps)


@pytest.mark.parametrize(
    ("clamp", "logvar"), [((-math.inf, 20.0), -math.inf), ((-30.0, math.inf), math.inf)]
)
def test_an_infinite_logvar_passes_a_bound_of_the_other_side(
    clamp: tuple[float, float], logvar: float
) -> None:
    def measured() -> tuple[Tensor, Tensor]:
        of = torch.full((2, 5), logvar, requires_grad=True)
        kl = kl_standard_normal(torch.zeros(2, 5), of, clamp=clamp)
        return kl.detach(), torch.autograd.grad(kl.sum(), of)[0]

    kernel = measured()
    with use_backend("torch"):
        fallback = measured()
    torch.testing.assert_close(kernel, fallback, equal_nan=True)


def test_rows_that_32_bits_cannot_reach_from_the_first_of_a_tile_are_read_right() -> None:
    rows, distance = 256, 2**23 + 2**16
    try:  # 4 GiB of addresses; only the pages of these rows are ever in memory
        storage = torch.empty((rows - 1) * distance + 4, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for the rows: {error}")
    assert (rows - 1) * distance > 2**31
    far = storage.as_strided((rows, 4), (distance, 1))
    near = torch.randn((rows, 4), generator=torch.Generator().manual_seed(0)).bfloat16()
    far.copy_(near)
    assert torch.equal(rsample(far, far, KEY), rsample(near, near, KEY))
