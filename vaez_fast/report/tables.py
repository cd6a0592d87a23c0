"""The tables of a study's report: every arm's numbers, means over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..drawing.page import Table
from ..measures.intervals import interval
from ..measures.samplers import SAMPLERS
from ..study.readings import (
    ANALYTIC,
    active_units,
    distortion,
    elbo,
    frechet,
    held_out_marginal_kl,
    image_metric,
    log_px,
    moment,
    rate,
    rate_of_surgery,
    sample_kl,
    surgery,
    values,
)
from ..study.study import arm_names

Results = dict[str, Any]

QUANTITIES = {
    "sample_kl": sample_kl,
    "rate": rate,
    "distortion": distortion,
    "elbo": elbo,
    "log_px": log_px,
}


def arms(results: Results) -> Table:
    rows = []
    for arm in arm_names(results):
        cells = [interval(values(results, arm, read)).text() for read in QUANTITIES.values()]
        active = values(results, arm, active_units)
        rows.append((arm, *cells, f"{sum(active) / len(active):.1f}"))
    log_px_of = f"log p(x), k = {results['runs'][0]['log_px']['samples']:,}"
    head = ("arm", "sample KL", "rate", "distortion", "ELBO", log_px_of, "active")
    return Table(head, rows)


def samples_of_log_px(results: Results) -> str:
    """What log p(x) of the table of arms was computed from."""
    found = [run["log_px"] for run in results["runs"]]
    few = results["runs"][0]["test"]["log_px_samples"]
    if few >= found[0]["samples"]:
        return f"log p(x) is from {few:,} importance samples of each test image."
    rises = [one["rise"]["value"] for one in found]
    error = max(one["rise"]["standard_error"] for one in found)
    return (
        f"log p(x) is the mean over all test images from {few:,} importance samples, plus the rise "
        f"from {few:,} to {found[0]['samples']:,} samples of {found[0]['rise']['images']:,} images "
        f"(Giles 2008). The rise is {min(rises):.2f} to {max(rises):.2f} nats; its standard error "
        f"over images is {error:.2f} nats at most."
    )


def has_images(results: Results, arm: str, sampler: str) -> bool:
    """Whether an arm has images from a sampler: a flow is fitted for the ordinary VAE alone."""
    return all(sampler in run["images"] for run in results["runs"] if run["arm"] == arm)


def _distance(results: Results, arm: str, sampler: str) -> str:
    if not has_images(results, arm, sampler):
        return "–"
    return interval(values(results, arm, frechet(sampler))).text()


def image_distances(results: Results) -> Table:
    rows = [
        (arm, *(_distance(results, arm, name) for name in SAMPLERS)) for arm in arm_names(results)
    ]
    bounds = results["beside"]["images"]
    for name, text in (("floor", "real images (floor)"), ("ceiling", "mean digit (ceiling)")):
        rows.append((text, f"{bounds[name]['frechet']:.2f}", *[""] * (len(SAMPLERS) - 1)))
    return Table(("Fréchet distance, z from", *SAMPLERS), rows)


def _mean(results: Results, arm: str, read: Callable[[Results], float], digits: int) -> str:
    found = values(results, arm, read)
    return f"{sum(found) / len(found):.{digits}f}"


def image_metrics(results: Results) -> Table:
    metrics = {
        "frechet": 2, "kernel": 4, "precision": 3, "recall": 3, "density": 3, "coverage": 3,
        "label_distance": 3, "nearest_train": 2,
    }  # fmt: skip
    rows = []
    for arm in arm_names(results):
        for name in SAMPLERS:
            if not has_images(results, arm, name):
                continue
            cells = [
                _mean(results, arm, image_metric(name, metric), digits)
                for metric, digits in metrics.items()
            ]
            rows.append((f"{arm}, {name}", *cells))
    bounds = results["beside"]["images"]
    for name, text in (("floor", "real images (floor)"), ("ceiling", "mean digit (ceiling)")):
        cells = [f"{bounds[name][metric]:.{digits}f}" for metric, digits in metrics.items()]
        rows.append((text, *cells))
    head = (
        *("arm, z from", "Fréchet", "kernel", "precision", "recall", "density", "coverage"),
        *("label histogram", "nearest training image"),
    )
    return Table(head, rows)


def label_histogram(results: Results) -> Table:
    runs = [run for run in results["runs"] if run["arm"] == ANALYTIC]

    def shares(name: str) -> tuple[str, ...]:
        columns = zip(*(run["images"][name]["label_histogram"] for run in runs), strict=True)
        return tuple(f"{sum(column) / len(runs):.3f}" for column in columns)

    rows = [(name, *shares(name)) for name in SAMPLERS]
    floor = results["beside"]["images"]["floor"]["label_histogram"]
    rows.append(("real images", *(f"{share:.3f}" for share in floor)))
    return Table(("z from", *(str(digit) for digit in range(10))), rows)


def moments(results: Results) -> Table:
    parts = {
        "largest |mean|": "largest_abs_mean",
        "smallest variance": "smallest_variance",
        "largest variance": "largest_variance",
        "largest |correlation|": "largest_abs_correlation",
        "smallest excess kurtosis": "smallest_excess_kurtosis",
        "largest excess kurtosis": "largest_excess_kurtosis",
    }
    rows = [
        (arm, *(_mean(results, arm, moment(name), 3) for name in parts.values()))
        for arm in arm_names(results)
    ]
    return Table(("arm", *parts), rows)


def parts_of_rate(results: Results) -> Table:
    parts = {
        "index information": "index_information",
        "total correlation": "total_correlation",
        "dimension-wise KL": "dimension_wise_kl",
        "marginal KL, plug-in": "marginal_kl",
        "marginal KL, leave-one-out": "leave_one_out_marginal_kl",
    }
    rows = [
        (
            arm,
            interval(values(results, arm, rate_of_surgery)).text(),
            *(interval(values(results, arm, surgery(name))).text() for name in parts.values()),
            interval(values(results, arm, held_out_marginal_kl)).text(),
        )
        for arm in arm_names(results)
    ]
    return Table(("arm", "rate (training)", *parts, "marginal KL, held out"), rows)
