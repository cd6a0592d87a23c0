"""Tolerances of the checks before timing: an error just below passes, one just above fails.

Outputs are the float64 truth with one number moved by a known share of its tolerance, as the
docstrings of bench/timing/accuracy.py define it. The check must report that share as its error.
float64 itself is off by 1e-16 of the outputs, at most 1e-8 of a tolerance.
"""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from bench.timing.rows import Bench, Group
from bench.training.baselines import TextbookVAE
from bench.training.checks import check_first_step, check_loss, check_products
from bench.training.products import Job
from tests.bench.timing.fake_benchmark import FakeBenchmark
from vaez_kernels import noise_key, reference
from vaez_kernels.bernoulli.case import LikelihoodCase
from vaez_kernels.error_bounds import Check, worst
from vaez_kernels.latent.case import LatentCase
from vaez_kernels.linear_bernoulli.case import LastLayerCase
from vaez_kernels.mixture.case import MixtureCase

CPU = torch.device("cpu")
SHARES = (0.9, 1.1)  # of a tolerance: the first passes, the second fails
# By how much one number may be wrong, relative to its terms.
UNITS = {torch.float32: 1e-6, torch.bfloat16: 1 / 128}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(
    outputs: tuple[Tensor, ...], which: int, at: tuple[int, ...], by: Tensor | float
) -> tuple[Tensor, ...]:
    """The outputs, with one number of one of them moved."""
    found = [x.detach().double().clone() for x in outputs]
    found[which][at] += by
    return tuple(found)


class TestLatent:
    B, D = 2100, 6  # more than twice the rows that are checked

    @pytest.fixture(params=UNITS, ids=str)
    def case(self, request: pytest.FixtureRequest) -> LatentCase:
        mu, logvar = (
            drawn(self.B, self.D, seed=s).to(request.param).requires_grad_() for s in (1, 2)
        )
        upstream = drawn(1, self.B, self.D, seed=3), drawn(self.B, seed=4)
        return LatentCase(mu, logvar, noise_key(5, "train"), *upstream)

    def eps(self, case: LatentCase) -> Tensor:
        return reference.normal(case.noise, 1, self.B, self.D)[0]

    def truth(self, case: LatentCase, eps: Tensor) -> tuple[Tensor, ...]:
        """z, KL and the gradients by hand: the KL (B,), all others (B, D)."""
        m, v = case.mu.detach().double(), case.logvar.detach().double()
        sigma, g, k = torch.exp(v / 2), case.grad_z[0].double(), case.grad_kl.double()[:, None]
        kl = 0.5 * (m**2 + torch.exp(v) - 1 - v).sum(1)
        return (
            *(m + sigma * eps, kl, g + k * m),
            0.5 * sigma * eps * g + k * 0.5 * (torch.exp(v) - 1),
        )

    def allowed(self, case: LatentCase, eps: Tensor, ours: bool) -> list[Tensor | None]:
        m, v = case.mu.detach().double().abs(), case.logvar.detach().double()
        sigma, unit = torch.exp(v / 2), UNITS[case.mu.dtype]
        g, k = case.grad_z[0].double().abs(), case.grad_kl.double().abs()[:, None]
        size = eps.abs().clamp(min=1)
        kl = unit * math.sqrt(self.D) * 0.5 * (m**2 + sigma**2 + 1 + v.abs()).sum(1)
        of_mu = 4 * unit * (g + k * m + unit)
        of_logvar = 4 * unit * (0.5 * sigma * (g * size + k * (sigma + 1 / sigma + 1)) + unit)
        if not ours:  # its eps is known to the rounding of its z
            of_logvar = of_logvar + 0.25 * unit * g * (case.mu.detach() + sigma * eps).abs()
        of_z = unit * (1 + m + sigma * size) if ours else None  # a baseline draws its own eps
        return [of_z, kl, of_mu, of_logvar]

    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize("ours", [True, False])
    @pytest.mark.parametrize("row", [0, -1])
    def test_each_output_may_err_by_its_allowance(
        self, case: LatentCase, ours: bool, row: int, share: float
    ) -> None:
        eps = self.eps(case)
        outputs = self.truth(case, eps)
        for which, allowance in enumerate(self.allowed(case, eps, ours)):
            if allowance is None:
                continue
            at = (row,) if which == 1 else (row, 4)
            wrong = moved(outputs, which, at, share * allowance[at])
            check = case.check(wrong, ours)
            assert check.error == pytest.approx(share, rel=1e-6), which
            assert check.passed == (share < 1)

    @pytest.mark.parametrize("share", SHARES)
    def test_the_noise_of_a_baseline_may_be_five_standard_errors_off(
        self, case: LatentCase, share: float
    ) -> None:
        few = LatentCase(
            case.mu.detach()[:1000],
            case.logvar.detach()[:1000],
            case.noise,
            case.grad_z[:, :1000],
            case.grad_kl[:1000],
        )
        m, sigma = few.mu.double(), torch.exp(few.logvar.double() / 2)
        kl = 0.5 * (m**2 + sigma**2 - 1 - few.logvar.double()).sum(1)
        eps = drawn(1000, self.D, seed=6).double()
        eps = (eps - eps.mean()) / eps.std()
        for wrong in (
            eps + share * 5 / math.sqrt(eps.numel()),
            eps * math.sqrt(1 + share * 5 * math.sqrt(2 / eps.numel())),
        ):
            check = few.check((m + sigma * wrong, kl), ours=False)
            assert check.error == pytest.approx(share, rel=1e-6)
            assert check.passed == (share < 1)


class TestLikelihood:
    S, B, P = 2, 140, 50

    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize("ours", [True, False])
    @pytest.mark.parametrize("dtype", UNITS, ids=str)
    def test_each_output_may_err_by_its_allowance(
        self, dtype: torch.dtype, ours: bool, share: float
    ) -> None:
        logits = (3 * drawn(self.S, self.B, self.P, seed=1)).to(dtype)
        x = (drawn(self.B, self.P, seed=2) > 0).to(torch.uint8)
        case = LikelihoodCase(logits, x, drawn(self.S, self.B, seed=3))
        wide, y, grad = logits.double(), x.double(), case.grad.double()[..., None]
        truth = (y * wide - softplus(wide)).sum(2), grad * (y - torch.sigmoid(wide))
        unit = UNITS[dtype]
        # Our op computes and returns float32, whatever the dtype of the logits is.
        of_a_term = UNITS[torch.float32] if ours else unit
        size = (y * wide.abs() + softplus(wide)).sum(2)
        allowed = (
            (of_a_term + math.sqrt(self.P) * 2.0**-24) * size,
            4 * unit * (grad.abs() * (y + torch.sigmoid(wide)) + unit),
        )
        assert case.check(truth, ours).error < 1e-6
        for which, at in ((0, (1, 0)), (0, (0, -1)), (1, (1, 0, 7)), (1, (0, -1, 3))):
            check = case.check(moved(truth, which, at, share * allowed[which][at]), ours)
            assert check.error == pytest.approx(share, rel=1e-6)
            assert check.passed == (share < 1)


class TestMixture:
    @pytest.mark.parametrize("share", SHARES)
    def test_each_output_may_err_by_its_allowance(self, share: float) -> None:
        z, mu, logvar = drawn(20, 3, seed=1), drawn(15, 3, seed=2), drawn(15, 3, seed=3)
        case = MixtureCase(z, mu, logvar, drawn(20, seed=4))
        points, m, v = z.double(), mu.double(), logvar.double()
        difference = points[:, None] - m  # (M, N, D)
        slope = difference * torch.exp(-v)
        squares = (slope * difference).sum(2)
        log_density = -0.5 * (squares + (v + math.log(2 * math.pi)).sum(1))
        log_q = torch.logsumexp(log_density, 1) - math.log(15)
        weight = torch.softmax(log_density, 1)
        grad = case.grad.double()
        truth = log_q, -grad[:, None] * (weight[..., None] * slope).sum(1)
        sizes = 0.5 * (squares + v.abs().sum(1))  # of each component's terms
        size = (weight * sizes).sum(1)
        terms = (weight * (4 + sizes + size[:, None]))[..., None] * slope.abs()
        allowed = (
            1e-6 * (1 + size + log_q.abs()),
            1e-6 * (grad.abs()[:, None] * terms.sum(1) + 1e-6),
        )
        assert case.check(truth, ours=True).error < 1e-6
        for which, at in ((0, (0,)), (0, (-1,)), (1, (0, 2)), (1, (-1, 1))):
            check = case.check(moved(truth, which, at, share * allowed[which][at]), ours=True)
            assert check.error == pytest.approx(share, rel=1e-6)
            assert check.passed == (share < 1)


class TestLastLayer:
    S, B, H, P = 2, 3, 5, 40

    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize("dtype", UNITS, ids=str)
    def test_each_output_may_err_by_its_allowance(self, dtype: torch.dtype, share: float) -> None:
        hidden = drawn(self.S, self.B, self.H, seed=1).to(dtype)
        weight, bias = drawn(self.P, self.H, seed=2).to(dtype), drawn(self.P, seed=3)
        x = (drawn(self.B, self.P, seed=4) > 0).to(torch.uint8)
        case = LastLayerCase(hidden, weight, bias, x, drawn(self.S, self.B, seed=5))
        h, w, b, y = hidden.double(), weight.double(), bias.double(), x.double()
        g, unit = case.grad.double()[..., None], UNITS[dtype]
        logits = torch.einsum("sbh,ph->sbp", h, w) + b
        residual = g * (y - torch.sigmoid(logits))
        truth = (
            (y * logits - softplus(logits)).sum(2),
            torch.einsum("sbp,ph->sbh", residual, w),
            torch.einsum("sbp,sbh->ph", residual, h),
            residual.sum((0, 1)),
        )
        of_logits = unit * (torch.einsum("sbh,ph->sbp", h.abs(), w.abs()) + b.abs())
        parts = ((y * logits).abs() + softplus(logits)).sum(2)
        # The error of a residual: four roundings, a quarter of its logit's error, and one rounding
        # of the residual itself. Each product adds two more roundings.
        off = g.abs() * (4 * unit + of_logits / 4) + 3 * unit * residual.abs()
        allowed = (
            of_logits.sum(2) + (unit + math.sqrt(self.P) * 2.0**-24) * parts,
            torch.einsum("sbp,ph->sbh", off, w.abs()),
            torch.einsum("sbp,sbh->ph", off, h.abs()) + unit * truth[2].abs(),
            off.sum((0, 1)),
        )
        assert case.check(truth, ours=True).error < 1e-6
        for which, at in ((0, (1, 2)), (1, (0, 1, 3)), (2, (7, 2)), (3, (11,))):
            allowance = allowed[which][at] + unit * truth[which][at].abs() + 1e-9
            check = case.check(moved(truth, which, at, share * allowance), ours=True)
            assert check.error == pytest.approx(share, rel=1e-5), which
            assert check.passed == (share < 1)


def test_the_largest_error_counts_and_nan_is_the_largest_of_all() -> None:
    assert worst([0.5, 2.0, 0.1]) == 2.0
    assert math.isnan(worst([0.5, math.nan, 3.0]))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(8, 784) uint8; as many pixels are set as in digits."""
    return (drawn(8, 784, seed=7) > 1.1).to(torch.uint8)


class TestTraining:
    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize("name", ["elbo", "analytic elbo", "kl", "decoder"])
    def test_a_baselines_loss_may_err_by_1e_5_of_its_terms(
        self, name: str, share: float, images: Tensor
    ) -> None:
        vae = TextbookVAE("lyeoni").double()
        x = images.double()
        with torch.no_grad():
            q = vae.posterior(x)
            eps = drawn(8, 2, seed=1).double()
            z = q.loc + q.scale * eps
            ratio = 0.5 * (z**2 - eps**2) - torch.log(q.scale)
            closed = 0.5 * (q.loc**2 + q.scale**2 - 1) - torch.log(q.scale)
            logits = vae.decoder(z)
            distortion = (softplus(logits) - x * logits).sum(1)
        kl = (closed if name.startswith("analytic") else ratio).sum(1)
        losses = {"kl": kl, "decoder": distortion}
        loss = losses.get(name, kl + distortion)
        size = float(kl.abs().mean()) + 2 if name == "kl" else float(loss.mean())
        check = check_loss(lambda _: (loss + share * 1e-5 * size, z), vae, x, name)
        assert check.error == pytest.approx(share, rel=1e-6)
        assert check.passed == (share < 1)

    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize(("copies", "allowed"), [((), 1e-5), ((1,), 1e-3)])
    def test_an_engines_first_loss_may_err_by_its_precisions_share(
        self, copies: tuple[int, ...], allowed: float, share: float, images: Tensor
    ) -> None:
        """An engine with bfloat16 copies of its weights multiplies in bfloat16."""
        noise = noise_key(0, "train", 9)
        x, vae = images.double(), TextbookVAE("lyeoni").double()
        eps = reference.normal(noise, 1, 8, 2)[0]
        with torch.no_grad():
            q = vae.posterior(x)
            logits = vae.decoder(q.loc + q.scale * eps)
        kl = (0.5 * (q.loc**2 + q.scale**2 - 1) - torch.log(q.scale)).sum(1)
        loss = float((kl + (softplus(logits) - x * logits).sum(1)).mean())
        steps: list[int] = []
        engine: Any = SimpleNamespace(
            objective=SimpleNamespace(
                vae=SimpleNamespace(architecture=SimpleNamespace(latent=2)),
            ),
            batches=SimpleNamespace(images=images, order=None, rows=lambda i, _, __: i.float()),
            state=SimpleNamespace(noise=noise, copies=copies),
            step=lambda: steps.append(1),
            take_totals=lambda count: [0.25 * loss, (0.75 + share * allowed) * loss],
        )
        check = check_first_step(engine, "lyeoni", "elbo")
        assert steps == [1]
        assert check.error == pytest.approx(share, rel=1e-5)

    @pytest.mark.parametrize(
        ("dtype", "bits", "error"),
        [(torch.float32, 12, 0.5 / (1 + 2**-11)), (torch.bfloat16, 4, 1 / (1 + 2**-3 + 2**-8))],
        ids=["float32", "bfloat16"],
    )
    def test_a_product_is_held_to_its_dtypes_rounding(
        self, dtype: torch.dtype, bits: int, error: float
    ) -> None:
        # (1 + 2⁻ᵇ)² is 1 + 2⁻ᵇ⁺¹ + 2⁻²ᵇ. The last term is half a unit in the last place and is
        # rounded away. float32 may lose 2⁻²⁴ of the result and, in sums, 2⁻²⁴ of each term;
        # bfloat16 may lose 2⁻⁸ of the result. The other three elements of the product are exact.
        column = torch.tensor([[1 + 2.0**-bits], [1.0]], dtype=dtype)
        row = column.t()
        check = check_products([Job(column, row, lambda: column @ row)])
        assert check.error == pytest.approx(error, rel=1e-4)


class Unclocked(Bench):
    """Builds and checks a group without timing it; every row is said to take 1 s."""

    def measured(self, key: object, make: Any, budget: float) -> Group:
        group: Group = make()
        group.seconds = {name: [1.0] for name in group.rivals}
        self.checks = {name: rival.check for name, rival in group.rivals.items()}
        return group

    checks: dict[str, Check]


class TestRows:
    @pytest.fixture(autouse=True)
    def plugin(self, request: pytest.FixtureRequest) -> None:
        """The suite's files use a mark that only pytest-benchmark defines."""
        if not request.config.pluginmanager.hasplugin("benchmark"):
            pytest.skip("needs pytest-benchmark")

    @pytest.mark.parametrize("share", SHARES)
    def test_numbers_of_the_stream_may_err_by_1e_6(
        self, share: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def off(noise: Tensor, *shape: int) -> Tensor:
            found = reference.normal(noise, *shape)
            found[0, -1, -1] += share * 1e-6 * found[0, -1, -1].abs().clamp(min=1)
            return found

        bench_noise = importlib.import_module("bench.ops.bench_noise")
        monkeypatch.setattr(bench_noise, "normal", off)
        bench = Unclocked(CPU, True, 1e9)
        bench_noise.test_noise(FakeBenchmark(), bench, 1 << 14, "torch.randn")
        assert bench.checks["normal"].error == pytest.approx(share, rel=1e-6)

    @pytest.mark.parametrize("share", SHARES)
    def test_a_likelihood_from_samples_may_err_by_its_precisions_nats(
        self, share: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        allowed = {"float32": 1e-3, "bfloat16": 0.25}
        bench_importance = importlib.import_module("bench.ops.bench_importance")
        exact = bench_importance.importance_log_likelihood

        def off(*args: Any) -> Tensor:
            *rest, precision = args
            found = exact(*rest, "float32").double()
            found[0] += share * allowed[precision]
            return found

        monkeypatch.setattr(bench_importance, "importance_log_likelihood", off)
        monkeypatch.setattr(bench_importance, "has_cpu_compiler", lambda: False)
        monkeypatch.setattr(bench_importance, "has_fast_bfloat16", lambda _: True)
        bench = Unclocked(CPU, True, 1e9)
        bench_importance.test_importance(FakeBenchmark(), bench, "eager")
        # The error of float32 itself is 1e-4 nats (measured).
        assert bench.checks["float32"].error == pytest.approx(share, abs=0.1)
        assert bench.checks["bfloat16"].error == pytest.approx(share, abs=0.01)
