"""Records of a study in the form of `vaez_fast.study.measure`, with chosen numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vaez_fast.config import TrainConfig
from vaez_fast.measures.codes import Codes, Encoded
from vaez_fast.measures.law_summary import summary_of
from vaez_fast.measures.samplers import SAMPLERS
from vaez_fast.study import rules
from vaez_fast.study.arrays import LAW, RECONSTRUCTIONS, TEST_IMAGES
from vaez_fast.study.readings import AS_PUBLISHED
from vaez_fast.study.study import KIND, SCHEMA, StudyConfig

CONFIG = StudyConfig(TrainConfig(epochs=None, steps=200), seeds=3, betas=(4.0,))
THEORY: dict[str, Any] = {
    "derivatives": {"zeros_of_F": [0.0], "zeros_of_G": [1.0]},
    "spiral": {"flow_eigenvalues": [[-2.0, 0.0], [-1.0, 0.0]]},
    "monte_carlo_kl": {"points": 2, "off": [0.01, -0.02], "half_interval": [0.004, 0.006]},
    "estimators": {"largest_z_of_mean": 2.5, "compared": 28},
}


def record(config: TrainConfig) -> dict[str, Any]:
    """A run with numbers like those on static MNIST; seeds differ a little."""
    informed = config.objective == "elbo" and config.decoder == "joint"
    wobble = 0.1 * config.seed
    rate = (20.0 / config.beta if informed else 0.0) + 0.01 * wobble
    distortion = (80.0 if informed else 206.0) + wobble - (20.0 if config.beta < 1 else 0.0)
    sample_kl = (0.05 if informed else 0.0130) + 0.0001 * wobble
    frechet = {"standard-normal": 2.3, "mixture": 0.41, "full-covariance": 1.6, "diagonal": 1.8}
    parts = {"index_information": 0.45, "total_correlation": 0.5, "dimension_wise_kl": 0.05}
    values = {name: part * rate for name, part in parts.items()}
    values["marginal_kl"] = values["total_correlation"] + values["dimension_wise_kl"]
    values["leave_one_out_marginal_kl"] = -1.0 + wobble
    return {
        "arm": config.arm,
        "seed": config.seed,
        "steps": 200,
        "decay": [
            {"step": n, "sample_kl": sample_kl + 10 / (1 + n**2), "rate": rate + 5 / (1 + n)}
            for n in (0, 1, 10, 100, 200)
        ],
        "test": {
            "elbo": -rate - distortion,
            "rate": rate,
            "distortion": distortion,
            "log_px": -rate - distortion + 4,
            "log_px_samples": 128,
        },
        "log_px": {
            "value": -rate - distortion + 4.5,
            "standard_error": 0.28,
            "samples": 5000,
            "rise": {
                "value": 0.5 + wobble,
                "standard_error": 0.01 + 0.1 * wobble,
                "images": 1000,
            },
        },
        "latents": {
            "n": 10_000,
            "sample_kl": sample_kl,
            "kl_per_dimension": [rate * (j + config.seed) / 128**2 for j in range(128)],
            "law": law(informed, wobble),
            **({"gain": gain(wobble)} if config.decoder == "joint" else {}),
            "tests": normality(informed, config.seed),
            "active_units": 30 + config.seed if informed else 0,
            "moments": {
                "largest_abs_mean": 0.1 + wobble,
                "smallest_variance": 0.9,
                "largest_variance": None,
                "largest_abs_correlation": 0.2,
                "smallest_excess_kurtosis": -0.3,
                "largest_excess_kurtosis": 0.4,
            },
            "held_out_marginal_kl": {"value": 1.0 + wobble, "standard_error": 0.1},
            "surgery": {
                "rate": rate + 0.25,
                **{name: {"value": v, "standard_error": 0.01} for name, v in values.items()},
            },
        },
        "images": {
            name: {
                "frechet": (frechet.get(name, 0.4) if informed else 25.9) + wobble,
                "kernel": 0.1 + 0.01 * i + wobble,
                "label_distance": 0.05 + 0.02 * i + wobble,
                "label_histogram": [
                    (digit + i + wobble + 9 * informed) / (45 + 10 * i) for digit in range(10)
                ],
                "nearest_train": 7.0 + i + wobble,
                **{
                    metric: 0.5 + 0.01 * i + 0.1 * j + 0.1 * wobble
                    for j, metric in enumerate(("precision", "recall", "density", "coverage"))
                },
            }
            for i, name in enumerate(SAMPLERS)
            if name != "flow" or config.arm == "elbo/analytic/joint"
        },
        "both_sides": {
            "images": 100,
            "samples": 5000,
            "temperatures": 50,
            "chains": 16,
            "test": bounds_of(-93.0),
            "simulated": bounds_of(-108.0),
        },
        **({"kept": kept(config.seed)} if config.arm == AS_PUBLISHED else {}),
        "curve": learning_curve(config, rate, distortion),
        "k_curve": {"images": 500, "k": [1, 8, 128], "log_px": [-100.0, -97.0, -95.0]},
    }


def kept(seed: int) -> dict[str, Any]:
    """What the published code keeps, and the decoder that is trained on it."""
    return {
        name: {
            "step": 1 + seed % 2,
            "loss": loss,
            "last_loss": loss / 10,
            "rate": loss + 20.0 + seed,
            "distortion": 400.0 + 2 * seed,
            "decoder_retrained": 199.0 - 0.3 * seed,
        }
        for name, loss in (("encoder", 60.0), ("joint", 500.0))
    }


def learning_curve(config: TrainConfig, rate: float, distortion: float) -> list[dict[str, Any]]:
    """The distortion falls from 600 nats to its end, in the decoder's phase."""
    names = {"joint": "vae", "simultaneous": "encoder and decoder"}
    phase = names.get(config.decoder, "decoder")
    before = 200 if config.decoder == "separate" else 0
    points = [("encoder", step, 0.0) for step in range(40, before + 1, 80)]
    points += [
        (phase, before + step, distortion + (600 - distortion) * (1 - step / 200))
        for step in (40, 100, 200)
    ]
    return [
        {"phase": name, "step": step, "split": split, "rate": rate, "distortion": value + off}
        for name, step, value in points
        for split, off in (("train", 0.0), ("validation", 5.0))
    ]


def bounds_of(log_px: float) -> dict[str, Any]:
    """Bounds of log p(x), each 0.5 nats above the one before it."""
    names = ("elbo", "importance", "lower", "upper")
    found = {n: {"value": log_px + 0.5 * i, "standard_error": 0.1} for i, n in enumerate(names)}
    return found | {"gap": {"value": 4.25, "standard_error": 0.25}}


def law(informed: bool, wobble: float) -> dict[str, Any]:
    """The law of z of a run: on a shell if it is informed, else standard normal."""

    def bound(value: float, how: str) -> dict[str, Any]:
        return {"value": value + 0.01 * wobble, "standard_error": 0.02, "how": how}

    shape = 1.6 if informed else 0.0
    lower = {"diagonal": 0.03, "full-covariance": 0.055, "mixture-50": 0.055 + shape}
    if not informed:
        lower = dict.fromkeys(lower, 0.001)
    best = max(lower.values())
    return {
        "informative": list(range(11)) if informed else [],
        "measured": list(range(11 if informed else 10)),
        "lower": {name: bound(value, name) for name, value in lower.items()},
        "kl_lower": bound(best, "mixture-50"),
        "kl_upper": bound(9.0 if informed else 0.01, "plug-in"),
        "leave_one_out": bound(-4.0 if informed else 0.01, "leave-one-out"),
        "squared_norm": {"d": 11, "shell": 0.53 + 0.1 * wobble if informed else 1.0 + wobble},
        "thresholds": [
            {
                "threshold": threshold,
                "informative": 20 - 10 * i,
                "lower": {
                    "full-covariance": bound(0.06 + 0.01 * i, "full"),
                    "mixture-50": bound(1.7 - 0.1 * i, "mixture"),
                },
            }
            for i, threshold in enumerate((0.01, 0.1, 0.5))
        ],
    }


def gain(wobble: float) -> dict[str, Any]:
    """What the best density gains as the prior."""
    return {
        "density": "mixture-50",
        "log_px": {"value": 1.4 + wobble, "standard_error": 0.03},
        "elbo": {"value": 1.6 + wobble, "standard_error": 0.05},
        "num_images": 2_000,
        "num_samples": 128,
    }


def normality(informed: bool, seed: int) -> dict[str, Any]:
    """The tests of a run: all but the first reject an informed encoder's z."""
    names = ("kolmogorov-smirnov/3", "kolmogorov-smirnov/5", "mardia-kurtosis", "energy-distance")
    return {
        name: {
            "statistic": 0.5 + i + 0.125 * seed,
            "p": 0.001 if informed else 0.5,
            "p_of_exact_normals": 0.4,
            "rejected": informed and i > 0,
            "false_alarm": i == 2 and seed == 1,
        }
        for i, name in enumerate(names)
    }


def law_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of the law of z of a run, as the study stores them."""
    generator = torch.Generator().manual_seed(seed)
    mu = 0.8 * torch.randn((300, 3), generator=generator)
    encoded = Encoded(mu, torch.full_like(mu, -1.0), mu + 0.6)
    codes = Codes(encoded, encoded, encoded)
    return {LAW + k: v for k, v in summary_of(codes, torch.arange(300) % 10, seed).items()}


def images() -> dict[str, np.ndarray]:
    row = np.arange(784, dtype=np.uint8)
    grids = (*SAMPLERS, TEST_IMAGES, RECONSTRUCTIONS)
    return {name: np.tile(row, (12, 1)) for name in grids} | law_arrays()


def beside() -> dict[str, Any]:
    return {
        "images": {
            name: {
                "count": 1000,
                "frechet": value,
                "kernel": 0.01 * value,
                "label_distance": 0.02 + 0.01 * value,
                "label_histogram": [(digit + value) / (45 + 10 * value) for digit in range(10)],
                "nearest_train": 7.0 + value,
                "precision": 0.9 - 0.01 * value,
                "recall": 0.8 - 0.01 * value,
                "density": 1.0 - 0.01 * value,
                "coverage": 0.95 - 0.01 * value,
                "frechet_splits": {"mean": 0.018, "deviation": 0.005, "by_network": [0.018] * 3},
            }
            for name, value in (("floor", 0.3), ("ceiling", 26.0))
        },
        "features": {"accuracy_binary": 0.97},
        "marginal_log_prob": -205.7,
        "null_sample_kl": 0.0128,
        "latent": 128,
        "n": 10_000,
        "log_aggregate_images": 9.9,
    }


def results(config: StudyConfig = CONFIG) -> dict[str, Any]:
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "rules_sha256": rules.sha256(),
        "config": {**config.as_dict(), "precision": "float32", "device": "cpu"},
        "environment": {"device": "a processor", "torch": "2"},
        "beside": beside(),
        "runs": [record(run) for run in config.runs()],
    }
