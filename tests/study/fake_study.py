"""Records of a study in the form of `vaez_fast.study.measure`, with chosen numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaez_fast.config import TrainConfig
from vaez_fast.measures.samplers import SAMPLERS
from vaez_fast.study.study import KIND, StudyConfig

CONFIG = StudyConfig(TrainConfig(epochs=None, steps=200), seeds=3, betas=(4.0,))
THEORY: dict[str, Any] = {
    "derivatives": {"zeros_of_F": [0.0], "zeros_of_G": [1.0]},
    "spiral": {"flow_eigenvalues": [[-2.0, 0.0], [-1.0, 0.0]]},
    "monte_carlo_kl": {"points": 16, "largest_z": 1.5},
    "estimators": {"largest_z_of_mean": 2.5},
}


def record(config: TrainConfig) -> dict[str, Any]:
    """A run with numbers like those on static MNIST; seeds differ a little."""
    informed = config.objective == "elbo" and config.decoder == "joint"
    wobble = 0.1 * config.seed
    rate = (20.0 / config.beta if informed else 0.0) + 0.01 * wobble
    distortion = (80.0 if informed else 206.0) + wobble
    sample_kl = (0.05 if informed else 0.0130) + 0.0001 * wobble
    frechet = {"standard-normal": 2.3, "mixture": 1.4, "full-covariance": 1.6, "diagonal": 1.8}
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
        "latents": {
            "n": 10_000,
            "sample_kl": sample_kl,
            "kl_per_dimension": [rate * (j + config.seed) / 128**2 for j in range(128)],
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
            }
            for i, name in enumerate(SAMPLERS)
        },
        "k_curve": {"images": 500, "k": [1, 8, 128], "log_px": [-100.0, -97.0, -95.0]},
    }


def images() -> dict[str, np.ndarray]:
    row = np.arange(784, dtype=np.uint8)
    return {name: np.tile(row, (12, 1)) for name in SAMPLERS}


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
        "schema": 1,
        "config": {**config.as_dict(), "precision": "float32", "device": "cpu"},
        "environment": {"device": "a processor", "torch": "2"},
        "beside": beside(),
        "runs": [record(run) for run in config.runs()],
    }
