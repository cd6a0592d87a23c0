"""The last layer of a decoder and the Bernoulli log-likelihood of its logits, in one op.

The S·B·P logits are the largest tensor of a VAE. Here they are never in memory as a whole: they
stay in registers (CUDA) or in a tile that fits in a cache (CPU). Backward computes them again, and
keeps a chunk of their gradients that fits in a cache.
"""

from __future__ import annotations

from torch import Tensor

from ..checks import check_choice, check_device, check_float, check_targets
from ..define import Op
from . import kernel, product, twin

PRECISIONS = ("float32", "tf32", "bfloat16")

# The fallback is opaque to compilers: inlined into a larger graph, it would write logits to memory.
_linear_bernoulli = Op(
    "linear_bernoulli",
    kernel,
    twin,
    forward=(kernel.linear_bernoulli_forward_kernel, product.linear_bernoulli_sum_kernel),
    backward=(
        kernel.linear_bernoulli_residual_kernel,
        product.linear_bernoulli_product_kernel,
        product.linear_bernoulli_sum_kernel,
    ),
    differentiable=4,
    opaque=twin.like_the_result,
)


def _check(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str) -> None:
    op = "linear_bernoulli_log_prob"
    named = (("hidden", hidden), ("weight", weight), ("bias", bias), ("x", x))
    for name, value in named[:3]:
        check_float(op, name, value)
    check_targets(op, x)
    if weight.dtype != hidden.dtype:
        raise TypeError(f"{op}: weight must have hidden's dtype {hidden.dtype}, got {weight.dtype}")
    if hidden.dim() != 3:
        raise ValueError(f"{op}: hidden must have shape (S, B, H), got {tuple(hidden.shape)}")
    if hidden.shape[0] == 0 or hidden.shape[2] == 0:
        raise ValueError(
            f"{op}: hidden must have at least one sample and unit, got {tuple(hidden.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[2] or weight.shape[0] == 0:
        raise ValueError(
            f"{op}: weight must have shape (P, H) with P ≥ 1 and H = {hidden.shape[2]}, "
            f"got {tuple(weight.shape)}"
        )
    pixels = weight.shape[0]
    if tuple(bias.shape) != (pixels,):
        raise ValueError(f"{op}: bias must have shape (P,) = ({pixels},), got {tuple(bias.shape)}")
    if x.shape != (hidden.shape[1], pixels):
        raise ValueError(
            f"{op}: x must have shape (B, P) = {(hidden.shape[1], pixels)}, got {tuple(x.shape)}"
        )
    for name, value in named[1:]:
        check_device(op, name, value, "hidden", hidden)
    check_choice(op, "precision", precision, PRECISIONS)


def linear_bernoulli_log_prob(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str = "float32"
) -> Tensor:
    """log p(x|z) in nats from a decoder's last hidden layer: Σ_P x·l − softplus(l), l = hWᵀ + b.

    The same as `bernoulli_log_prob(hidden @ weight.T + bias, x)`, but the logits are never stored
    as a whole: forward and backward compute them a tile at a time. On CUDA, backward needs 32 MiB
    (or 128 rows of logits, if these are more) beyond its results, float32 sums of a few times the
    weights' size or a few MiB, and a copy of hidden units whose rows have no common distance.
    Compiled for open sizes, it has graphs of its own for each number of such chunks.

    Args:
        hidden: (S, B, H) float32, bfloat16 or float16 of any strides; float64 takes the fallback.
        weight: (P, H) in hidden's dtype, of any strides.
        bias: (P,) of any floating-point dtype; it is added in float32.
        x: (B, P) targets, the same for all S samples, of any strides: uint8 or bool with values 0
            and 1, or float32, bfloat16, float16 or float64 in [0, 1]. Values are not checked.
        precision: how float32 operands are multiplied: "float32"; "tf32" on a GPU's tensor cores
            (elsewhere float32); or "bfloat16". Operands of other dtypes are multiplied in their own
            dtype (on a CPU, float16 as float32). Sums are float32. On a CPU, the results of
            bfloat16 products (logits and the gradients of a tile) are rounded to bfloat16.

    Returns:
        (S, B) float32 (float64 for float64). Gradients flow to hidden, weight, bias and a
        floating-point x, in their dtypes. Their products use the same precision (x's use float32).
        There is no second derivative. NaN and infinity propagate as in `bernoulli_log_prob`. B = 0
        gives an empty result.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or value.
    """
    _check(hidden, weight, bias, x, precision)
    log_prob: Tensor = _linear_bernoulli(hidden, weight, bias, x, precision)
    return log_prob


__all__ = ["linear_bernoulli_log_prob"]
