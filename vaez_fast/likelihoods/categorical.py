"""Categorical elements: each is one of K classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import check_parameter, check_rows, sum_last, wide

OP = "categorical_log_prob"
CLASSES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def categorical_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """log p(x|z) = Σ (l_x − log Σ_k exp(l_k)) in nats.

    Args:
        x: (B, *event), an integer dtype, with classes 0 … K − 1. Values are not checked; PyTorch
            refuses a class outside on a CPU, and stops with an assertion on a GPU.
        logits: (B, *event, K) or (S, B, *event, K), float32, bfloat16, float16 or float64.

    Returns:
        (B,) or (S, B), float32 (float64 for float64 logits). Gradients flow to logits.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    check_rows(OP, x, CLASSES, "of an integer dtype")
    check_parameter(OP, "logits", logits, x, own=("K",))
    log_p = torch.log_softmax(logits.to(wide(logits)), -1)
    chosen = x.long()[..., None].expand(*logits.shape[:-1], 1)
    return sum_last(log_p.gather(-1, chosen)[..., 0], x.dim() - 1)


@dataclass(frozen=True, eq=False)
class Categorical:
    """p(x|z) of independent categorical elements; see `categorical_log_prob`."""

    logits: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Likelihood`."""
        return categorical_log_prob(x, self.logits)

    @property
    def mean(self) -> Tensor:
        """The mean number of the class, of the shape of x: of use where classes are ordered, as
        grey levels are.
        """
        p = torch.softmax(self.logits.to(wide(self.logits)), -1)
        return (p * torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)).sum(-1)

    def row_dims(self) -> Mapping[str, int]:
        """See `Likelihood`."""
        return {"logits": self.logits.dim()}
