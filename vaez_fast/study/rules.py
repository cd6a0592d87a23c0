"""The frozen rules by which claims are judged, from rules.toml."""

from __future__ import annotations

import hashlib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("rules.toml")


@dataclass(frozen=True)
class Rule:
    """One claim, its statistic, the range in which it holds, and what is said of it.

    rules.toml explains the fields. `test` is "seeds" (a t-test over the seeds) or "expectation" (a
    z-test of the theory's Monte Carlo means); `unit` is "" for the quantity's own unit, or
    "null-spread" for standard deviations of the sample KL of exact normals.
    """

    name: str
    claim: str
    margin: str
    measured: str
    confirmed: str
    refuted: str
    refuted_below: str = ""  # what is said instead if the statistic is below `low`
    quantity: str = ""
    arm: str = ""
    minus: str = ""
    minus_quantity: str = ""
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    test: str = "seeds"
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "requires", tuple(self.requires))
        if not self.low < self.high or (math.isinf(self.low) and math.isinf(self.high)):
            raise ValueError(f"rule {self.name!r}: low must be below high, and one of them finite")


def rules() -> list[Rule]:
    """All rules, in the report's order."""
    return [Rule(**fields) for fields in tomllib.loads(FILE.read_text())["rule"]]


def sha256() -> str:
    """Of rules.toml: a study's results name the rules that were in force when it began."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()
