"""Log-density of a mixture of diagonal Gaussians: the aggregate posterior of a VAE.

Scores are computed in tiles and not stored; only a running maximum and a running sum of
exponentials are kept (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
Squares are computed from differences. The expanded square, a matrix product, would lose most digits
by cancellation where σ is small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import is_plain
from ..checks import check_device, check_indices, check_latent, check_no_gradient, check_tensor
from ..define import Op
from . import combine, kernel, prepare, twin

# The fallback is opaque to compilers, because it loops over a variable number of tiles.
_mixture = Op(
    "mixture",
    kernel,
    twin,
    forward=(
        prepare.mixture_prepare_kernel,
        kernel.mixture_forward_kernel,
        combine.mixture_log_prob_kernel,
    ),
    backward=(
        prepare.mixture_prepare_kernel,
        kernel.mixture_backward_kernel,
        combine.mixture_gradient_kernel,
    ),
    results=("log_q",),
    kept=("top", "total"),
    differentiable=1,
    opaque=twin.like_the_results,
)


def _check(z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None) -> None:
    op = "mixture_log_prob"
    check_latent(op, mu, logvar, rows="N")
    components, columns = mu.shape
    check_tensor(op, "z", z)
    if z.dtype != mu.dtype:
        raise TypeError(f"{op}: z must have mu's dtype {mu.dtype}, got {z.dtype}")
    if z.dim() != 2 or z.shape[1] != columns:
        raise ValueError(
            f"{op}: z must have shape (M, D) with D = {columns} as mu has, got {tuple(z.shape)}"
        )
    check_device(op, "z", z, "mu", mu)
    if components == 0:
        raise ValueError(f"{op}: mu must have at least one component, got {tuple(mu.shape)}")
    for name, value in (("mu", mu), ("logvar", logvar)):
        check_no_gradient(op, name, value, "the components")
    if leave_out is None:
        return
    check_tensor(op, "leave_out", leave_out)
    if leave_out.dtype != torch.int64:
        raise TypeError(f"{op}: leave_out must be int64, got {leave_out.dtype}")
    if leave_out.shape != z.shape[:1]:
        raise ValueError(
            f"{op}: leave_out must have shape (M,) = {tuple(z.shape[:1])}, "
            f"got {tuple(leave_out.shape)}"
        )
    check_device(op, "leave_out", leave_out, "mu", mu)
    if components < 2:
        raise ValueError(f"{op}: leave_out needs at least two components, got {components}")


def mixture_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None = None
) -> Tensor:
    """log q(z) in nats of the aggregate posterior, log 1/N Σ_n N(z; mu_n, diag exp(logvar_n)).

    The aggregate posterior is the mixture of a VAE's posteriors q(z|x_n) (Hoffman and Johnson,
    "ELBO surgery", 2016). On a CPU the error is within 1e-4 + 3e-7·|log q| of float64 for D = 128
    and σ from e⁻⁴ to 1. Scores are not stored. A CPU needs tens of MiB and a float64 copy of
    logvar. A GPU needs a float32 copy of the inputs, two in backward, where each program also needs
    8 KiB and 64 bytes a dimension (one program for 16 draws, or more if there are few draws).

    Args:
        z: (M, D) float32, bfloat16 or float16 of any strides; float64 takes the fallback.
        mu, logvar: (N, D) of z's dtype, N ≥ 1. No gradient flows to them.
        leave_out: (M,) int64, for each z a component that its mixture omits (the mean is over the
            N − 1 others; N ≥ 2). If z was drawn from component n, leaving n out gives the
            leave-one-out density. Indices are only checked on a CPU, where that does not
            synchronise. Elsewhere, and in compiled code, an index outside [0, N) omits no
            component, but the sum is still divided by N − 1.

    Returns:
        (M,) float32 (float64 for float64 inputs). Only z has a gradient, in its dtype:
        −Σ_n r_n (z − mu_n)/σ²_n, where r_n is the component's responsibility for z. There is no
        second derivative. NaN and infinity propagate as in the formula. M = 0 gives an empty
        result.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range, or mu or
            logvar requires a gradient.
    """
    _check(z, mu, logvar, leave_out)
    if leave_out is not None and leave_out.device.type == "cpu" and is_plain(leave_out):
        check_indices("mixture_log_prob", "leave_out", leave_out, len(mu))
    log_q: Tensor = _mixture(z, mu, logvar, leave_out)
    return log_q


__all__ = ["mixture_log_prob"]
