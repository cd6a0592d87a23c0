"""The kernels on a GPU agree with the reference and the fallback, at every size.

helpers.py and pixels.py derive the tolerances. Skipped without a CUDA device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.moved import CUDA, call_on_cuda, log_prob_on_cuda, mixture_on_cuda
from tests.kernels import helpers
from tests.kernels.bernoulli import pixels
from tests.kernels.helpers import MODES, assert_within, latents, measured, upstream_of
from tests.kernels.mixture import mixtures
from vaez_kernels import launch, noise_key, normal, reference, rsample, uniform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KEY = noise_key(23, "train", 4)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# S, B, D. Each combination with a dtype is compiled, so these are only some of them.
SHAPES = [(1, 1, 1), (8, 7, 3), (9, 7, 19), (1, 129, 128), (3, 7, 257), (1, 7, 1000)]
CASES = [*((shape, torch.float32) for shape in SHAPES), *(((3, 129, 20), d) for d in DTYPES)]
each_mode = pytest.mark.parametrize("mode", list(MODES))


@each_mode
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_values_and_gradients_are_the_references(
    mode: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    samples, rows, columns = shape
    helpers.check(mode, *latents(rows, columns, dtype), KEY, samples, call_on_cuda)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
@pytest.mark.parametrize("mode", ["rsample_kl/analytic", "rsample_kl/sticking-the-landing"])
def test_memory_layout_does_not_matter(layout: str, mode: str) -> None:
    helpers.check(mode, *latents(33, 20, layout=layout), KEY, 3, call_on_cuda)


def test_the_kl_keeps_five_digits_down_to_1e_8() -> None:
    helpers.check("rsample_kl/analytic", *helpers.small_kls(), KEY, 1, call_on_cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targets", [torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 7, 19), (3, 129, 784)])
def test_the_likelihood_is_the_references(
    shape: tuple[int, int, int], targets: torch.dtype, dtype: torch.dtype
) -> None:
    pixels.check(*pixels.pixels(*shape, dtype, targets), log_prob_on_cuda)


@pytest.mark.parametrize("layout", pixels.LAYOUTS)
def test_the_likelihoods_layout_does_not_matter(layout: str) -> None:
    pixels.check(*pixels.pixels(3, 9, 20, layout=layout), log_prob_on_cuda)


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("shape", [(7, 5, 3), (33, 129, 20), (5, 1000, 128), (100, 777, 257)])
def test_the_mixtures_density_is_the_references(
    shape: tuple[int, int, int], leave_out: bool
) -> None:
    mixtures.check(mixtures.mixture(*shape, leave_out=leave_out), mixture_on_cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", mixtures.LAYOUTS)
def test_the_mixtures_layout_does_not_matter(layout: str, dtype: torch.dtype) -> None:
    mixtures.check(mixtures.mixture(33, 129, 20, dtype, layout), mixture_on_cuda)


@pytest.mark.parametrize("columns", [1, 3, 19, 20, 128, 257, 1000])
def test_the_stream_is_the_cpus(columns: int) -> None:
    offsets = {"row_offset": 2**40 + 3, "sample_offset": 2**32 - 3}
    eps = normal(KEY.to(CUDA), 3, 1000, columns, **offsets).cpu()
    wanted = normal(KEY, 3, 1000, columns, **offsets)
    # Fused multiply-adds and the GPU's square root: normals agree only within the documented error.
    assert_within("normal", eps, wanted, 1e-6 * wanted.abs().clamp(min=1))
    # Uniforms are exact integers with one addition and one product, so they are equal bit for bit.
    u = uniform(KEY.to(CUDA), 3, 1000, columns, **offsets).cpu()
    assert torch.equal(u, uniform(KEY, 3, 1000, columns, **offsets))


def test_ten_million_normals_stay_within_their_promise_and_look_normal() -> None:
    eps = normal(KEY.to(CUDA), 1, 100_000, 100)[0]
    wanted = reference.normal(KEY, 1, 2_000, 100, row_offset=98_000)[0]
    limit = 1e-6 * wanted.abs().clamp(min=1)
    assert_within("normal", eps[98_000:].cpu(), wanted, limit)
    moments = [float((eps.double() ** k).mean()) for k in (1, 2, 3, 4)]
    # Means of 1e7 draws, within five standard errors. The moments' variances are 1, 2, 15 and 96.
    for moment, want, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - want) < 5 * (variance / 1e7) ** 0.5


@pytest.mark.parametrize("draw", [normal, uniform])
def test_the_stream_does_not_depend_on_the_launch_parameters(draw: Any) -> None:
    wanted = draw(KEY.to(CUDA), 3, 1001, 20)
    for tile in launch.CANDIDATES:
        with launch.use_tile(tile):
            assert torch.equal(draw(KEY.to(CUDA), 3, 1001, 20), wanted), tile


@pytest.mark.parametrize("mode", ["rsample_kl/analytic", "kl_standard_normal_mc/total-derivative"])
def test_results_do_not_depend_on_the_launch_parameters(mode: str) -> None:
    mu, logvar = latents(301, 20)
    upstream = upstream_of(mu, 3)
    one = measured(mode, mu, logvar, KEY, 3, upstream, call_on_cuda)
    for tile in launch.CANDIDATES:
        with launch.use_tile(tile):
            other = measured(mode, mu, logvar, KEY, 3, upstream, call_on_cuda)
        assert one.z is None or (other.z is not None and torch.equal(one.z, other.z)), tile
        assert torch.equal(one.grad_mu, other.grad_mu), tile
        assert torch.equal(one.grad_logvar, other.grad_logvar), tile
        if one.kl is not None and other.kl is not None:
            # Lane grouping reorders a row's sum. Its terms stay below 100, so it differs by a few
            # ulps of 100.
            torch.testing.assert_close(other.kl, one.kl, rtol=0, atol=4 * 2.0**-23 * 100)


@each_mode
def test_results_are_repeatable_bit_for_bit(mode: str) -> None:
    mu, logvar = latents(4097, 20)
    upstream = upstream_of(mu, 8)
    one, two = (measured(mode, mu, logvar, KEY, 8, upstream, call_on_cuda) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (b is not None and torch.equal(a, b))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_where_it_was(value: float) -> None:
    mu, logvar = (x.detach().to(CUDA) for x in latents(7, 20))
    wanted = rsample(mu, logvar, KEY.to(CUDA), 3)
    wanted[:, 2, 5] = value
    mu[2, 5] = value
    actual = rsample(mu, logvar, KEY.to(CUDA), 3)
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)


def test_elements_beyond_2_to_the_31_are_the_streams() -> None:
    rows, columns = 2**24 + 9, 128  # 2³¹ + 1,152 numbers
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    zeros = torch.zeros(1, columns, device=CUDA).expand(rows, -1)
    z = rsample(zeros, zeros, KEY.to(CUDA))[0]
    for first in (0, 2**24 - 8, rows - 9):
        wanted = reference.normal(KEY, 1, 9, columns, row_offset=first)[0]
        limit = 1e-6 * wanted.abs().clamp(min=1)
        assert_within("z", z[first : first + 9].cpu(), wanted, limit)
