"""The table of a split's metrics for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..measures.evaluate import Metrics


def table_of_metrics(config: TrainConfig, metrics: Metrics, split: str) -> Iterator[str]:
    """Lines of a run's ELBO, rate, distortion and log p(x), in nats per image."""
    from ..measures.evaluate import kind_of_rate

    samples = metrics.log_px_samples
    error = f"± {metrics.log_px_standard_error:.2f} (standard error over the images)"
    quantities = (
        ("ELBO", metrics.elbo, "−(rate + distortion)"),
        ("rate", metrics.rate, kind_of_rate(config, samples)),
        ("distortion", metrics.distortion, f"−E log p(x|z), {samples} samples"),
        ("log p(x)", metrics.log_px, f"{error}, {samples} importance samples"),
    )
    yield f"{split} split, nats per image"
    for name, value, how in quantities:
        yield f"  {name:<11}{value:9.2f}   {how}"
