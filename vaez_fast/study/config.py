"""The settings of a study, and its arms."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..config import ConfigError, TrainConfig
from ..system.errors import shown

KLS = ("total-derivative", "analytic", "sticking-the-landing")
BETAS = (4.0, 16.0, 64.0)
MOST_SEEDS = 1000


@dataclass(frozen=True)
class StudyConfig:
    """Every setting of a study. The arms share `base`, except its arm and seed, which are not used.

    Raises:
        ConfigError: fewer than two seeds, too many, repeated betas, or what `TrainConfig` refuses.
    """

    base: TrainConfig
    seeds: int
    betas: tuple[float, ...] = BETAS

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ConfigError(f"seeds must be at least 2, for intervals, got {self.seeds}")
        if self.seeds > MOST_SEEDS:
            raise ConfigError(f"seeds must be at most {MOST_SEEDS}, got {shown(self.seeds)}")
        if len({run.arm for run in self.arms()}) != len(self.arms()):
            raise ConfigError(f"betas must differ from each other and from 1, got {self.betas}")

    def arms(self) -> list[TrainConfig]:
        """Every arm at seed 0: the article's frameworks, its code as published, and the β sweep."""
        base = replace(
            self.base, objective="elbo", kl="analytic", decoder="joint", beta=1.0, num_samples=1
        )
        joint = [replace(base, kl=kl) for kl in KLS]
        apart = [
            replace(base, objective="kl", kl=kl, decoder=decoder)
            for kl in KLS
            for decoder in ("separate", "simultaneous")
        ]
        published = replace(base, objective="kl", kl="as-published", decoder="separate")
        sweep = [replace(base, beta=beta) for beta in self.betas]
        return [*joint, *apart, replace(base, decoder="randn"), published, *sweep]

    def runs(self) -> list[TrainConfig]:
        """All arms of a seed before the next seed, so that an interrupted study has whole pairs."""
        return [replace(arm, seed=seed) for seed in range(self.seeds) for arm in self.arms()]

    def as_dict(self) -> dict[str, Any]:
        shared = asdict(self.base)
        of_arms = ("objective", "kl", "decoder", "beta", "num_samples", "seed")
        for name in (*of_arms, "data_root", "test_samples"):  # `article` has no option for the last
            del shared[name]
        return {**shared, "seeds": self.seeds, "betas": list(self.betas)}
