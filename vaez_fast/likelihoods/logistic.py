"""Discretised logistics, for values of 8 bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vaez_kernels.checks import FLOATS

from .shapes import check_broadcast, check_parameter, check_rows, sum_last, wide

LEVELS = (torch.uint8, *FLOATS)
WANTED = "uint8 or floating-point"
LOG_WIDTH = math.log(2.0 / 255.0)  # of a bin
# A smaller scale counts as this one. e⁷⁰ is far beyond a bin, and a sum over 10⁷ elements that are
# off by e⁷⁰ each is still a float32.
LEAST_LOG_SCALE = -70.0
BLOCK = 17  # levels at a time in a mean


def discretized_logistic_log_prob(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Σ log(σ((v + 1/255 − μ)/s) − σ((v − 1/255 − μ)/s)) in nats, v = x/127.5 − 1.

    Level 0 has all the mass below its bin too, and level 255 all above: the 256 probabilities sum
    to 1. (Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    section 5; Salimans et al., "PixelCNN++", 2017, equation 2.)

    With bounds a < b it is log(1 − e^(a−b)) + log σ(b) + log σ(−a), which keeps its digits and its
    gradients where both sigmoids are 0 or 1. A rounding of μ moves it by up to 6e-8·max(1, |μ|)/s.

    Args:
        x: (B, *event): uint8 levels 0 … 255, or floating-point multiples of 1/255 in [0, 1], which
            are rounded to levels. The dtype decides. Values are not checked.
        location: μ, (B, *event) or (S, B, *event), where [−1, 1] are the levels.
        log_scale: log s, broadcasts to the shape of location; below −70 it counts as −70.

    Returns:
        (B,) or (S, B), float32 (float64 for float64 parameters). Gradients flow to both parameters,
        not to x.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    op = "discretized_logistic_log_prob"
    check_rows(op, x, LEVELS, WANTED)
    check_parameter(op, "location", location, x)
    check_broadcast(op, "log_scale", log_scale, "location", location)
    dtype = wide(location, log_scale)
    return sum_last(log_level(level(x, dtype), location, log_scale), x.dim() - 1)


@dataclass(frozen=True, eq=False)
class DiscretizedLogistic:
    """p(x|z) of independent discretised logistics; see `discretized_logistic_log_prob`."""

    location: Tensor
    log_scale: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Likelihood`."""
        return discretized_logistic_log_prob(x, self.location, self.log_scale)

    @property
    def mean(self) -> Tensor:
        """E[x|z] of x in [0, 1], of the shape of location: 255 sigmoids an element."""
        return mean_level(self.location, self.log_scale)

    def row_dims(self) -> Mapping[str, int]:
        """See `Likelihood`."""
        return dict.fromkeys(("location", "log_scale"), self.location.dim())


def level(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Levels 0 … 255 as floating-point numbers."""
    return x.to(dtype) if x.dtype == torch.uint8 else (x.detach().to(dtype) * 255.0).round()


def log_level(level: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """log p of a level, elementwise."""
    dtype = level.dtype
    location, log_scale = location.to(dtype), log_scale.to(dtype).clamp(min=LEAST_LOG_SCALE)
    precision, shift = torch.exp(-log_scale) / 255.0, 255.0 * location
    above = (2.0 * level - 254.0 - shift) * precision  # b; 2·level is exact
    below = (2.0 * level - 256.0 - shift) * precision  # a
    first, last = level < 0.5, level > 254.5
    return (
        torch.where(last, 0.0, F.logsigmoid(above))
        + torch.where(first, 0.0, F.logsigmoid(-below))
        + torch.where(first | last, 0.0, _log_one_minus_exp(LOG_WIDTH - log_scale))
    )


def _log_one_minus_exp(t: Tensor) -> Tensor:
    """log(1 − exp(−e^t)) for every t (Mächler, "Accurately computing log(1 − exp(−|a|))", 2012).

    A branch gets arguments where it holds alone, so that its gradient is 0 elsewhere and not NaN.
    """
    width = torch.exp(t.clamp(-40.0, 70.0))
    below = width < math.log(2.0)
    narrow = torch.log(-torch.expm1(-torch.where(below, width, 0.5)))
    broad = torch.log1p(-torch.exp(-torch.where(below, 1.0, width)))
    # Below e⁻⁴⁰ the width itself is the answer, to 17 digits, and its exponential may underflow.
    return torch.where(t < -40.0, t, torch.where(below, narrow, broad))


def mean_level(location: Tensor, log_scale: Tensor) -> Tensor:
    """E[x|z] of x in [0, 1]: 1/255 Σ p(level ≥ j) over j from 1 to 255."""
    dtype = wide(location, log_scale)
    precision = torch.exp(-log_scale.to(dtype).clamp(min=LEAST_LOG_SCALE)) / 255.0
    bounds = torch.arange(-254.0, 255.0, 2.0, dtype=dtype, device=location.device)
    shift, total = 255.0 * location.to(dtype), torch.zeros_like(location, dtype=dtype)
    for block in bounds.split(BLOCK):
        total = total + torch.sigmoid((shift[..., None] - block) * precision[..., None]).sum(-1)
    return total / 255.0
