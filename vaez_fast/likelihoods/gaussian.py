"""Gaussian elements, with a fixed or a learned variance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import gaussian_log_prob as fused
from vaez_kernels.checks import FLOATS

from .shapes import check_broadcast, check_parameter, check_rows, sum_last, wide

OP = "gaussian_log_prob"
TARGETS = (torch.uint8, torch.bool, *FLOATS)
LOG_2PI = math.log(2.0 * math.pi)


def gaussian_log_prob(x: Tensor, mean: Tensor, logvar: Tensor | float = 0.0) -> Tensor:
    """log p(x|z) = −½ Σ ((x − mean)²·exp(−logvar) + logvar + ln 2π) in nats.

    Kingma & Welling 2014, appendix C.2; by the fused op `vaez_kernels.gaussian_log_prob`, except
    where x needs a gradient, which the op does not give.

    Args:
        x: (B, *event), uint8, bool or floating-point.
        mean: (B, *event) or (S, B, *event), float32, bfloat16, float16 or float64.
        logvar: a number for a fixed variance, or a tensor that broadcasts to the shape of mean: a
            value for each element, for each channel (C, 1, 1), or for all.

    Returns:
        (B,) or (S, B), float32 (float64 for float64 parameters). Gradients flow to all tensors.
        Below a logvar of −177, 1/σ overflows in float32, and x = mean gives NaN.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    check_rows(OP, x, TARGETS, "uint8, bool or floating-point")
    lead = check_parameter(OP, "mean", mean, x)
    if isinstance(logvar, Tensor):
        check_broadcast(OP, "logvar", logvar, "mean", mean)
        dtype = torch.promote_types(mean.dtype, logvar.dtype)
    elif isinstance(logvar, (int, float)):
        dtype = wide(mean)  # bfloat16 would round the number
        logvar = torch.full((), float(logvar), dtype=dtype, device=mean.device)
    else:
        raise TypeError(f"{OP}: logvar must be a tensor or a number, got {type(logvar).__name__}")
    mean, logvar = mean.to(dtype), logvar.to(dtype)
    if x.requires_grad and torch.is_grad_enabled():
        return _plain(x, mean, logvar)
    event = x.shape[1:]
    samples, rows, pixels = mean.shape[0] if lead else 1, x.shape[0], math.prod(event)
    # Only the event is flattened, which may copy a small tensor; rows and samples are views.
    own = logvar.shape[: max(logvar.dim() - len(event), 0)]
    logvar = logvar.expand(*own, *event).reshape(*own, pixels).expand(samples, rows, pixels)
    log_prob = fused(mean.reshape(samples, rows, pixels), logvar, x.reshape(rows, pixels))
    return log_prob if lead else log_prob[0]


def _plain(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    dtype = wide(mean)
    mean, logvar = mean.to(dtype), logvar.to(dtype)
    t = (x.to(dtype) - mean) * torch.exp(-0.5 * logvar)
    return -0.5 * sum_last(t.square() + logvar + LOG_2PI, x.dim() - 1)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """p(x|z) of independent Gaussian elements; see `gaussian_log_prob`. E[x|z] is `mean`."""

    mean: Tensor
    logvar: Tensor | float = 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Likelihood`."""
        return gaussian_log_prob(x, self.mean, self.logvar)

    def row_dims(self) -> Mapping[str, int]:
        """See `Likelihood`."""
        return {"mean": self.mean.dim(), "logvar": self.mean.dim()}
