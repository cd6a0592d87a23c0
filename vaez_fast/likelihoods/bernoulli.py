"""Bernoulli elements: binary data, or grey values in [0, 1] that are taken as probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import bernoulli_log_prob as fused
from vaez_kernels.checks import FLOATS

from .shapes import check_parameter, check_rows, wide

OP = "bernoulli_log_prob"
TARGETS = (torch.uint8, torch.bool, *FLOATS)


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """log p(x|z) = Σ x·l − softplus(l) in nats, by the fused op `vaez_kernels.bernoulli_log_prob`.

    Kingma & Welling 2014, appendix C.1. The op's docstring states its errors.

    Args:
        x: (B, *event) uint8 or bool with values 0 and 1, or floating-point in [0, 1]. Values are
            not checked.
        logits: (B, *event) or (S, B, *event), float32, bfloat16, float16 or float64.

    Returns:
        (B,) or (S, B), float32 (float64 for float64 logits). Gradients flow to logits and to a
        floating-point x.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    check_rows(OP, x, TARGETS, "uint8, bool or floating-point")
    lead = check_parameter(OP, "logits", logits, x)
    rows, pixels = x.shape[0], math.prod(x.shape[1:])
    samples = logits.shape[0] if lead else 1
    log_prob = fused(logits.reshape(samples, rows, pixels), x.reshape(rows, pixels))
    return log_prob if lead else log_prob[0]


@dataclass(frozen=True, eq=False)
class Bernoulli:
    """p(x|z) of independent Bernoulli elements; see `bernoulli_log_prob`."""

    logits: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Likelihood`."""
        return bernoulli_log_prob(x, self.logits)

    @property
    def mean(self) -> Tensor:
        """σ(logits), of their shape."""
        return torch.sigmoid(self.logits.to(wide(self.logits)))

    def row_dims(self) -> Mapping[str, int]:
        """See `Likelihood`."""
        return {"logits": self.logits.dim()}
