"""The diagonal Gaussian q(z|x) of an encoder, for latents of any shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vaez_kernels import kl_normal, kl_standard_normal, rsample, rsample_kl
from vaez_kernels.checks import check_choice, check_float
from vaez_kernels.latent.twin import REDUCTIONS

from .noise import generator_key


class GaussianPosterior:
    """q(z|x) = N(mu, diag exp(logvar)) of a batch.

    Samples and KLs are the fused ops of `vaez_kernels.latent`; `nll` is plain PyTorch.

    Latents have any shape (B, *event) and memory format, and are read as they lie in memory. Where
    a method gets neither `noise` nor `generator`, PyTorch's own generator gives the key.

    Args:
        moments: an encoder's output (B, 2C, *spatial), whose halves along dimension 1 are mu and
            logvar; or the pair (mu, logvar), mu (B, *event) and logvar of a shape that broadcasts
            to mu's. float32, bfloat16, float16 or float64.
        clamp: (low, high), to which logvar is clamped, as (−30, 20) in diffusers; its gradient is
            zero outside. None for no clamp.

    Raises:
        TypeError, ValueError: moments of another type, dtype or shape, or a wrong clamp.
    """

    def __init__(
        self,
        moments: Tensor | tuple[Tensor, Tensor],
        *,
        clamp: tuple[float, float] | None = None,
    ) -> None:
        if isinstance(moments, Tensor):
            if moments.dim() < 2 or moments.shape[1] == 0 or moments.shape[1] % 2:
                raise ValueError(
                    "moments must have shape (B, 2C, …), its halves along dimension 1 being mu and "
                    f"logvar, got {tuple(moments.shape)}"
                )
            self.mu, self._logvar = moments.chunk(2, dim=1)
        else:
            self.mu, self._logvar = _pair(moments, "moments must be a tensor (B, 2C, …) or")
        _check(self.mu, self._logvar)
        if clamp is not None and not (isinstance(clamp, (tuple, list)) and len(clamp) == 2):
            raise TypeError(f"clamp must be a pair (low, high), got {clamp!r}")
        if clamp is not None and not clamp[0] <= clamp[1]:
            raise ValueError(f"clamp must have low ≤ high, got {clamp!r}")
        self.clamp = clamp

    @property
    def logvar(self) -> Tensor:
        """The logvar after the clamp, of its own shape."""
        return self._logvar if self.clamp is None else self._logvar.clamp(*self.clamp)

    @property
    def std(self) -> Tensor:
        """σ = exp(logvar/2)."""
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        """mu (B, *event)."""
        return self.mu

    def detach(self) -> GaussianPosterior:
        """The same distribution without a gradient, as one side of a balanced KL needs it."""
        return GaussianPosterior((self.mu.detach(), self._logvar.detach()), clamp=self.clamp)

    def sample(
        self,
        noise: Tensor | None = None,
        num_samples: int | None = None,
        *,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """A reparameterised sample: gradients flow to mu and logvar.

        Args:
            noise: (2,) int64 from `noise_key` or `Noise.next`.
            num_samples: S, for S samples instead of one.
            generator: gives the key if there is no `noise`: see `generator_key`.
            row_offset: the global index of row 0, for a batch that is split over calls or ranks.

        Returns:
            z (B, *event), or (S, B, *event), in mu's dtype and memory format.

        Raises:
            TypeError, ValueError: as `rsample`, or both `noise` and `generator`.
        """
        key, samples = self._key(noise, generator), 1 if num_samples is None else num_samples
        z = rsample(*(self.mu, self._logvar, key, samples), clamp=self.clamp, row_offset=row_offset)
        return z.squeeze(0) if num_samples is None else z

    def sample_kl(
        self,
        noise: Tensor | None = None,
        num_samples: int | None = None,
        kl: str = "analytic",
        *,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
        reduce: str = "sum",
        free_bits: float = 0,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """`sample` and the KL, in one pass over mu and logvar.

        Args:
            noise, num_samples, generator, row_offset: as for `sample`.
            kl: "analytic", or an estimator of `kl_standard_normal_mc` from the same samples.
            prior, reduce, free_bits: as for the method `kl`.

        Returns:
            z as from `sample`, and the KL in nats as from `kl`.

        Raises:
            TypeError, ValueError: as `rsample_kl`, or both `noise` and `generator`.
        """
        key, samples = self._key(noise, generator), 1 if num_samples is None else num_samples
        z, nats = rsample_kl(
            *(self.mu, self._logvar, key, samples, kl),
            prior=None if prior is None else _moments_of(prior, self.mu),
            clamp=self.clamp,
            reduce=reduce,
            free_bits=free_bits,
            row_offset=row_offset,
        )
        return (z.squeeze(0) if num_samples is None else z), nats

    def kl(
        self, prior: Prior | None = None, *, reduce: str = "sum", free_bits: float = 0
    ) -> Tensor:
        """KL(q ‖ p) in nats; gradients flow to the prior, too.

        Args:
            prior: p, None for N(0, I): another `GaussianPosterior`, a pair (mu, logvar), or a
                `Normal` or `Independent(Normal)` of torch.distributions; its shape may broadcast.
            reduce: "sum" over the event, (B,); "channels", over all dimensions behind the first of
                the event, (B, C); "none", (B, *event); "batch-mean", (*event).
            free_bits: nats that each element costs at least: see `vaez_kernels.latent`.

        Returns:
            float32, or float64 for float64 latents.

        Raises:
            TypeError, ValueError: as `kl_normal`, or a prior that is no diagonal Gaussian.
        """
        how = {"clamp": self.clamp, "reduce": reduce, "free_bits": free_bits}
        if prior is None:
            return kl_standard_normal(self.mu, self._logvar, **how)  # type: ignore[arg-type]
        return kl_normal(self.mu, self._logvar, *_moments_of(prior, self.mu), **how)  # type: ignore[arg-type]

    def nll(self, z: Tensor, *, reduce: str = "sum") -> Tensor:
        """−log q(z|x) in nats, ½ Σ (log 2π + logvar + (z − mu)² exp(−logvar)).

        Args:
            z: (B, *event), or (S, B, *event) for S samples.
            reduce: as for `kl`.

        Returns:
            float32 (float64 if q is) of the shape that `kl` has, with S first if z has it.

        Raises:
            TypeError, ValueError: z has another dtype than a floating-point one, or another shape.
        """
        check_float("GaussianPosterior.nll", "z", z)
        check_choice("GaussianPosterior.nll", "reduce", reduce, REDUCTIONS)
        event = self.mu.dim() - 1
        if z.shape[-event - 1 :] != self.mu.shape or z.dim() > event + 2:
            raise ValueError(
                f"nll: z must have mu's shape {tuple(self.mu.shape)}, or that of several samples "
                f"of it, got {tuple(z.shape)}"
            )
        mu, logvar, z = (
            x if self.mu.dtype == torch.float64 else x.float() for x in (self.mu, self.logvar, z)
        )
        distance = (z - mu) * torch.exp(-0.5 * logvar)
        terms = 0.5 * (math.log(2.0 * math.pi) + logvar + distance * distance)
        if reduce == "none":
            return terms
        if reduce == "batch-mean":
            return terms.mean(-event - 1)
        behind = event - 1 if reduce == "channels" else event
        return terms.sum(tuple(range(-behind, 0))) if behind else terms

    def as_distribution(self) -> Independent:
        """q as `Independent(Normal)`: batch shape (B,), the event's dimensions independent.

        `torch.distributions.kl_divergence` takes it together with any other of its kind.
        """
        normal = Normal(self.mu, self.std.expand(self.mu.shape), validate_args=False)
        return Independent(normal, self.mu.dim() - 1, validate_args=False)

    def _key(self, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if noise is None:
            return generator_key(generator, device=self.mu.device)
        if generator is not None:
            raise ValueError("noise and generator exclude each other, got both")
        return noise


Prior = GaussianPosterior | Normal | Independent | tuple[Tensor, Tensor]


def _check(mu: Tensor, logvar: Tensor) -> None:
    check_float("GaussianPosterior", "mu", mu)
    check_float("GaussianPosterior", "logvar", logvar)
    if (mu.dtype == torch.float64) != (logvar.dtype == torch.float64):
        raise TypeError(
            f"logvar must be float64 if and only if mu is, got {logvar.dtype} and mu of {mu.dtype}"
        )
    fits = logvar.dim() <= mu.dim() and all(
        one in (1, of_mu)
        for one, of_mu in zip(reversed(logvar.shape), reversed(mu.shape), strict=False)
    )
    if mu.dim() < 2 or not fits:
        raise ValueError(
            "mu must have shape (B, *event), and logvar must have mu's shape or broadcast to it, "
            f"got {tuple(mu.shape)} and {tuple(logvar.shape)}"
        )


def _pair(given: Any, wanted: str) -> tuple[Tensor, Tensor]:
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if not pair or not all(isinstance(x, Tensor) for x in given):
        raise TypeError(f"{wanted} a pair of tensors (mu, logvar), got {type(given).__name__}")
    return given[0], given[1]


def _moments_of(prior: Prior, mu: Tensor) -> tuple[Tensor, Tensor]:
    """mu and logvar of a prior of the q with this mu."""
    if isinstance(prior, GaussianPosterior):
        return prior.mu, prior.logvar
    if not isinstance(prior, Distribution):
        kinds = "a GaussianPosterior, a Normal, an Independent(Normal)"
        return _pair(prior, f"prior must be {kinds} or")
    base = prior.base_dist if isinstance(prior, Independent) else prior
    if not isinstance(base, Normal):
        raise TypeError(
            f"prior must be a diagonal Gaussian: a Normal or Independent(Normal), got {prior}"
        )
    # In bfloat16 the logarithm would lose digits that the scale has.
    wide = torch.float64 if mu.dtype == torch.float64 else torch.float32
    return base.loc.to(wide), 2.0 * torch.log(base.scale.to(wide))
