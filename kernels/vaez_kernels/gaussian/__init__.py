"""Log-likelihood of x under a diagonal Gaussian with given mean and log-variance."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_float, check_like, check_no_gradient, check_pixels, check_targets
from ..define import Op
from . import kernel, twin

_gaussian = Op(
    "gaussian",
    kernel,
    twin,
    forward=(kernel.gaussian_forward_kernel,),
    backward=(kernel.gaussian_backward_kernel,),
    differentiable=2,
)


def _check(mean: Tensor, logvar: Tensor, x: Tensor) -> None:
    op = "gaussian_log_prob"
    check_float(op, "mean", mean)
    check_float(op, "logvar", logvar)
    check_targets(op, x)
    check_pixels(op, "mean", mean, x)
    check_like(op, "logvar", logvar, "mean", mean)
    check_no_gradient(op, "x", x, "it")


def gaussian_log_prob(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    """log p(x|z) in nats, −½ Σ_P ((x − mean)²·exp(−logvar) + logvar + ln 2π).

    Kingma & Welling 2014, appendix C.2.

    Args:
        mean, logvar: (S, B, P) float32, bfloat16 or float16 of any strides; float64 takes the
            fallback.
        x: (B, P), the same for all S samples, of any strides: uint8, bool, float32, bfloat16,
            float16 or float64. No gradient flows to it.

    Returns:
        (S, B) float32 (float64 for float64 mean). Gradients flow to mean and logvar, in their
        dtype; there is no second derivative. NaN and infinity propagate as in the formula. Below a
        logvar of −177, 1/σ overflows in float32, and x = mean gives NaN. B = 0 gives an empty
        result.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device, or x requires a
            gradient.
    """
    _check(mean, logvar, x)
    log_prob: Tensor = _gaussian(mean, logvar, x)
    return log_prob


__all__ = ["gaussian_log_prob"]
