"""Sampling z and the KLs: values and gradients against the float64 reference.

helpers.py derives the tolerances.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.helpers import (
    KL_ERROR,
    LAYOUTS,
    MODES,
    assert_within,
    call,
    check,
    expected,
    latents,
    measured,
    small_kls,
    upstream_of,
)
from vaez_kernels import (
    compiler,
    kl_standard_normal,
    kl_standard_normal_mc,
    noise_key,
    normal,
    reference,
    rsample,
    rsample_kl,
)
from vaez_kernels.latent import formulas

# The cache itself, even while a fixture counts its calls.
COMPILED = compiler.compiled
KEY = noise_key(11, "train", 3)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [  # S, B, D
    (1, 1, 1),
    (3, 1, 257),
    (8, 7, 1),
    (1, 7, 3),
    (3, 129, 3),
    (8, 7, 19),
    (1, 129, 20),
    (3, 7, 20),
    (8, 7, 128),
    (1, 7, 257),
    (8, 129, 257),
]
each_mode = pytest.mark.parametrize("mode", list(MODES))


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("eager")
def test_eager_values_and_gradients_are_the_references(
    mode: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    samples, rows, columns = shape
    check(mode, *latents(rows, columns, dtype), KEY, samples)


@each_mode
def test_compiled_values_and_gradients_are_the_references(
    mode: str, compilations: list[Any]
) -> None:
    check(mode, *latents(129, 19), KEY, 8)
    check(mode, *latents(7, 128), KEY, 3)
    # 128 columns are whole groups of four normals, which the usual call draws by itself.
    drawn = {formulas.drawn_formula} if mode == "rsample_kl/analytic" else set()
    others = {formulas.forward_formula, formulas.backward_formula}
    assert set(compilations) == others | drawn


@pytest.mark.parametrize("mode", ["rsample_kl/analytic", "rsample_kl/total-derivative"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("compilations")
def test_the_compiled_twin_serves_one_sample_and_all_dtypes(mode: str, dtype: torch.dtype) -> None:
    check(mode, *latents(7, 257, dtype), KEY, 1)
    check(mode, *latents(129, 20, dtype), KEY, 1)


@pytest.mark.parametrize("shape", [(1, 5003), (5003, 1), (1, 1)])
def test_a_single_row_or_column_is_compiled_as_others_are(
    shape: tuple[int, int], compilations: list[Any]
) -> None:
    check("rsample_kl/total-derivative", *latents(*shape), KEY, 1)
    assert set(compilations) == {formulas.forward_formula, formulas.backward_formula}


@pytest.mark.usefixtures("compilations")
def test_a_single_row_is_compiled_for_as_many_elements_as_threads_are_worth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inductor decides by the examples whether a loop uses threads."""
    examples: list[Tensor] = []
    compile_them = compiler.compiled_without_guards

    def seen(function: Any, *of: Tensor, **options: Any) -> Any:
        examples.extend(of)
        return compile_them(function, *of, **options)

    monkeypatch.setattr(compiler, "compiled_without_guards", seen)
    for shape in ((1, 2048), (1, 2046), (2048, 1)):
        COMPILED.kept.clear()
        examples.clear()
        check("rsample_kl/analytic", *latents(*shape), KEY, 1)
        sizes = [x.numel() for x in examples if x.numel() > 4]  # without keys and layouts
        assert min(sizes) >= 30_000


@pytest.mark.usefixtures("compilations")
def test_channels_that_are_apart_are_compiled_for_a_single_event_too() -> None:
    mu, logvar = torch.randn(1, 5, 40)[:, :, :20], torch.randn(1, 5, 20)
    terms = reference.kl_standard_normal(mu.reshape(5, 20), logvar.reshape(5, 20))
    channels = kl_standard_normal(mu, logvar, reduce="channels")
    assert_within("KL", channels[0], terms, KL_ERROR * terms)
    _, kl = rsample_kl(mu, logvar, KEY)
    assert_within("KL", kl[0], terms.sum(), KL_ERROR * terms.sum())


@pytest.mark.parametrize("kl", ["analytic", "total-derivative"])
@pytest.mark.usefixtures("compilations")
def test_a_row_alone_is_the_row_of_a_batch_bit_for_bit(kl: str) -> None:
    mu, logvar = latents(8, 2048)
    (whole, _), (alone, _) = (
        rsample_kl(mu[rows], logvar[rows], KEY, kl=kl, row_offset=rows.start)
        for rows in (slice(0, 8), slice(5, 6))
    )
    assert torch.equal(alone[:, 0], whole[:, 5])


@pytest.mark.usefixtures("compilations")
def test_the_usual_call_draws_the_samples_of_rsample_bit_for_bit() -> None:
    """One call of compiled code draws them for the former, a call of its own for the latter."""
    for rows, columns, samples in ((129, 20, 1), (3, 4, 5), (1, 128, 2)):
        mu, logvar = latents(rows, columns)
        z, _ = rsample_kl(mu, logvar, KEY, samples, row_offset=7, sample_offset=11)
        alone = rsample(mu, logvar, KEY, samples, row_offset=7, sample_offset=11)
        assert torch.equal(z, alone)


@pytest.mark.usefixtures("compilations")
def test_a_single_row_is_compiled_once_whatever_its_length_and_what_it_was_cut_from() -> None:
    COMPILED.kept.clear()
    for columns in (2000, 2001, 2002):
        for cut in (1, 2, 3):
            table = torch.linspace(-1, 1, 2 * cut * columns).view(2, cut * columns)
            mu, logvar = table[:1, :columns], table[1:, -columns:]
            wanted = reference.kl_standard_normal(mu, logvar)
            assert_within("KL", kl_standard_normal(mu, logvar), wanted, KL_ERROR * wanted)
    assert len(COMPILED.kept) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["rsample_kl/analytic", "kl_standard_normal_mc/total-derivative"])
@pytest.mark.usefixtures("eager")
def test_memory_layout_does_not_matter(layout: str, mode: str) -> None:
    check(mode, *latents(33, 20, layout=layout), KEY, 3)


@pytest.mark.usefixtures("compilations")
def test_memory_layout_does_not_matter_to_the_compiled_twin() -> None:
    for layout in ("chunk", "transposed", "one-column"):
        check("rsample_kl/analytic", *latents(33, 20, layout=layout), KEY, 3)


@pytest.mark.usefixtures("compilations")
def test_few_compilations_serve_all_layouts_and_callers() -> None:
    COMPILED.kept.clear()
    for layout in LAYOUTS:
        mu, logvar = latents(33, 20, layout=layout)
        check("kl_standard_normal", mu, logvar, KEY, 1)
        wanted = reference.kl_standard_normal(mu, logvar)
        for one, two in ((mu.detach(), logvar), (mu, logvar.detach())):
            assert_within("KL", kl_standard_normal(one, two), wanted, KL_ERROR * wanted)
    # Forward and backward, each for contiguous tensors, tensors with rows apart, and a logvar of
    # one column that is broadcast.
    assert len(COMPILED.kept) == 6


def test_gradients_reach_the_layer_whose_output_was_split() -> None:
    hidden = torch.randn((7, 40), generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = upstream_of(hidden[:, :20], 3)
    mu, logvar = hidden.chunk(2, 1)
    (grad,) = torch.autograd.grad(rsample_kl(mu, logvar, KEY, 3), hidden, tuple(upstream))
    mu, logvar = (half.detach().clone().requires_grad_() for half in (mu, logvar))
    separate = measured("rsample_kl/analytic", mu, logvar, KEY, 3, upstream)
    assert torch.equal(grad, torch.cat((separate.grad_mu, separate.grad_logvar), 1))


@each_mode
def test_offsets_address_rows_and_samples_of_the_whole(mode: str) -> None:
    mu, logvar = latents(7, 20)
    check(mode, mu, logvar, KEY, 3, row_offset=2**33, sample_offset=2**32 - 3)


def test_rows_and_samples_in_chunks_are_the_whole_bit_for_bit() -> None:
    mu, logvar = latents(9, 20)
    whole = rsample(mu, logvar, KEY, 5)
    rows = rsample(mu[4:], logvar[4:], KEY, 5, row_offset=4)
    samples = rsample(mu, logvar, KEY, 3, sample_offset=2)
    assert torch.equal(rows, whole[:, 4:])
    assert torch.equal(samples, whole[2:])


@pytest.mark.parametrize("route", ["eager", "compilations"])
class TestNearZero:
    """At the end of training the KL is small: its relative error is 1e-5 down to a KL of 1e-8."""

    def test_the_kl_and_its_gradient_keep_five_digits(
        self, route: str, request: pytest.FixtureRequest
    ) -> None:
        request.getfixturevalue(route)
        mu, logvar = small_kls()
        kls = reference.kl_standard_normal(mu, logvar)
        assert kls.min() < 1.1e-8
        check("kl_standard_normal", mu, logvar, KEY, 1)

    def test_each_logvars_kl_keeps_five_digits_on_all_its_range(
        self, route: str, request: pytest.FixtureRequest
    ) -> None:
        request.getfixturevalue(route)
        # From KL ≈ l²/4 = 1e-8 to the limits of exp, with many points around ½, where the formula
        # changes.
        size = torch.cat((torch.logspace(-3.7, 1.9, 4000), torch.linspace(0.49, 0.51, 2001)))
        logvar = torch.cat((size, -size))[:, None].expand(-1, 2).requires_grad_()
        mu = torch.zeros_like(logvar).requires_grad_()
        wanted = reference.kl_standard_normal(mu, logvar)
        kl = kl_standard_normal(mu, logvar)
        assert_within("KL", kl, wanted, KL_ERROR * wanted)
        (grad,) = torch.autograd.grad(kl.sum(), logvar)
        wanted = 0.5 * torch.expm1(logvar.detach().double())
        assert_within("gradient", grad, wanted, KL_ERROR * wanted.abs())


@each_mode
def test_float64_stays_float64(mode: str) -> None:
    mu, logvar = latents(5, 19, torch.float64)
    eps = normal(KEY, 4, 5, 19)
    upstream = upstream_of(mu, 4)
    actual = measured(mode, mu, logvar, KEY, 4, upstream)
    wanted = expected(mode, mu, logvar, eps, upstream)
    for value, want in zip(actual, wanted, strict=True):
        # eps holds the op's own numbers, so only float64 rounding errors remain.
        torch.testing.assert_close(value, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", [mode for mode in MODES if "sticking" not in mode])
def test_gradients_are_derivatives(mode: str) -> None:
    def outputs(mu: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for out in call(mode, mu, logvar, KEY, 3) if out is not None)

    assert torch.autograd.gradcheck(outputs, latents(3, 5, torch.float64))


class TestStickingTheLanding:
    def test_its_value_is_the_total_derivatives(self) -> None:
        mu, logvar = latents(7, 20)
        one, other = (kl_standard_normal_mc(mu, logvar, KEY, 4, e) for e in formulas.MONTE_CARLO)
        assert torch.equal(one, other)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_its_gradient_vanishes_exactly_where_q_is_p(self, dtype: torch.dtype) -> None:
        grads = {}
        for estimator in formulas.MONTE_CARLO:
            mu, logvar = (torch.zeros(7, 20, dtype=dtype, requires_grad=True) for _ in range(2))
            kl = kl_standard_normal_mc(mu, logvar, KEY, 4, estimator)
            grads[estimator] = torch.stack(torch.autograd.grad(kl.sum(), (mu, logvar)))
        assert not grads["sticking-the-landing"].any()
        assert grads["total-derivative"].abs().min() > 0

    def test_its_gradient_is_the_path_derivative(self) -> None:
        mu, logvar = latents(7, 20, torch.float64)
        eps, sigma = normal(KEY, 4, 7, 20), torch.exp(0.5 * logvar.detach())
        z = mu.detach() + sigma * eps
        # ∂/∂z of log q − log p at fixed q, times ∂z/∂mu = 1 and ∂z/∂logvar = ½σ·eps.
        by_z = -(z - mu.detach()) / sigma**2 + z
        kl = kl_standard_normal_mc(mu, logvar, KEY, 4, "sticking-the-landing")
        grads = torch.autograd.grad(kl.sum(), (mu, logvar))
        torch.testing.assert_close(grads[0], by_z.mean(0), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            grads[1], (by_z * 0.5 * sigma * eps).mean(0), rtol=1e-12, atol=1e-13
        )


@each_mode
@pytest.mark.parametrize("which", ["mu", "logvar"])
def test_a_nan_stays_in_its_row_and_is_not_lost(mode: str, which: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 3)
    clean = measured(mode, mu, logvar, KEY, 3, upstream)
    with torch.no_grad():
        (mu if which == "mu" else logvar)[2, 5] = torch.nan
    dirty = measured(mode, mu, logvar, KEY, 3, upstream)
    rest = [row for row in range(7) if row != 2]
    if dirty.z is not None and clean.z is not None:
        assert dirty.z[:, 2, 5].isnan().all()
        assert dirty.z.isnan().sum() == 3
        assert torch.equal(dirty.z[:, rest], clean.z[:, rest])
    if dirty.kl is not None and clean.kl is not None:
        assert dirty.kl[2].isnan()
        assert torch.equal(dirty.kl[rest], clean.kl[rest])
    if mode != "rsample" or which == "logvar":
        assert (dirty.grad_mu if which == "mu" else dirty.grad_logvar)[2, 5].isnan()
    assert torch.equal(dirty.grad_mu[rest], clean.grad_mu[rest])
    assert torch.equal(dirty.grad_logvar[rest], clean.grad_logvar[rest])


@pytest.mark.parametrize("mu_at", [0.0, torch.inf, -torch.inf])
@pytest.mark.parametrize("logvar_at", [0.0, torch.inf, -torch.inf])
def test_infinities_propagate_as_the_formulas_say(mu_at: float, logvar_at: float) -> None:
    mu, logvar = (torch.full((2, 3), x) for x in (mu_at, logvar_at))
    eps = normal(KEY, 2, 2, 3)
    z, kl = rsample_kl(mu, logvar, KEY, 2)
    wanted = reference.rsample(mu, logvar, eps), reference.kl_standard_normal(mu, logvar)
    for value, want in zip((z, kl), wanted, strict=True):
        torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("eager")
def test_the_kls_gradient_goes_to_minus_a_half_and_not_to_zero_or_nan() -> None:
    # ½(exp(l) − 1); as ½(l + (exp(l) − 1 − l)) it would be 0 at −1e8 and NaN at ±∞.
    logvar = torch.tensor([[-1e3, -1e8, -torch.inf, torch.inf]], requires_grad=True)
    kl_standard_normal(torch.zeros_like(logvar), logvar).sum().backward()
    assert logvar.grad is not None
    assert logvar.grad.tolist() == [[-0.5, -0.5, -0.5, torch.inf]]


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_give_empty_results_and_gradients(mode: str, dtype: torch.dtype) -> None:
    mu, logvar = latents(0, 20, dtype)
    empty = measured(mode, mu, logvar, KEY, 3, upstream_of(mu, 3))
    assert empty.z is None or (empty.z.shape, empty.z.dtype) == ((3, 0, 20), dtype)
    assert empty.kl is None or (empty.kl.shape, empty.kl.dtype) == ((0,), torch.float32)
    for grad in (empty.grad_mu, empty.grad_logvar):
        assert (grad.shape, grad.dtype) == ((0, 20), dtype)
