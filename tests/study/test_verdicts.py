"""Each claim is judged by its frozen rule: by a test at the rule's limits, after Holm's correction.

The p-values are compared with scipy's t-tests and with Holm's procedure written out here.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from scipy.special import polygamma

from tests.study import fake_study
from vaez_fast.config import TrainConfig
from vaez_fast.study import rules as frozen
from vaez_fast.study.config import StudyConfig
from vaez_fast.study.evidence import evidence
from vaez_fast.study.readings import QUANTITIES
from vaez_fast.study.rules import Rule, rules
from vaez_fast.study.verdicts import CONFIRMED, REFUTED, UNCLEAR, Verdict, verdicts

Results = dict[str, Any]

RULES = {rule.name: rule for rule in rules()}
OF_SEEDS = [rule for rule in rules() if rule.test == "seeds"]
SEPARATE, SIMULTANEOUS = "kl/total-derivative/separate", "kl/total-derivative/simultaneous"
ANALYTIC = "elbo/analytic/joint"
# What the arms of a seed share. It is so large that an unpaired test would find no difference.
SHARED = (0.0, 40.0, -16.0)


def path(name: str) -> Callable[[Results, float], None]:
    *way, last = name.split(".")

    def put(run: Results, value: float) -> None:
        place = run
        for key in way:
            place = place[key]
        place[last] = value

    return put


def put_bound(name: str, below: str | None) -> Callable[[Results, float], None]:
    """Sets a lower bound to a value above another one."""

    def put(run: Results, value: float) -> None:
        law = run["latents"]["law"]
        base = law["lower"][below]["value"] if below else 0.0
        place = law["kl_lower"] if name == "kl_lower" else law["lower"][name]
        place["value"] = base + value

    return put


def put_gap(run: Results, value: float) -> None:
    images = run["images"]
    images["standard-normal"]["frechet"], images["held-out-posterior"]["frechet"] = 5.0, 1.0
    images["mixture"]["frechet"] = 5.0 - 4.0 * value / 100


# How a record is made to have a quantity.
PUT: dict[str, Callable[[Results, float], None]] = {
    "sample_kl": path("latents.sample_kl"),
    "rate": path("test.rate"),
    "distortion": path("test.distortion"),
    "elbo": path("test.elbo"),
    "log_px": path("log_px.value"),
    "kl_lower": path("latents.law.kl_lower.value"),
    "kl_upper": path("latents.law.kl_upper.value"),
    "covariance_gain": put_bound("full-covariance", "diagonal"),
    "shape_gain": put_bound("kl_lower", "full-covariance"),
    "gap_closed": put_gap,
    "frechet/mixture": lambda run, value: path("frechet")(run["images"]["mixture"], value),
    "frechet/standard-normal": lambda run, value: path("frechet")(
        run["images"]["standard-normal"], value
    ),
}


def with_statistic(rule: Rule, statistic: list[float]) -> Results:
    """A study whose seeds have these values of a rule's statistic."""
    results = copy.deepcopy(fake_study.results())
    paired = bool(rule.minus or rule.minus_quantity)
    unit = spread_of_exact_normals(results) if rule.unit == "null-spread" else 1.0
    shared = [unit * (100 + s) if paired else 0.0 for s in SHARED]
    for arm, quantity, values in (
        (rule.minus or rule.arm, rule.minus_quantity or rule.quantity, shared),
        (
            rule.arm,
            rule.quantity,
            [s + unit * value for s, value in zip(shared, statistic, strict=True)],
        ),
    ):
        runs = [run for run in results["runs"] if run["arm"] == arm]
        for run, value in zip(runs, values, strict=True):
            PUT[quantity](run, value)
    return results


def spread_of_exact_normals(results: Results) -> float:
    # The variance of ½(m² + v − 1 − ln v) with m ~ N(0, 1/n) and n·v ~ χ² of n − 1 degrees of
    # freedom; see vaez_fast/theory/sampling.py.
    n, latents = results["beside"]["n"], results["beside"]["latent"]
    trigamma = float(polygamma(1, (n - 1) / 2))
    return math.sqrt(latents * (2 / n**2 + 2 * (n - 1) / n**2 + trigamma - 4 / n)) / 2


def found(results: Results, name: str, theory: Results = fake_study.THEORY) -> Verdict:
    (verdict,) = (v for v in verdicts(results, theory) if v.name == name)
    return verdict


def around(mean: float, step: float) -> list[float]:
    return [mean - step, mean, mean + step]


def test_every_rule_names_arms_and_quantities_that_the_study_has() -> None:
    arms = {arm.arm for arm in StudyConfig(TrainConfig(), 2).arms()}
    assert len(RULES) == len(rules()) >= 13
    for rule in OF_SEEDS:
        assert {rule.arm, rule.minus or rule.arm} <= arms
        assert {rule.quantity, rule.minus_quantity or rule.quantity} <= set(QUANTITIES) == set(PUT)
        assert "{}" in rule.measured
        assert rule.claim
        assert rule.margin


def test_the_rules_are_named_by_the_hash_of_their_file() -> None:
    content = Path(frozen.FILE).read_bytes()
    assert frozen.sha256() == hashlib.sha256(content).hexdigest()


def test_a_rule_without_a_range_is_refused() -> None:
    words = dict.fromkeys(("name", "claim", "margin", "measured", "confirmed", "refuted"), "x")
    ranges: list[dict[str, Any]] = [{}, {"low": 1.0, "high": 1.0}, {"low": 2.0, "high": 1.0}]
    for limits in ranges:
        with pytest.raises(ValueError, match="low must be below high"):
            Rule(**words | limits)
    unknown: dict[str, Any] = words | {"high": 1.0, "quantity": "taste"}
    with pytest.raises(ValueError, match="unknown test or quantity"):
        evidence(Rule(**unknown), fake_study.results(), {})


def p_values(statistic: list[float], low: float, high: float) -> tuple[float, float]:
    """scipy's p-values of "outside the range" and of "inside" as nulls."""
    above = [
        stats.ttest_1samp(statistic, end, alternative=side).pvalue
        for end, side in ((low, "greater"), (high, "less"))
        if math.isfinite(end)
    ]
    beyond = [
        stats.ttest_1samp(statistic, end, alternative=side).pvalue
        for end, side in ((low, "less"), (high, "greater"))
        if math.isfinite(end)
    ]
    return max(above), min(1.0, len(beyond) * min(beyond))


@pytest.mark.parametrize("rule", OF_SEEDS, ids=lambda rule: rule.name)
def test_the_evidence_is_students_test_at_the_rules_limits(rule: Rule) -> None:
    ends = [end for end in (rule.low, rule.high) if math.isfinite(end)]
    for end in ends:
        for mean in (end - 0.04, end, end + 0.04):
            statistic = around(mean, 0.05)
            said = evidence(rule, with_statistic(rule, statistic), fake_study.THEORY)
            # The statistic is a difference of numbers near 100 and rounds to 1e-14.
            assert (said.inside_p, said.outside_p) == pytest.approx(
                p_values(statistic, rule.low, rule.high), rel=1e-6
            )


@pytest.mark.parametrize("rule", OF_SEEDS, ids=lambda rule: rule.name)
def test_a_claim_is_confirmed_inside_its_range_refuted_outside_and_unclear_between(
    rule: Rule,
) -> None:
    ends = [(end, sign) for end, sign in ((rule.low, 1), (rule.high, -1)) if math.isfinite(end)]
    for end, inwards in ends:
        for way, step, wanted in (
            (inwards, 1e-6, CONFIRMED),
            (-inwards, 1e-6, REFUTED),
            (inwards, 1.0, UNCLEAR),
            (-inwards, 1.0, UNCLEAR),
        ):
            results = with_statistic(rule, around(end + 0.09 * way, step))
            verdict = found(results, rule.name)
            assert verdict.verdict == wanted
            assert (
                verdict.why
                == {
                    CONFIRMED: rule.confirmed,
                    REFUTED: rule.refuted_below
                    if inwards > 0 and rule.refuted_below
                    else rule.refuted,
                    UNCLEAR: "The numbers leave it open.",
                }[wanted]
            )


@pytest.mark.parametrize("alone", [0.001, 0.03])
def test_holms_correction_is_over_all_claims(alone: float) -> None:
    # A p-value of 0.03 is significant alone, and not beside another open claim.
    rule = RULES["whole-elbo"]
    step = math.sqrt(3) / float(stats.t.isf(alone, 2))
    results, theory = with_statistic(rule, around(1.0, step)), fake_study.THEORY
    current = [run for run in results["runs"] if run["arm"] == RULES["monte-carlo-training"].arm]
    for run in current:
        run["log_px"]["value"] += 10.0 * run["seed"]
    said = {r.name: evidence(r, results, theory) for r in rules()}
    raw = {name: min(e.inside_p, e.outside_p) for name, e in said.items()}
    assert raw[rule.name] == pytest.approx(alone, rel=1e-6)
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(raw, key=raw.__getitem__)):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[name]))
        adjusted[name] = largest
    assert {v.name: v.p for v in verdicts(results, theory)} == pytest.approx(adjusted)
    assert found(results, rule.name).verdict == (REFUTED if alone == 0.001 else UNCLEAR)


@pytest.mark.parametrize(
    ("off", "half", "wanted"),
    [
        ([0.0, 0.05], [0.01, 0.01], CONFIRMED),
        ([0.0, -0.05], [0.01, 0.01], CONFIRMED),
        ([0.0, 0.2], [0.01, 0.01], REFUTED),
        ([-0.2, 0.0], [0.01, 0.01], REFUTED),
        ([0.0, 0.09], [0.01, 0.05], UNCLEAR),
        ([0.0, 0.11], [0.01, 0.05], UNCLEAR),
        ([0.0, 0.0], [0.0, 0.01], CONFIRMED),
        ([0.2, 0.0], [0.0, 0.01], REFUTED),
    ],
)
def test_the_monte_carlo_kl_must_be_equivalent_at_every_point(
    off: list[float], half: list[float], wanted: str
) -> None:
    theory = fake_study.THEORY | {
        "monte_carlo_kl": {"points": 2, "off": off, "half_interval": half}
    }
    rule = RULES["monte-carlo-expectation"]
    said = evidence(rule, fake_study.results(), theory)
    if min(half) > 0:
        inside = [
            max(stats.norm.sf((0.1 - o) / (h / 1.96)), stats.norm.sf((0.1 + o) / (h / 1.96)))
            for o, h in zip(off, half, strict=True)
        ]
        assert said.inside_p == pytest.approx(max(inside), rel=2e-3)  # 1.96 is rounded
        outside = [
            2 * stats.norm.sf((abs(o) - 0.1) / (h / 1.96)) for o, h in zip(off, half, strict=True)
        ]
        assert said.outside_p == pytest.approx(min(1.0, 2 * min(outside)), rel=2e-2)
    assert found(fake_study.results(), rule.name, theory).verdict == wanted


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("derivatives", "zeros_of_F", [0.001]),
        ("derivatives", "zeros_of_F", [0.0, 2.0]),
        ("derivatives", "zeros_of_G", [1.001]),
        ("derivatives", "zeros_of_G", [0.5, 1.0]),
        ("spiral", "flow_eigenvalues", [[-2.0, 0.0], [1.0, 0.0]]),
        ("spiral", "flow_eigenvalues", [[-1.0, 0.5], [-1.0, -0.5]]),
    ],
)
def test_another_zero_or_a_turning_flow_refutes_the_minimum(
    part: str, name: str, value: Any
) -> None:
    results = with_statistic(RULES["minimum"], around(0.01, 1e-6))
    assert found(results, "minimum").verdict == CONFIRMED
    theory = fake_study.THEORY | {part: fake_study.THEORY[part] | {name: value}}
    assert found(results, "minimum", theory).verdict == REFUTED


@pytest.mark.parametrize("name", ["sample_kl", "kl_per_dimension"])
def test_encoders_that_differ_in_one_bit_of_one_seed_are_not_the_same(name: str) -> None:
    results = with_statistic(RULES["simultaneous"], around(0.0, 1e-3))
    assert found(results, "simultaneous").verdict == CONFIRMED
    assert "equal to the last bit" in found(results, "simultaneous").measured
    last = [run for run in results["runs"] if run["arm"] == SIMULTANEOUS][-1]["latents"]
    if name == "sample_kl":
        last[name] = math.nextafter(last[name], 1.0)
    else:
        last[name][-1] = 5e-324
    assert found(results, "simultaneous").verdict == REFUTED
    assert "test split differs" in found(results, "simultaneous").measured


def test_what_was_measured_is_told_with_its_sign_and_its_pairing() -> None:
    # A half width of 4.3027 √(1/3) steps: Student's table, two degrees of freedom.
    step = 0.5 * math.sqrt(3) / 4.302652729911275
    for name, mean, text in (
        ("minimum", 3.0, "end at a rate of 3.00 ± 0.50 nats; its derivatives vanish at mu = 0"),
        ("whole-elbo", 3.0, "ends 3.00 ± 0.50 nats above the ELBO"),
        ("monte-carlo-training", -3.0, "differs by -3.00 ± 0.50 nats (Monte Carlo minus"),
        ("slightly-better-decoder", 30.0, "is 30.00 ± 0.50 nats an image above"),
        ("follow-q", 95.0, "closes 95.00 ± 0.50 % of the gap"),
        ("closer-than-randn", -3.0, "same eps: -3.00 ± 0.50 standard deviations"),
    ):
        rule = RULES[name]
        assert text in found(with_statistic(rule, around(mean, step)), name).measured
    images = found(with_statistic(RULES["best-images"], around(-3.0, step)), "best-images")
    # first: 105, 145, 89 minus 3 and its steps; second: those without
    wanted = "from a mixture fitted to q(z) and 108 ± 72 from N(0, I), a difference of -3.00 ± 0.50"
    assert wanted in images.measured


def test_numbers_like_mnists_are_judged_as_they_should_be() -> None:
    said = {v.name: v.verdict for v in verdicts(fake_study.results(), fake_study.THEORY)}
    for name in ("normal", "whole-elbo", "best-decoder", "slightly-better-decoder"):
        assert said[name] == REFUTED
    for name in ("minimum", "diagonal-kl", "diagonal-elbo", "encoder-only", "best-images"):
        assert said[name] == CONFIRMED
