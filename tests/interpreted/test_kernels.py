"""The Triton kernels, interpreted on the CPU, against the reference and the PyTorch fallback.

tests/kernels/test_interpreter.py runs this in a separate process; helpers.py derives the
tolerances.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interpreted.watch import watch
from tests.kernels.helpers import (
    KL_ERROR,
    LAYOUTS,
    MODES,
    assert_within,
    call,
    check,
    flat,
    latents,
    measured,
    small_kls,
    strided_keys,
    upstream_of,
)
from vaez_kernels import (
    interpreting,
    kl_standard_normal,
    latent,
    launch,
    noise,
    noise_key,
    normal,
    reference,
    rsample,
    rsample_kl,
    uniform,
    use_backend,
)

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

KEY = noise_key(17, "train", 9)
SHAPES = [  # S, B, D
    (1, 1, 1),
    (8, 7, 3),
    (9, 7, 19),
    (1, 129, 20),
    (3, 7, 128),
    (3, 1, 257),
    (1, 7, 1000),
]
each_mode = pytest.mark.parametrize("mode", list(MODES))


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launched kernels. Fresh memory is filled with NaN, so unwritten outputs are found."""
    return watch(
        monkeypatch,
        (noise.kernel, "forward"),
        (latent.kernel, "forward"),
        (latent.kernel, "backward"),
    )


@each_mode
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_references(
    mode: str, shape: tuple[int, int, int], launches: list[str]
) -> None:
    samples, rows, columns = shape
    check(mode, *latents(rows, columns), KEY, samples)
    assert launches == ["forward", "backward"]


@each_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_low_precision_is_the_references_too(
    mode: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    # The interpreter truncates float32 to bfloat16, while a GPU rounds: one ulp instead of half.
    samples, rows, columns = shape
    check(mode, *latents(rows, columns, dtype), KEY, samples, truncates=True)


def test_the_shapes_meet_every_size() -> None:
    """So does each dtype, because each dtype runs all shapes."""
    sizes = [set(values) for values in zip(*SHAPES, strict=True)]
    assert sizes[0] >= {1, 3, 8}
    assert sizes[1] >= {1, 7, 129}
    assert sizes[2] >= {1, 3, 19, 20, 128, 257, 1000}


@each_mode
@pytest.mark.parametrize("shape", [(3, 7, 19), (9, 33, 20)])
def test_kernels_and_fallback_agree(mode: str, shape: tuple[int, int, int]) -> None:
    samples, rows, columns = shape
    mu, logvar = latents(rows, columns)
    upstream = upstream_of(mu, samples)
    kernels = measured(mode, mu, logvar, KEY, samples, upstream)
    with use_backend("torch"):
        fallback = measured(mode, mu, logvar, KEY, samples, upstream)
    # The noise is equal to the last bit. exp and the order of sums differ, each by a few units in
    # the last place of terms that stay below 20.
    for one, two in zip(kernels, fallback, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-6, atol=2e-5 if one is kernels.kl else 5e-6)


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("columns", [1, 3, 19, 20, 128, 257, 1000, 1027])
def test_the_stream_is_the_fallbacks_bit_for_bit(draw: Any, columns: int) -> None:
    for options in ({}, {"row_offset": 2**40 + 3, "sample_offset": 2**32 - 3}):
        drawn = draw(KEY, 3, 7, columns, **options)
        with use_backend("torch"):
            assert torch.equal(drawn, draw(KEY, 3, 7, columns, **options))


@pytest.mark.parametrize(("step", "row", "column"), [(4, 1568679, 2), (5, 382132, 1)])
def test_a_word_that_rounds_to_1_stays_below_it(step: int, row: int, column: int) -> None:
    # Found by search: less than 16 below 2³².
    key = noise_key(2024, "train", step)
    assert reference.uniform(key, 1, 1, 4, row_offset=row)[0, 0, column] > 1 - 2.0**-28
    drawn = uniform(key, 1, 1, 4, row_offset=row)
    assert drawn[0, 0, column] == 1 - 2.0**-24
    with use_backend("torch"):
        assert torch.equal(drawn, uniform(key, 1, 1, 4, row_offset=row))


def test_all_of_the_key_and_the_step_reach_the_kernels() -> None:
    for key in (noise_key(2**32 - 1, "generate", 2**32 - 1), noise_key(0, "binarize", 2**31)):
        wanted = reference.normal(key, 2, 3, 20)
        assert_within("normal", normal(key, 2, 3, 20), wanted, 1e-6 * wanted.abs().clamp(min=1))
        check("rsample", *latents(3, 20), key, 2)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_key_in_awkward_memory_draws_what_it_would_elsewhere(draw: Any) -> None:
    for key in strided_keys():
        assert torch.equal(draw(key, 2, 3, 5), draw(key.clone().contiguous(), 2, 3, 5))


@each_mode
def test_a_key_in_awkward_memory_gives_values_and_gradients_that_it_would_elsewhere(
    mode: str,
) -> None:
    for key in strided_keys():
        check(mode, *latents(3, 5), key, 2)


def test_latent_kernels_draw_the_stream_bit_for_bit() -> None:
    zeros = torch.zeros(7, 19)
    z = rsample(zeros, zeros, KEY, 9, row_offset=5, sample_offset=6)
    assert torch.equal(z, normal(KEY, 9, 7, 19, row_offset=5, sample_offset=6))


def test_backward_draws_the_noise_that_forward_drew() -> None:
    # At mu = logvar = 0, z is eps and dz/dlogvar is eps/2, both without rounding.
    mu, logvar = torch.zeros(2, 7, 19).unbind()
    z = rsample(mu, logvar.requires_grad_(), KEY, 9, row_offset=5, sample_offset=6)
    for sample in range(9):
        (grad,) = torch.autograd.grad(z[sample].sum(), logvar, retain_graph=True)
        assert torch.equal(grad, 0.5 * z[sample])


@each_mode
def test_offsets_address_rows_and_samples_of_the_whole(mode: str) -> None:
    check(mode, *latents(5, 20), KEY, 9, row_offset=2**33, sample_offset=2**32 - 9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["rsample_kl/analytic", "rsample_kl/sticking-the-landing"])
def test_memory_layout_does_not_matter(layout: str, mode: str) -> None:
    check(mode, *latents(9, 20, layout=layout), KEY, 2)
    for dtype in (torch.bfloat16, torch.float16):
        check(mode, *latents(7, 19, dtype, layout), KEY, 3, truncates=True)


def test_the_kl_keeps_five_digits_down_to_1e_8() -> None:
    mu, logvar = small_kls()
    assert reference.kl_standard_normal(mu, logvar).min() < 1.1e-8
    check("kl_standard_normal", mu, logvar, KEY, 1)
    check("rsample_kl/analytic", mu, logvar, KEY, 1)


def test_each_logvars_kl_keeps_five_digits_on_all_its_range() -> None:
    size = torch.cat((torch.logspace(-3.7, 1.9, 1000), torch.linspace(0.49, 0.51, 1001)))
    logvar = torch.cat((size, -size))[:, None].requires_grad_()
    wanted = reference.kl_standard_normal(torch.zeros_like(logvar), logvar.detach())
    kl = kl_standard_normal(torch.zeros_like(logvar), logvar)
    assert_within("KL", kl, wanted, KL_ERROR * wanted)
    (grad,) = torch.autograd.grad(kl.sum(), logvar)
    wanted = 0.5 * torch.expm1(logvar.detach().double())
    assert_within("gradient", grad, wanted, KL_ERROR * wanted.abs())


@each_mode
@pytest.mark.parametrize("wanted", ["mu", "logvar"])
def test_one_input_alone_may_require_a_gradient(mode: str, wanted: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 3)
    both = measured(mode, mu, logvar, KEY, 3, upstream)
    alone, other = (mu, logvar) if wanted == "mu" else (logvar, mu)
    other.requires_grad_(False)
    outputs = call(mode, mu, logvar, KEY, 3)
    pairs = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o is not None]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    assert alone.grad is not None
    assert torch.equal(alone.grad, both.grad_mu if wanted == "mu" else both.grad_logvar)
    assert other.grad is None


@pytest.mark.parametrize("kl", latent.twin.KLS[1:])
def test_an_unused_output_adds_nothing_to_the_gradient(kl: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 3)
    z, rows = rsample_kl(mu, logvar, KEY, 3, kl)
    by_z = torch.autograd.grad(z, (mu, logvar), upstream.grad_z, retain_graph=True)
    by_kl = torch.autograd.grad(rows, (mu, logvar), upstream.grad_kl)
    name = "kl_standard_normal" if kl == "analytic" else f"kl_standard_normal_mc/{kl}"
    for mode, grads in (("rsample", by_z), (name, by_kl)):
        separate = measured(mode, mu, logvar, KEY, 3, upstream)
        assert torch.equal(grads[0], separate.grad_mu)
        assert torch.equal(grads[1], separate.grad_logvar)


# Elements and samples of a program: less than a row, two rows, more than all.
TILES = [(launch.Tile(4, 4), 1), (launch.Tile(64, 4), 2), (launch.Tile(512, 4), 4)]


def test_the_stream_does_not_depend_on_the_launch_parameters() -> None:
    wanted = normal(KEY, 3, 5, 21)
    for tile, _ in TILES:
        with launch.use_tile(tile):
            assert torch.equal(normal(KEY, 3, 5, 21), wanted), tile


@each_mode
def test_results_do_not_depend_on_the_launch_parameters(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mu, logvar = latents(3, 21)
    upstream = upstream_of(mu, 3)
    one = measured(mode, mu, logvar, KEY, 3, upstream)
    # The absolute sizes of a row's terms, because Monte Carlo terms have either sign.
    z_eps = rsample(mu, logvar, KEY, 3).detach(), normal(KEY, 3, 3, 21)
    square, less = (0.5 * (x.double() ** 2) for x in z_eps)
    sizes = (square - less - 0.5 * logvar.detach()).abs().mean(0).sum(1)
    if mode.endswith("analytic") or mode == "kl_standard_normal":
        sizes = reference.kl_standard_normal(mu, logvar).detach()
    for tile, samples in TILES:
        monkeypatch.setattr(latent.kernel, "SAMPLES_PER_PROGRAM", samples)
        with launch.use_tile(tile):
            other = measured(mode, mu, logvar, KEY, 3, upstream)
        assert one.z is None or (other.z is not None and torch.equal(one.z, other.z)), tile
        assert torch.equal(one.grad_mu, other.grad_mu), tile
        assert torch.equal(one.grad_logvar, other.grad_logvar), tile
        if one.kl is not None and other.kl is not None:
            # Lane grouping reorders the row's sum: 4 ulp.
            assert_within("KL", other.kl, one.kl, 4 * 2.0**-23 * sizes)


@each_mode
def test_no_rows_launch_nothing(mode: str) -> None:
    mu, logvar = latents(0, 20)
    empty = measured(mode, mu, logvar, KEY, 9, upstream_of(mu, 9))
    assert empty.z is None or empty.z.shape == (9, 0, 20)
    assert empty.kl is None or empty.kl.shape == (0,)
    assert empty.grad_mu.shape == empty.grad_logvar.shape == (0, 20)


@each_mode
def test_a_nan_stays_in_its_row_and_is_not_lost(mode: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 3)
    clean = measured(mode, mu, logvar, KEY, 3, upstream)
    with torch.no_grad():
        logvar[2, 5] = torch.nan
    dirty = measured(mode, mu, logvar, KEY, 3, upstream)
    rest = [row for row in range(7) if row != 2]
    if dirty.z is not None and clean.z is not None:
        assert dirty.z[:, 2, 5].isnan().all()
        assert torch.equal(dirty.z[:, rest], clean.z[:, rest])
    if dirty.kl is not None and clean.kl is not None:
        assert dirty.kl[2].isnan()
        assert torch.equal(dirty.kl[rest], clean.kl[rest])
    assert dirty.grad_logvar[2, 5].isnan()
    assert torch.equal(dirty.grad_mu[rest], clean.grad_mu[rest])
    assert torch.equal(dirty.grad_logvar[rest], clean.grad_logvar[rest])


@pytest.mark.parametrize("route", ["public", "op"])
def test_backward_outside_the_backend_block_has_the_gradients_of_inside(route: str) -> None:
    generator = torch.Generator().manual_seed(3)
    mu, logvar = (torch.randn(5, 8, generator=generator).requires_grad_() for _ in range(2))
    key = noise_key(4, "train")

    def forward() -> tuple[Tensor, Tensor]:
        if route == "public":
            kl = "total-derivative"
            return rsample_kl(mu, logvar, key, 2, kl, row_offset=7, sample_offset=3)
        args = flat(mu, logvar, key, 2, True, "total-derivative", 7, 3)
        out = torch.ops.vaez.latent_forward(*args)
        return out[0], out[1]

    def gradients(z: Tensor, kl: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(z.square().sum() + kl.sum(), [mu, logvar])

    with use_backend("triton"):
        outside = forward()
        inside = gradients(*forward())
    with use_backend("torch"):
        for a, b in zip(gradients(*outside), inside, strict=True):
            torch.testing.assert_close(a, b)
