"""Samples z and the KL of q(z|x) = N(mu, exp(logvar)), with one pair of kernels.

Latents have any shape (B, *event): (B, D), images (B, C, H, W), video (B, C, T, H, W). Contiguous
tensors, halves of a tensor (`chunk(2, dim=1)`), channels-last tensors and broadcast ones are read
as they lie in memory. z has the memory format of mu. The noise of an element depends on its
position in the contiguous event, so no memory format changes a number.

Constexpr flags say whether z is written and which KL is summed. Rows are independent, so the
results for a data point do not depend on its batch. The kernels compute in float32 for every input
dtype.

Arguments that several functions share:

- mu: (B, *event) float32, bfloat16 or float16; float64 takes the fallback.
- logvar: of any of these dtypes and of any shape that broadcasts to mu's: (B, *event), a scalar,
  (D,), or (C, 1, 1) for one of each channel. float64 only together with float64.
- noise: (2,) int64 on mu's device, from `noise_key`.
- num_samples: S ≥ 1.
- clamp: (low, high), to which logvar is clamped first; None for no clamp. The gradient is zero
  outside, and passes at the bounds themselves.
- reduce: what happens to the KL of each element. "sum": over the event, (B,). "channels": over all
  dimensions but the first of the event, (B, C). "none": (B, *event). "batch-mean": the mean over
  the batch, (*event).
- free_bits: nats that each element costs at least (Kingma et al. 2016, section 3 and appendix C.8):
  the KL of an element is max(free_bits, KL), so it has no gradient below. For the analytic KL only.
  For free bits of the batch's mean, clamp the result of "batch-mean".
- row_offset: the global index of row 0, for a batch that is split over calls or ranks.
- sample_offset: the index of sample 0, for samples that are streamed in chunks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_count, check_device, check_float, check_noise
from ..define import Op
from ..noise import check_offsets
from . import kernel, twin
from .formulas import MONTE_CARLO
from .twin import KLS, REDUCTIONS, Arguments

Prior = tuple[Tensor, Tensor]
# The default of `free_bits` is an integer: torch.compile(dynamic=True) would make a float variable,
# and compile twice.


def _unasked(a: Arguments) -> tuple[int, ...]:
    return (*(() if a.write_z else (0,)), *((1,) if a.kl == "none" else ()))


_latent = Op(
    "latent",
    kernel,
    twin,
    forward=(kernel.latent_forward_kernel,),
    backward=(kernel.latent_backward_kernel,),
    results=("z", "kl"),
    kept=("eps",),
    differentiable=4,
    unasked=_unasked,
)


def _run(
    op: str,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None = None,
    num_samples: int = 1,
    *,
    write_z: bool = False,
    kl: str = "none",
    prior: Prior | None = None,
    clamp: tuple[float, float] | None = None,
    reduce: str = "sum",
    free_bits: float = 0,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> Any:
    """z and the KL after all checks; `noise` is not checked if nothing is sampled."""
    _check_mu(op, mu)
    logvar = _like_mu(op, "logvar", logvar, mu)
    prior_mu, prior_logvar = _checked_prior(op, prior, mu)
    if write_z or kl in MONTE_CARLO:
        check_noise(op, noise, mu.device)  # type: ignore[arg-type]
        check_count(op, "num_samples", num_samples, least=1)
        check_offsets(op, num_samples, row_offset, sample_offset)
    check_choice(op, "reduce", reduce, REDUCTIONS)
    low, high = _checked_clamp(op, clamp)
    _check_free_bits(op, free_bits, kl)
    return _latent(
        *(mu, logvar, prior_mu, prior_logvar, noise, num_samples, write_z, kl, reduce),
        *(low, high, float(free_bits), row_offset, sample_offset),
    )


def _check_mu(op: str, mu: Tensor) -> None:
    check_float(op, "mu", mu)
    if mu.dim() < 2:
        raise ValueError(
            f"{op}: mu must have shape (B, D), or (B, …) for other events, got {tuple(mu.shape)}"
        )
    size = math.prod(mu.shape[1:])
    if size == 0:
        raise ValueError(f"{op}: mu must have at least one column, got {tuple(mu.shape)}")
    if size >= 2**31:
        raise ValueError(f"{op}: mu must have less than 2³¹ columns, got {tuple(mu.shape)}")


def _like_mu(op: str, name: str, value: Tensor, mu: Tensor) -> Tensor:
    """`value`, broadcast to mu's shape."""
    check_float(op, name, value)
    if (value.dtype == torch.float64) != (mu.dtype == torch.float64):
        raise TypeError(
            f"{op}: {name} must be float64 if and only if mu is, got {value.dtype} and mu of "
            f"{mu.dtype}"
        )
    check_device(op, name, value, "mu", mu)
    if value.shape == mu.shape:
        return value
    try:
        return value.expand(mu.shape)
    except RuntimeError:
        raise ValueError(
            f"{op}: {name} must have mu's shape {tuple(mu.shape)} or broadcast to it, "
            f"got {tuple(value.shape)}"
        ) from None


def _checked_prior(
    op: str, prior: Prior | None, mu: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    if prior is None:
        return None, None
    if not isinstance(prior, (tuple, list)) or len(prior) != 2:
        raise TypeError(f"{op}: prior must be a pair (mu, logvar), got {type(prior).__name__}")
    return _like_mu(op, "prior's mu", prior[0], mu), _like_mu(op, "prior's logvar", prior[1], mu)


def _checked_clamp(op: str, clamp: tuple[float, float] | None) -> tuple[float, float]:
    if clamp is None:
        return -math.inf, math.inf
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        raise TypeError(f"{op}: clamp must be a pair (low, high), got {clamp!r}")
    low, high = (float(bound) for bound in clamp)
    if not low <= high:
        raise ValueError(f"{op}: clamp must have low ≤ high, got {clamp!r}")
    return low, high


def _check_free_bits(op: str, free_bits: float, kl: str) -> None:
    if not 0.0 <= free_bits < math.inf:
        raise ValueError(f"{op}: free_bits must be finite and at least 0, got {free_bits!r}")
    if free_bits > 0.0 and kl != "analytic":
        raise ValueError(f'{op}: free_bits need kl="analytic", got kl={kl!r}')


def rsample(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    num_samples: int = 1,
    *,
    clamp: tuple[float, float] | None = None,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    """Reparameterised samples z = mu + exp(logvar/2)·eps (Kingma & Welling 2014, equation 10).

    eps is `normal(noise, S, B, D)` for the D elements of an event: the same numbers on every device
    and backend, in forward and backward, for any S, any B and any memory format.

    Args:
        mu, logvar, noise, num_samples, clamp, row_offset, sample_offset: see `vaez_kernels.latent`.

    Returns:
        z (S, B, *event) in mu's dtype and memory format. Gradients flow to mu and logvar, in their
        dtypes; there is no second derivative. NaN and infinity propagate; B = 0 gives an empty
        result.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range.
    """
    z: Tensor = _run(
        *("rsample", mu, logvar, noise, num_samples),
        write_z=True,
        clamp=clamp,
        row_offset=row_offset,
        sample_offset=sample_offset,
    )[0]
    return z


def kl_standard_normal(
    mu: Tensor,
    logvar: Tensor,
    *,
    clamp: tuple[float, float] | None = None,
    reduce: str = "sum",
    free_bits: float = 0,
) -> Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, I)) in nats, ½ Σ (mu² + exp(logvar) − 1 − logvar).

    Kingma & Welling 2014, appendix B. The KL and its gradient stay accurate where training ends:
    their relative error is below 1e-5 down to a KL of 1e-8.

    Args:
        mu, logvar, clamp, reduce, free_bits: see `vaez_kernels.latent`.

    Returns:
        float32 (float64 for float64 inputs), of shape (B,) unless `reduce` says otherwise.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range.
    """
    kl: Tensor = _run(
        *("kl_standard_normal", mu, logvar),
        kl="analytic",
        clamp=clamp,
        reduce=reduce,
        free_bits=free_bits,
    )[1]
    return kl


def kl_normal(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    *,
    clamp: tuple[float, float] | None = None,
    reduce: str = "sum",
    free_bits: float = 0,
) -> Tensor:
    """KL(q ‖ p) of two diagonal Gaussians in nats.

    With d = (mu − prior_mu)·exp(−prior_logvar/2) and r = logvar − prior_logvar it is
    ½ Σ (d² + exp(r) − 1 − r).

    Args:
        prior_mu, prior_logvar: p, of any shapes that broadcast to mu's. Gradients flow to them,
            too.
        mu, logvar, clamp, reduce, free_bits: see `vaez_kernels.latent`. The clamp is of q's logvar.

    Returns:
        float32 (float64 for float64 inputs), of shape (B,) unless `reduce` says otherwise.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range.
    """
    kl: Tensor = _run(
        *("kl_normal", mu, logvar),
        kl="analytic",
        prior=(prior_mu, prior_logvar),
        clamp=clamp,
        reduce=reduce,
        free_bits=free_bits,
    )[1]
    return kl


def kl_standard_normal_mc(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    num_samples: int = 1,
    estimator: str = "total-derivative",
    *,
    clamp: tuple[float, float] | None = None,
    reduce: str = "sum",
    row_offset: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    """Monte Carlo KL: the mean over S samples of log q(z|x) − log p(z), in nats.

    Args:
        estimator: the gradient. "total-derivative" differentiates everything.
            "sticking-the-landing" keeps only the path derivative, without the score term (Roeder et
            al. 2017, equation 8): the value is the same, and the gradient has no variance where
            q = p.
        mu, logvar, noise, num_samples, clamp, reduce, row_offset, sample_offset: see
            `vaez_kernels.latent`.

    Returns:
        float32 (float64 for float64 inputs), of shape (B,) unless `reduce` says otherwise.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range.
    """
    op = "kl_standard_normal_mc"
    check_choice(op, "estimator", estimator, MONTE_CARLO)
    kl: Tensor = _run(
        *(op, mu, logvar, noise, num_samples),
        kl=estimator,
        clamp=clamp,
        reduce=reduce,
        row_offset=row_offset,
        sample_offset=sample_offset,
    )[1]
    return kl


def rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    num_samples: int = 1,
    kl: str = "analytic",
    *,
    prior: Prior | None = None,
    clamp: tuple[float, float] | None = None,
    reduce: str = "sum",
    free_bits: float = 0,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """`rsample` and a KL in one pass over mu and logvar.

    Args:
        kl: "analytic" (`kl_standard_normal`), or an estimator of `kl_standard_normal_mc`, which
            then uses the same noise as z.
        prior: (mu, logvar) of the diagonal Gaussian p in KL(q ‖ p), of shapes that broadcast to
            mu's, as for `kl_normal`; gradients flow to both. None for N(0, I).
        mu, logvar, noise, num_samples, clamp, reduce, free_bits, row_offset, sample_offset: see
            `vaez_kernels.latent`.

    Returns:
        z (S, B, *event) in mu's dtype and memory format, and the KL in float32 nats (float64 for
        float64 inputs), of shape (B,) unless `reduce` says otherwise.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range.
    """
    check_choice("rsample_kl", "kl", kl, KLS[1:])
    z, kl_terms = _run(
        *("rsample_kl", mu, logvar, noise, num_samples),
        write_z=True,
        kl=kl,
        prior=prior,
        clamp=clamp,
        reduce=reduce,
        free_bits=free_bits,
        row_offset=row_offset,
        sample_offset=sample_offset,
    )
    return z, kl_terms


__all__ = ["kl_normal", "kl_standard_normal", "kl_standard_normal_mc", "rsample", "rsample_kl"]
