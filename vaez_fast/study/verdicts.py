"""The article's claims, each judged by its frozen rule; see rules.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..measures.intervals import holm
from .evidence import FACTS, Evidence, evidence
from .readings import Results
from .rules import Rule, rules

CONFIRMED, REFUTED, UNCLEAR = "confirmed", "refuted", "unclear"
LEVEL = 0.05
OPEN = "The numbers leave it open."


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim.

    `p` is the p-value of the null that the verdict rejects (of the smaller one if it is unclear),
    after Holm's correction over all claims. It is None where a fact that does not hold refutes the
    claim.
    """

    name: str
    claim: str
    measured: str
    verdict: str  # confirmed, refuted or unclear
    p: float | None
    margin: str
    why: str


def verdicts(results: Results, theory: dict[str, Any]) -> list[Verdict]:
    """The report's first table; `theory` is the record of `vaez_fast.theory.record`.

    A claim's two nulls, outside and inside its range, exclude each other, so each claim adds one
    test to the family. Holm's procedure with such two-sided decisions keeps the chance of any
    wrong one below 5 % (Shaffer, "Control of directional errors with stagewise multiple test
    procedures", 1980, for independent statistics).
    """
    judged = [(rule, evidence(rule, results, theory)) for rule in rules()]
    adjusted = holm([min(found.inside_p, found.outside_p) for _, found in judged])
    return [
        _verdict(rule, found, p, results, theory)
        for (rule, found), p in zip(judged, adjusted, strict=True)
    ]


def _verdict(
    rule: Rule, found: Evidence, p: float | None, results: Results, theory: dict[str, Any]
) -> Verdict:
    facts = [FACTS[name](results, theory) for name in rule.requires]
    if not all(holds for holds, _ in facts):
        verdict, p = REFUTED, None
    elif p is not None and p < LEVEL:
        verdict = CONFIRMED if found.inside_p < found.outside_p else REFUTED
    else:
        verdict = UNCLEAR
    below = rule.refuted_below and found.mean < rule.low
    refuted = rule.refuted_below if below else rule.refuted
    measured = rule.measured.replace("{}", found.statistic).format(**found.words)
    return Verdict(
        name=rule.name,
        claim=rule.claim,
        measured="; ".join([measured, *(text for _, text in facts)]),
        verdict=verdict,
        p=p,
        margin=rule.margin,
        why={CONFIRMED: rule.confirmed, REFUTED: refuted, UNCLEAR: OPEN}[verdict],
    )
