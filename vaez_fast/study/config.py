"""The settings of the studies, and their runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..config import IN_ARM, ConfigError, TrainConfig
from ..system.errors import shown

KLS = ("total-derivative", "analytic", "sticking-the-landing")
BETAS = (4.0, 16.0, 64.0)
LESS_KL = 0.1  # the β of an arm that every study has, because a rule judges it
MOST_SEEDS = 1000

# Of a sweep
LATENTS = (2, 5, 10, 20, 50, 128)
SWEPT_BETAS = (0.1, 0.5, 1.0, 2.0, 4.0)

# What an arm's name does not mention has these values.
USUAL: dict[str, Any] = {
    field.name: field.default for field in fields(TrainConfig) if field.name in IN_ARM
}

# The settings of each remedy; the first two change nothing but the estimate of the KL.
REMEDIES: dict[str, dict[str, Any]] = {
    "analytic": {"kl": "analytic"},
    "monte-carlo": {"kl": "total-derivative"},
    "full-covariance": {"kl": "analytic", "posterior": "full-covariance"},
    "iaf": {"kl": "total-derivative", "posterior": "iaf"},
    "mixture": {"kl": "total-derivative", "prior": "mixture"},
    "vamp": {"kl": "total-derivative", "prior": "vamp"},
    "flow": {"kl": "total-derivative", "prior": "flow"},
    "free-bits": {"kl": "analytic", "free_bits": 0.1},
    "kl-warmup": {"kl": "analytic", "kl_warmup": 0.2},
    "half-beta": {"kl": "analytic", "beta": 0.5},
    "rmsprop": {"kl": "analytic", "optimizer": "rmsprop"},
    # Without warm-up, a richer posterior or prior starts with more collapsed latents.
    "monte-carlo-warmup": {"kl": "total-derivative", "kl_warmup": 0.2},
    "iaf-warmup": {"kl": "total-derivative", "posterior": "iaf", "kl_warmup": 0.2},
    "flow-warmup": {"kl": "total-derivative", "prior": "flow", "kl_warmup": 0.2},
    "full-covariance-warmup": {
        "kl": "analytic",
        "posterior": "full-covariance",
        "kl_warmup": 0.2,
    },
}


def ordinary_remedy(remedy: str) -> str:
    """The ordinary VAE that a remedy is compared with.

    It has the same estimate of the KL, and the same warm-up unless warm-up is the remedy itself.
    """
    settings = REMEDIES[remedy]
    kept = {"kl": settings["kl"]}
    if len(settings) > 2 and "kl_warmup" in settings:
        kept["kl_warmup"] = settings["kl_warmup"]
    return next(name for name, other in REMEDIES.items() if other == kept)


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
            raise ConfigError(
                f"betas must differ from each other, from 1 and from {LESS_KL:g}, got {self.betas}"
            )

    def arms(self) -> list[TrainConfig]:
        """Every arm at seed 0: the article's frameworks, its code as published, and the β sweep."""
        base = replace(self.base, **USUAL, objective="elbo", kl="analytic", decoder="joint")
        joint = [replace(base, kl=kl) for kl in KLS]
        apart = [
            replace(base, objective="kl", kl=kl, decoder=decoder)
            for kl in KLS
            for decoder in ("separate", "simultaneous")
        ]
        published = replace(base, objective="kl", kl="as-published", decoder="separate")
        sweep = [replace(base, beta=beta) for beta in (LESS_KL, *self.betas)]
        return [*joint, *apart, replace(base, decoder="randn"), published, *sweep]

    def runs(self) -> list[TrainConfig]:
        """All arms of a seed before the next seed, so that an interrupted study has whole pairs."""
        return [replace(arm, seed=seed) for seed in range(self.seeds) for arm in self.arms()]

    def as_dict(self) -> dict[str, Any]:
        shared = asdict(self.base)
        of_arms = ("objective", "kl", "decoder", *IN_ARM, "seed")
        for name in (*of_arms, "data_root"):
            del shared[name]
        return {**shared, "seeds": self.seeds, "betas": list(self.betas)}


@dataclass(frozen=True)
class SweepConfig:
    """Every setting of a sweep. The runs share `base`, except its latent size, β and seed.

    Raises:
        ConfigError: no seed, or latents or betas that are missing or repeated, or what
            `TrainConfig` refuses.
    """

    base: TrainConfig
    seeds: int
    latents: tuple[int, ...] = LATENTS
    betas: tuple[float, ...] = SWEPT_BETAS

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ConfigError(f"seeds must be from 1 to {MOST_SEEDS}, got {shown(self.seeds)}")
        for name, chosen in (("latents", self.latents), ("betas", self.betas)):
            if not chosen or len(set(chosen)) < len(chosen):
                raise ConfigError(f"{name} must differ from each other, got {shown(chosen)}")
        if len({run.arm for run in self.runs()}) < len(self.latents) * len(self.betas):
            raise ConfigError(f"betas must differ in their first six digits, got {self.betas}")

    def runs(self) -> list[TrainConfig]:
        """All settings of a seed before the next seed."""
        base = replace(self.base, **USUAL, objective="elbo", kl="analytic", decoder="joint")
        return [
            replace(base, latent=latent, beta=beta, seed=seed)
            for seed in range(self.seeds)
            for latent in self.latents
            for beta in self.betas
        ]

    def as_dict(self) -> dict[str, Any]:
        shared = asdict(self.base)
        for name in ("objective", "kl", "decoder", *IN_ARM, "seed", "data_root", "test_samples"):
            del shared[name]
        swept = {"latents": list(self.latents), "betas": list(self.betas)}
        return {**shared, "seeds": self.seeds, **swept}


@dataclass(frozen=True)
class RemedyConfig:
    """Every setting of a comparison of remedies; `base` is shared except for seed and remedy.

    Raises:
        ConfigError: fewer than two seeds, too many, remedies that are unknown, missing or repeated,
            or what `TrainConfig` refuses.
    """

    base: TrainConfig
    seeds: int
    remedies: tuple[str, ...] = tuple(REMEDIES)

    def __post_init__(self) -> None:
        if not 2 <= self.seeds <= MOST_SEEDS:
            raise ConfigError(f"seeds must be from 2 to {MOST_SEEDS}, got {shown(self.seeds)}")
        if unknown := [name for name in self.remedies if name not in REMEDIES]:
            raise ConfigError(
                f"remedies must be among {', '.join(REMEDIES)}, got {shown(unknown[0])}"
            )
        if not self.remedies or len(set(self.remedies)) < len(self.remedies):
            raise ConfigError(f"remedies must differ from each other, got {shown(self.remedies)}")
        self.runs()

    def arm(self, remedy: str) -> TrainConfig:
        """A remedy at seed 0."""
        base = replace(self.base, **USUAL, objective="elbo", kl="analytic", decoder="joint")
        return replace(base, **REMEDIES[remedy], seed=0)

    def runs(self) -> list[TrainConfig]:
        """All remedies of a seed before the next seed, so that pairs are whole."""
        return [
            replace(self.arm(remedy), seed=seed)
            for seed in range(self.seeds)
            for remedy in self.remedies
        ]

    def as_dict(self) -> dict[str, Any]:
        shared = asdict(self.base)
        for name in ("objective", "kl", "decoder", *IN_ARM, "seed", "data_root"):
            del shared[name]
        return {**shared, "seeds": self.seeds, "remedies": list(self.remedies)}
