"""Each claim is judged by its interval, never by its mean alone, and at the right limits.

Every case gives the mean and the half-width of a 95 % t-interval over three seeds, and the verdict.
For means on one side of a limit there are intervals that cross it and intervals that do not.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from scipy.special import polygamma

from tests.study import fake_study
from vaez_fast.study.verdicts import CONFIRMED, REFUTED, UNCLEAR, Verdict, verdicts

Results = dict[str, Any]

# What the arms of a seed share. It is so large that an unpaired interval would find no difference.
SHARED = (0.0, 40.0, -16.0)
# Student's table, two degrees of freedom, 97.5 %.
STUDENT = 4.302652729911275

CURRENT, ANALYTIC = "elbo/total-derivative/joint", "elbo/analytic/joint"
SEPARATE, SIMULTANEOUS = "kl/total-derivative/separate", "kl/total-derivative/simultaneous"
KL_ALONE = "kl/analytic/separate"


def around(mean: float, half: float) -> list[float]:
    """Three values whose mean and 95 % half-width are these."""
    step = half * math.sqrt(3) / STUDENT  # their standard deviation
    return [mean - step, mean, mean + step]


def put(results: Results, arm: str, name: str, values: list[float]) -> None:
    """Set the value of each seed's run of `arm`; `name` is a dotted path."""
    runs = [run for run in results["runs"] if run["arm"] == arm]
    *way, last = name.split(".")
    for run, value in zip(runs, values, strict=True):
        place = run
        for key in way:
            place = place[key]
        place[last] = value


def apart(
    first: tuple[str, str], second: tuple[str, str], mean: float, half: float, scale: float = 1.0
) -> Results:
    """A study in which first − second, each an (arm, name), has this interval, paired by seed."""
    results = copy.deepcopy(fake_study.results())
    shared = [scale * (100 + s) for s in SHARED]
    put(results, *second, shared)
    put(results, *first, [s + d for s, d in zip(shared, around(mean, half), strict=True)])
    return results


def found(results: Results, claim: str, theory: Results = fake_study.THEORY) -> Verdict:
    (verdict,) = (v for v in verdicts(results, theory) if claim in v.claim)
    return verdict


# (mean, half-width, sign): the interval is below zero (-1), above zero (1), or neither (0).
SIGNS = [
    (-1.0, 0.9, -1),
    (-1.0, 1.1, 0),
    (0.0, 0.0, 0),
    (1.0, 1.1, 0),
    (1.0, 0.9, 1),
]


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        (around(0.05, 0.04), CONFIRMED),
        (around(0.05, 0.06), UNCLEAR),
        (around(0.15, 0.04), UNCLEAR),
        ([0.125] * 3, UNCLEAR),
        ([0.0] * 3, CONFIRMED),
    ],
)
def test_the_minimum_is_reached_where_the_rates_interval_ends_below_a_tenth(
    rates: list[float], wanted: str
) -> None:
    results = fake_study.results()
    put(results, KL_ALONE, "test.rate", rates)
    assert found(results, "only minimum").verdict == wanted


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("derivatives", "zeros_of_F", [0.001]),
        ("derivatives", "zeros_of_F", [0.0, 2.0]),
        ("derivatives", "zeros_of_G", [1.001]),
        ("derivatives", "zeros_of_G", [0.5, 1.0]),
        ("spiral", "flow_eigenvalues", [[-2.0, 0.0], [1.0, 0.0]]),
        ("spiral", "flow_eigenvalues", [[-2.0, 0.0], [0.0, 0.0]]),
        ("spiral", "flow_eigenvalues", [[-1.0, 0.5], [-1.0, -0.5]]),
    ],
)
def test_another_zero_or_a_flow_that_does_not_decay_refutes_the_minimum(
    part: str, name: str, value: list[Any]
) -> None:
    theory = fake_study.THEORY | {part: fake_study.THEORY[part] | {name: value}}
    assert found(fake_study.results(), "only minimum", theory).verdict == REFUTED


@pytest.mark.parametrize(("mean", "half", "sign"), SIGNS)
def test_the_whole_elbo_has_another_optimum_where_it_gains(
    mean: float, half: float, sign: int
) -> None:
    results = apart((ANALYTIC, "test.elbo"), (KL_ALONE, "test.elbo"), mean, half)
    wanted = {-1: CONFIRMED, 0: UNCLEAR, 1: REFUTED}[sign]
    assert found(results, "whole ELBO").verdict == wanted


@pytest.mark.parametrize(
    ("mean", "half", "wanted"),
    [
        (0.05, 0.04, CONFIRMED),
        (0.05, 0.06, UNCLEAR),
        (0.15, 0.06, UNCLEAR),
        (0.15, 0.04, REFUTED),
    ],
)
def test_a_diagonal_covariance_suffices_for_the_kl_without_total_correlation(
    mean: float, half: float, wanted: str
) -> None:
    results = fake_study.results()
    put(results, KL_ALONE, "latents.surgery.total_correlation.value", around(mean, half))
    assert found(results, "suffices for the KL alone").verdict == wanted


@pytest.mark.parametrize(
    ("mean", "half", "wanted"),
    [
        # The diagonal may be worse by the distance of real images, which is 0.3 here.
        (-1.0, 0.9, REFUTED),
        (-1.0, 1.1, UNCLEAR),
        (-0.2, 0.1, REFUTED),
        (-0.1, 0.25, UNCLEAR),
        (-0.1, 0.15, CONFIRMED),
        (0.5, 0.9, UNCLEAR),
        (0.5, 0.7, CONFIRMED),
        (0.0, 0.0, CONFIRMED),
    ],
)
def test_a_diagonal_covariance_suffices_for_the_elbo_up_to_the_distance_of_real_images(
    mean: float, half: float, wanted: str
) -> None:
    full, diagonal = ((ANALYTIC, f"images.{n}.frechet") for n in ("full-covariance", "diagonal"))
    results = apart(full, diagonal, mean, half)
    results["beside"]["images"]["ceiling"]["frechet"] = 0.01
    assert results["beside"]["images"]["floor"]["frechet"] == 0.3
    assert found(results, "suffices for the ELBO").verdict == wanted


@pytest.mark.parametrize(
    ("of_values", "of_gradients", "wanted"),
    [
        (3.9, 1.0, CONFIRMED),
        (1.0, 3.9, CONFIRMED),
        (4.0, 1.0, REFUTED),
        (4.1, 1.0, REFUTED),
        (1.0, 4.1, REFUTED),
    ],
)
def test_the_monte_carlo_kl_agrees_up_to_a_z_score_of_four(
    of_values: float, of_gradients: float, wanted: str
) -> None:
    theory = fake_study.THEORY | {
        "monte_carlo_kl": {"points": 16, "largest_z": of_values},
        "estimators": {"largest_z_of_mean": of_gradients},
    }
    answer = found(fake_study.results(), "Monte Carlo KL agrees", theory)
    assert answer.verdict == wanted
    assert f"largest z-score {max(of_values, of_gradients):.2f}" in answer.measured


@pytest.mark.parametrize(("mean", "half", "sign"), SIGNS)
def test_encoders_alone_are_closer_where_the_interval_is_below_zero(
    mean: float, half: float, sign: int
) -> None:
    name = "latents.sample_kl"
    results = apart((SEPARATE, name), (CURRENT, name), mean, half)
    wanted = {-1: CONFIRMED, 0: UNCLEAR, 1: REFUTED}[sign]
    assert found(results, "than the ELBO does").verdict == wanted


@pytest.mark.parametrize(
    ("mean", "half", "wanted"),
    [
        # in standard deviations of the sample KL of exact normals
        (-1.5, 0.4, CONFIRMED),
        (-1.5, 0.6, UNCLEAR),
        (-0.5, 0.6, UNCLEAR),
        (-0.5, 0.4, REFUTED),
        (0.5, 1.6, UNCLEAR),
        (0.5, 1.4, REFUTED),
    ],
)
def test_closer_than_randn_means_by_more_than_samples_differ(
    mean: float, half: float, wanted: str
) -> None:
    n, latents = 10_000, 128
    # The variance of ½(m² + v − 1 − ln v) with m ~ N(0, 1/n) and n·v ~ χ² of n − 1 degrees of
    # freedom; see vaez_fast/theory/sampling.py.
    of_mean, of_variance = 2 / n**2, 2 * (n - 1) / n**2
    variance = of_mean + of_variance + float(polygamma(1, (n - 1) / 2)) - 4 / n
    spread = math.sqrt(latents * variance) / 2
    name = "latents.sample_kl"
    results = apart((SEPARATE, name), ("randn", name), mean * spread, half * spread, spread)
    assert (results["beside"]["n"], results["beside"]["latent"]) == (n, latents)
    assert found(results, "than torch.randn").verdict == wanted


@pytest.mark.parametrize(
    ("mean", "half", "wanted"),
    [
        (5.0, 4.9, CONFIRMED),
        (10.0, 0.0, CONFIRMED),
        (1.0, 2.0, UNCLEAR),
        (9.0, 2.0, UNCLEAR),
        (12.0, 2.1, UNCLEAR),
        (12.0, 1.9, REFUTED),
        (0.0, 0.0, UNCLEAR),
        (-1.0, 1.1, UNCLEAR),
        (-1.0, 0.9, REFUTED),
    ],
)
def test_a_slight_gain_is_above_zero_and_up_to_ten_nats(
    mean: float, half: float, wanted: str
) -> None:
    name = "test.distortion"  # higher is worse; the current method is the second
    answer = found(apart((SEPARATE, name), (CURRENT, name), mean, half), "slightly better")
    assert answer.verdict == wanted
    assert (answer.why == "It is worse.") == (wanted == REFUTED and mean < 0)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("mean", "half", "wanted"),
    [
        (0.3, 0.6, CONFIRMED),
        (0.3, 0.8, UNCLEAR),
        (1.5, 0.6, UNCLEAR),
        (1.5, 0.4, REFUTED),
        (1.0, 0.0, UNCLEAR),
    ],
)
def test_simultaneous_training_equals_separate_up_to_a_nat_of_score(
    mean: float, half: float, wanted: str, sign: int
) -> None:
    name = "test.distortion"
    results = apart((SIMULTANEOUS, name), (SEPARATE, name), sign * mean, half)
    answer = found(results, "Simultaneous")
    assert answer.verdict == wanted
    assert "equal to the last bit" in answer.measured
    assert f"scores {-sign * mean:+.3f} ± {half:.3f} nats apart" in answer.measured


@pytest.mark.parametrize("name", ["sample_kl", "kl_per_dimension"])
def test_encoders_that_differ_in_one_bit_of_one_seed_are_not_the_same(name: str) -> None:
    results = copy.deepcopy(fake_study.results())
    last = [run for run in results["runs"] if run["arm"] == SIMULTANEOUS][-1]["latents"]
    if name == "sample_kl":
        last[name] = math.nextafter(last[name], 1.0)
    else:
        last[name][-1] = 5e-324
    answer = found(results, "Simultaneous")
    assert answer.verdict == REFUTED
    assert "test split differs" in answer.measured


@pytest.mark.parametrize(("mean", "half", "sign"), SIGNS)
def test_the_best_images_are_those_of_the_smaller_distance(
    mean: float, half: float, sign: int
) -> None:
    mixture, standard = ((ANALYTIC, f"images.{n}.frechet") for n in ("mixture", "standard-normal"))
    wanted = {-1: CONFIRMED, 0: UNCLEAR, 1: REFUTED}[sign]
    assert found(apart(mixture, standard, mean, half), "best images").verdict == wanted


def test_what_was_measured_is_told_with_its_sign_and_its_pairing() -> None:
    results = copy.deepcopy(fake_study.results())
    numbers = [
        (KL_ALONE, "test.rate", around(0.05, 0.04), "rate of 0.05000 ± 0.04000 nats", "minimum"),
        (ANALYTIC, "test.rate", around(21, 2), "rate of 21.00 ± 2.00 nats", "whole ELBO"),
        (
            KL_ALONE, "latents.surgery.total_correlation.value", around(0.06, 0.01),
            "total correlation of q(z) 0.0600 ± 0.0100 nats", "KL alone",
        ),
        (
            ANALYTIC, "latents.moments.largest_abs_correlation", around(0.7, 0.2),
            "of two latents over images 0.700 ± 0.200;", "suffices for the ELBO",
        ),
    ]  # fmt: skip
    for arm, name, values, text, claim in numbers:
        put(results, arm, name, values)
        assert text in found(results, claim).measured
    for first, second, name, claim, text in (
        (ANALYTIC, KL_ALONE, "test.elbo", "whole ELBO", "an ELBO 3.00 ± 1.00 nats above"),
        (CURRENT, ANALYTIC, "test.log_px", "Monte Carlo", "log p(x) differs by 3.00 ± 1.00 nats"),
        (SEPARATE, CURRENT, "latents.sample_kl", "than the ELBO", "difference 3.0000 ± 1.0000"),
        (SEPARATE, "randn", "latents.sample_kl", "torch.randn", "eps 3.00000 ± 1.00000 nats"),
        (SEPARATE, CURRENT, "test.distortion", "slightly", "is 3.00 ± 1.00 nats an image above"),
    ):
        assert text in found(apart((first, name), (second, name), 3.0, 1.0), claim).measured
    for arm, claim in ((KL_ALONE, "KL alone"), (ANALYTIC, "suffices for the ELBO")):
        full, diagonal = ((arm, f"images.{n}.frechet") for n in ("full-covariance", "diagonal"))
        assert "of images by 3.00 ± 1.00" in found(apart(full, diagonal, 3.0, 1.0), claim).measured
