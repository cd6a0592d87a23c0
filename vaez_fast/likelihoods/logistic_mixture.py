"""Mixtures of discretised logistics, for values of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels.checks import check_device, check_float

from .logistic import LEVELS, WANTED, level, log_level, mean_level
from .shapes import check_rows, sum_last, wide


def logistic_mixture_log_prob(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor
) -> Tensor:
    """Σ log Σ_k π_k p_k(x) in nats: mixtures of K discretised logistics, π = softmax(logits).

    Salimans et al. 2017 (PixelCNN++), equations 1 and 2, without their channels' autoregression:
    given the component, the channels of a pixel are independent.

    Args:
        x: (B, *event), as `discretized_logistic_log_prob` takes it.
        logits: of the shape of means, for a mixture of each element; or without the first dimension
            of the event, for a component that this dimension shares: (B, K, H, W) for the pixels of
            images (C, H, W).
        means, log_scales: (B, K, *event) or (S, B, K, *event).

    Returns:
        (B,) or (S, B), float32 (float64 for float64 parameters). Gradients flow to the parameters,
        not to x.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    op = "logistic_mixture_log_prob"
    check_rows(op, x, LEVELS, WANTED)
    event = x.dim() - 1
    _check_mixture(op, logits, means, log_scales, event)
    k = -event - 1
    rows, without_k = tuple(x.shape), list(means.shape)
    del without_k[k]
    if tuple(without_k[-len(rows) :]) != rows:
        raise ValueError(
            f"{op}: means must have shape (B, K, *event) or (S, B, K, *event) with (B, *event) = "
            f"{rows}, x's shape, got {tuple(means.shape)}"
        )
    check_device(op, "x", x, "means", means)
    parts = log_level(level(x, wide(means, log_scales)).unsqueeze(1), means, log_scales)
    if logits.dim() < means.dim():
        parts, k, event = parts.sum(k + 1), k + 1, event - 1
    parts = parts + torch.log_softmax(logits.to(wide(logits)), k)
    return sum_last(torch.logsumexp(parts, k), event)


@dataclass(frozen=True, eq=False)
class LogisticMixture:
    """p(x|z) of mixtures of discretised logistics; see `logistic_mixture_log_prob`.

    `event_dims` is the number of dimensions of a row of x, 3 for images (C, H, W): it says where
    the dimension of components is.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    event_dims: int = 3

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Likelihood`."""
        if isinstance(x, Tensor) and x.dim() != self.event_dims + 1:
            raise ValueError(
                f"LogisticMixture: x must have B and event_dims = {self.event_dims} dimensions, "
                f"got {tuple(x.shape)}"
            )
        return logistic_mixture_log_prob(x, self.logits, self.means, self.log_scales)

    @property
    def mean(self) -> Tensor:
        """E[x|z] of x in [0, 1], (B, *event) or (S, B, *event): 255 sigmoids an element and
        component.
        """
        _check_mixture("LogisticMixture", self.logits, self.means, self.log_scales, self.event_dims)
        k = self.means.dim() - self.event_dims - 1
        weights = torch.softmax(self.logits.to(wide(self.logits)), k)
        if weights.dim() < self.means.dim():
            weights = weights.unsqueeze(k + 1)
        return (weights * mean_level(self.means, self.log_scales)).sum(k)

    def row_dims(self) -> Mapping[str, int]:
        """See `Likelihood`."""
        fields = {"means": self.means, "logits": self.logits, "log_scales": self.log_scales}
        return {name: value.dim() for name, value in fields.items()}


def _check_mixture(op: str, logits: Tensor, means: Tensor, log_scales: Tensor, event: int) -> None:
    for name, value in (("means", means), ("logits", logits), ("log_scales", log_scales)):
        check_float(op, name, value)
        check_device(op, name, value, "means", means)
    shape = tuple(means.shape)
    lead = means.dim() - event - 2
    if lead not in (0, 1) or shape[lead + 1] == 0:
        raise ValueError(
            f"{op}: means must have shape (B, K, *event) or (S, B, K, *event) with K ≥ 1 and "
            f"{event} dimensions of the event, got {shape}"
        )
    if tuple(log_scales.shape) != shape:
        raise ValueError(
            f"{op}: log_scales must have means' shape {shape}, got {tuple(log_scales.shape)}"
        )
    shared = shape[: lead + 2] + shape[lead + 3 :]
    if tuple(logits.shape) not in (shape, *([shared] if event else [])):
        wanted = f"{shape}" + (f", or {shared} without its first dimension" if event else "")
        raise ValueError(f"{op}: logits must have means' shape {wanted}, got {tuple(logits.shape)}")
