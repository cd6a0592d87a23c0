"""The Monte Carlo KL as an estimator: means and variances of its value and gradients.

With sigma = exp(logvar/2) and z = mu + sigma·eps, a dimension's sample of log q − log p is
½(z² − eps² − logvar), so the value and every gradient are quadratic in eps. `laws` writes each as
mean + b·eps + c·(eps² − 1), whose variance is b² + 2c² and fourth central moment
3b⁴ + 60b²c² + 60c⁴. Each row draws its own noise: with one column, a row's gradient is one draw.

Limits are five standard errors, exceeded once in 1.7 million tries (two-sided), plus the float32
error of the op (`helpers.bounds`, averaged). A sample variance of eps² has a longer tail than a
normal and exceeds the limit three times as often. This file makes 280 comparisons, so with new keys
one of them would fail once in 3,000 tries. The keys are fixed, so a test that passes once always
passes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.kernels.helpers import Upstream, bounds
from vaez_kernels import kl_standard_normal, kl_standard_normal_mc, noise_key, normal

ESTIMATORS = ("total-derivative", "sticking-the-landing")
NAMES = ("kl", "grad_mu", "grad_logvar")
STEPS, ROWS = 4, 1 << 16
STANDARD_ERRORS = 5.0
# q equal to p, one parameter away from it, as during training, and far away on every side.
POINTS = [
    (0.0, 0.0),
    (0.0, 1.5),
    (-2.0, 0.0),
    (0.03, -0.02),
    (1.0, -2.0 * math.log(2.0)),
    (-0.7, -6.0),
    (-20.0, 4.0),
    (100.0, -3.0),
]
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


class Law(NamedTuple):
    """mean + b·eps + c·(eps² − 1), averaged over S samples."""

    mean: float
    b: float
    c: float

    def variance(self, samples: int) -> float:
        return (self.b**2 + 2 * self.c**2) / samples

    def variance_of_the_variance(self, samples: int, draws: int) -> float:
        """The variance of the sample variance of `draws` draws, to leading order."""
        fourth = 3 * self.b**4 + 60 * self.b**2 * self.c**2 + 60 * self.c**4
        once = self.b**2 + 2 * self.c**2
        averaged = (fourth + 3 * (samples - 1) * once**2) / samples**3
        return (averaged - self.variance(samples) ** 2) / draws


def laws(estimator: str, mu: float, logvar: float) -> dict[str, Law]:
    s = math.exp(0.5 * logvar)
    # The mean of each gradient is that of the analytic KL. The rest follows from the module's
    # formula. ∂/∂mu is z, or z − eps/sigma for the path derivative alone. ∂/∂logvar is half of that
    # times sigma·eps, minus ½ if the score term is included.
    path = s if estimator == "total-derivative" else s - 1.0 / s
    return {
        "kl": Law(0.5 * (mu**2 + math.expm1(logvar) - logvar), mu * s, 0.5 * (s**2 - 1.0)),
        "grad_mu": Law(mu, path, 0.0),
        "grad_logvar": Law(0.5 * math.expm1(logvar), 0.5 * mu * s, 0.5 * s * path),
    }


def draws(
    estimator: str, mu: float, logvar: float, samples: int, rows: int = ROWS
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Independent draws of the value and both gradients, and how far rounding may shift means."""
    drawn: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    rounding = dict.fromkeys(NAMES, 0.0)
    for step in range(STEPS):
        key = noise_key(29, "evaluate", step)
        mus, logvars = (torch.full((rows, 1), x, requires_grad=True) for x in (mu, logvar))
        kl = kl_standard_normal_mc(mus, logvars, key, samples, estimator)
        grads = torch.autograd.grad(kl.sum(), (mus, logvars))
        upstream = Upstream(torch.empty(0), torch.ones(rows))
        limits = bounds(
            f"kl_standard_normal_mc/{estimator}",
            mus,
            logvars,
            normal(key, samples, rows, 1),
            upstream,
        )
        for name, value in zip(NAMES, (kl.detach(), *grads), strict=True):
            drawn[name].append(value.flatten().double())
            rounding[name] += getattr(limits, name).mean().item() / STEPS
    return {name: torch.cat(values) for name, values in drawn.items()}, rounding


@each_estimator
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("mu", "logvar"), POINTS)
def test_value_and_gradients_are_right_on_average(
    estimator: str, mu: float, logvar: float, samples: int
) -> None:
    drawn, rounding = draws(estimator, mu, logvar, samples)
    for name, law in laws(estimator, mu, logvar).items():
        mean, deviation = drawn[name].mean().item(), drawn[name].std().item()
        limit = STANDARD_ERRORS * deviation / math.sqrt(len(drawn[name])) + rounding[name]
        assert abs(mean - law.mean) <= limit, f"{name}: {mean}, wanted {law.mean} within {limit}"


@each_estimator
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("mu", "logvar"), POINTS)
def test_variances_are_what_the_formulas_give_and_samples_divide_them(
    estimator: str, mu: float, logvar: float, samples: int
) -> None:
    drawn, rounding = draws(estimator, mu, logvar, samples)
    for name, law in laws(estimator, mu, logvar).items():
        variance, wanted = drawn[name].var().item(), law.variance(samples)
        error = law.variance_of_the_variance(samples, len(drawn[name]))
        # A rounding of r adds at most r² to a variance, and 2r standard deviations.
        noise = rounding[name] * (2 * math.sqrt(wanted) + rounding[name])
        limit = STANDARD_ERRORS * math.sqrt(error) + noise
        assert abs(variance - wanted) <= limit, f"{name}: {variance}, wanted {wanted}±{limit}"


@each_estimator
def test_a_rows_estimate_is_right_on_average_whatever_its_dimensions_are(estimator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn((2, 1, 20), generator=generator)
    mus, logvars = (x.expand(ROWS, -1).requires_grad_() for x in (mu, logvar))
    kl = kl_standard_normal_mc(mus, logvars, noise_key(31, "evaluate"), 2, estimator)
    grads = torch.autograd.grad(kl.sum(), (mus, logvars))
    wanted = kl_standard_normal(mu, logvar).double(), mu[0], 0.5 * torch.expm1(logvar[0])
    for name, value, want in zip(NAMES, (kl.detach()[:, None], *grads), wanted, strict=True):
        wide = value.double()
        # Rounding errors, 1e-6 of terms below 20, are negligible beside this.
        limit = STANDARD_ERRORS * wide.std(0) / math.sqrt(ROWS)
        assert ((wide.mean(0) - want).abs() <= limit).all(), name


class TestWhereTheGradientsVary:
    """The exact variances behind the choice between the two estimators, with one sample."""

    @staticmethod
    def assert_variance(drawn: Tensor, wanted: float, law: Law, scale: float = 1.0) -> None:
        error = scale**2 * math.sqrt(law.variance_of_the_variance(1, len(drawn)))
        variance = (scale * drawn).var().item()
        assert abs(variance - wanted) <= STANDARD_ERRORS * error, f"{variance}, wanted {wanted}"

    def test_where_q_is_p_sticking_the_landing_does_not_vary_at_all(self) -> None:
        drawn, _ = draws("sticking-the-landing", 0.0, 0.0, 1)
        assert not drawn["grad_mu"].any()
        assert not drawn["grad_logvar"].any()

    def test_where_q_is_p_the_total_derivative_varies_by_1_in_mu_and_2_in_sigma(self) -> None:
        drawn, _ = draws("total-derivative", 0.0, 0.0, 1)
        law = laws("total-derivative", 0.0, 0.0)
        self.assert_variance(drawn["grad_mu"], 1.0, law["grad_mu"])
        self.assert_variance(drawn["grad_logvar"], 0.5, law["grad_logvar"])
        # ∂/∂sigma = (2/sigma)·∂/∂logvar.
        self.assert_variance(drawn["grad_logvar"], 2.0, law["grad_logvar"], scale=2.0)

    @pytest.mark.parametrize(
        ("estimator", "in_mu", "in_sigma"),
        [("total-derivative", 0.25, 1.5), ("sticking-the-landing", 2.25, 5.5)],
    )
    def test_away_from_p_sticking_the_landing_varies_more(
        self, estimator: str, in_mu: float, in_sigma: float
    ) -> None:
        # At mu = 1, sigma = ½ the variances are sigma² and (sigma − 1/sigma)² in mu, and 1 + 2·the
        # same in sigma.
        logvar = 2.0 * math.log(0.5)
        drawn, _ = draws(estimator, 1.0, logvar, 1)
        law = laws(estimator, 1.0, logvar)
        self.assert_variance(drawn["grad_mu"], in_mu, law["grad_mu"])
        self.assert_variance(drawn["grad_logvar"], in_sigma, law["grad_logvar"], scale=4.0)

    @each_estimator
    def test_where_q_is_p_the_value_does_not_vary_either(self, estimator: str) -> None:
        drawn, _ = draws(estimator, 0.0, 0.0, 1)
        assert not drawn["kl"].any()
