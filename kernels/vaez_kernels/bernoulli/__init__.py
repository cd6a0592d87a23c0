"""Log-likelihood of pixels under independent Bernoulli distributions with given logits."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_float, check_pixels, check_targets
from ..define import Op
from . import kernel, twin

_bernoulli = Op(
    "bernoulli",
    kernel,
    twin,
    forward=(kernel.bernoulli_forward_kernel,),
    backward=(kernel.bernoulli_backward_kernel,),
    differentiable=2,
)


def _check(logits: Tensor, x: Tensor) -> None:
    op = "bernoulli_log_prob"
    check_float(op, "logits", logits)
    check_targets(op, x)
    check_pixels(op, "logits", logits, x)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x|z) in nats, Σ_P x·l − softplus(l), for independent Bernoulli pixels.

    Kingma & Welling 2014, appendix C.1. A pixel's ln(1 + e^−|l|) has an absolute error below 1.5e-7
    nats and a relative error below 3e-7 + 8e-8·|l|. The rest of the error is float32 rounding.

    Args:
        logits: (S, B, P) float32, bfloat16 or float16 of any strides; float64 takes the fallback.
        x: (B, P) targets, the same for all S samples, of any strides: uint8 or bool with values 0
            and 1, or float32, bfloat16, float16 or float64 in [0, 1]. Values are not checked.

    Returns:
        (S, B) float32 (float64 for float64 logits). Gradients flow to logits and to a
        floating-point x, in their dtype; there is no second derivative. NaN propagates. Infinity
        propagates as in x·l − softplus(l): 0·∞ and ∞ − ∞ are NaN. B = 0 gives an empty result.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    _check(logits, x)
    log_prob: Tensor = _bernoulli(logits, x)
    return log_prob


__all__ = ["bernoulli_log_prob"]
