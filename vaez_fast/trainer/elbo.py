"""The negative ELBO of any model that encodes a batch and decodes z."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vaez_kernels import normal

from ..flows import log_standard_normal
from ..latents.gaussian import GaussianPosterior
from ..likelihoods import Gaussian, Likelihood, samples_apart
from ..objective import free_rate
from ..system.errors import ConfigError
from .posteriors import FamilyPosterior, wide
from .priors import StandardNormal

KLS = ("analytic", "total-derivative", "sticking-the-landing")


class Repeated(Mapping[str, Tensor]):
    """A batch whose rows are repeated for S samples of z, each entry when it is asked for."""

    def __init__(self, batch: Mapping[str, Tensor], samples: int) -> None:
        self.batch, self.samples = batch, samples

    def __getitem__(self, name: str) -> Tensor:
        return repeated(self.batch[name], self.samples)

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch)

    def __len__(self) -> int:
        return len(self.batch)


def repeated(x: Tensor, samples: int) -> Tensor:
    """x (B, …) → (S·B, …), the samples of z one after the other."""
    return x.expand(samples, *x.shape).flatten(0, 1)


class Elbo(nn.Module):
    """β·rate + distortion of a model, in nats (Kingma & Welling 2014, equation 3).

    Args:
        model: its `encode(batch)` returns a `Gaussian` or another posterior, and its
            `decode(z, batch)`, or `decode(z)`, a likelihood. With S samples of z, `decode` gets
            their S·B rows at once, and a batch whose rows are repeated.
        prior: a module with `log_prob(z)`; trained with the model.
        kl: "analytic", or "total-derivative" or "sticking-the-landing", which are Monte Carlo
            means over the samples of z; None takes "analytic" where it exists, else
            "total-derivative".
        num_samples: S.
        free_bits: nats that each latent costs at least (Kingma et al. 2016, appendix C.8); needs
            the analytic KL of a `Gaussian`.
        target: the entry of a batch that the likelihood scores; the first by default.

    Raises:
        ConfigError: an unknown kl, or a model without `encode` and `decode`.
    """

    trains: tuple[str, ...] | None = None
    beta = 1.0

    def __init__(
        self,
        model: nn.Module,
        prior: nn.Module,
        kl: str | None = None,
        num_samples: int = 1,
        free_bits: float = 0.0,
        target: str | None = None,
    ) -> None:
        super().__init__()
        if kl is not None and kl not in KLS:
            raise ConfigError(f"kl must be one of {', '.join(KLS)} or None, got {kl!r}")
        for method in ("encode", "decode"):
            if not callable(getattr(model, method, None)):
                raise ConfigError(
                    f"model must have a method {method}: encode(batch) returns a posterior, "
                    f"decode(z, batch) a likelihood; {type(model).__name__} has none"
                )
        if not callable(getattr(prior, "log_prob", None)):
            raise ConfigError(f"prior must have a method log_prob, got {type(prior).__name__}")
        self.model, self.prior = model, prior
        self.kl, self.num_samples, self.free_bits, self.target = kl, num_samples, free_bits, target
        takes = inspect.signature(model.decode).parameters  # type: ignore[arg-type]
        needed = [n for n, p in takes.items() if p.default is p.empty or n == "batch"]
        self.decodes_batch = len(needed) > 1

    def forward(self, batch: Any, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """A batch of B rows, noise (2,) int64 → rate (B,), distortion (B,), in nats."""
        posterior = self.encode(batch)
        with _no_autocast(noise):
            z, rate = self._draw(posterior, noise, row_offset)
        return rate, -self.log_likelihood(z, batch).mean(0)

    def encode(self, batch: Any) -> Any:
        """q(z|x).

        Raises:
            TypeError: the model returns something else.
        """
        posterior = self.model.encode(batch)  # type: ignore[operator]
        if not isinstance(posterior, Gaussian) and not hasattr(posterior, "transform"):
            raise TypeError(
                "model.encode must return a posterior, such as vaez_fast.Gaussian(mu, logvar), got "
                f"{type(posterior).__name__}"
            )
        return posterior

    def scored(self, batch: Any) -> Tensor:
        """The entry that the likelihood scores, (B, *event).

        Raises:
            ConfigError: `target` names no entry.
        """
        if isinstance(batch, Tensor):
            return batch
        name = next(iter(batch)) if self.target is None else self.target
        if name not in batch:
            raise ConfigError(f"target must name an entry, one of {', '.join(batch)}, got {name!r}")
        return batch[name]

    def log_likelihood(self, z: Tensor, batch: Any) -> Tensor:
        """log p(x|z) in nats: z (S, B, …) → (S, B).

        Raises:
            TypeError: the model's `decode` returns no likelihood.
        """
        samples, flat = len(z), z.flatten(0, 1)
        if not self.decodes_batch:
            likelihood = self.model.decode(flat)  # type: ignore[operator]
        else:
            several = batch
            if samples > 1:
                bare = isinstance(batch, Tensor)
                several = repeated(batch, samples) if bare else Repeated(batch, samples)
            likelihood = self.model.decode(flat, several)  # type: ignore[operator]
        if not callable(getattr(likelihood, "log_prob", None)):
            raise TypeError(
                "model.decode must return a likelihood, such as vaez_fast.Bernoulli(logits), got "
                f"{type(likelihood).__name__}"
            )
        with _no_autocast(z):
            apart: Likelihood = samples_apart(likelihood, samples)
            return apart.log_prob(self.scored(batch))

    def draw(
        self, posterior: Any, noise: Tensor, samples: int, **offsets: int
    ) -> tuple[Tensor, Tensor]:
        """z (S, B, …) and log q(z|x) (S, B) in nats, both with gradients (total derivative)."""
        gaussian = isinstance(posterior, Gaussian)
        shape = (posterior.mean if gaussian else posterior.mu).shape
        eps = normal(noise, samples, shape[0], shape[1:].numel(), **offsets)
        if not gaussian:
            return posterior.transform(eps)
        mu, logvar = _moments(posterior)
        eps = eps.view(samples, *shape)
        z = mu + torch.exp(0.5 * logvar) * eps
        behind = tuple(range(2, z.dim()))
        log_q = log_standard_normal(eps.flatten(2)) - 0.5 * logvar.expand(z.shape).sum(behind)
        return z, log_q

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) in nats: z (S, B, …) → (S, B)."""
        return self.prior.log_prob(z.flatten(2))  # type: ignore[operator]

    def _draw(self, posterior: Any, noise: Tensor, row_offset: int) -> tuple[Tensor, Tensor]:
        # → z (S, B, …), rate (B,)
        plain = isinstance(self.prior, StandardNormal)
        gaussian = isinstance(posterior, Gaussian)
        full = isinstance(posterior, FamilyPosterior) and posterior.has_analytic_kl
        kl = self.kl or ("analytic" if plain and (gaussian or full) else "total-derivative")
        if kl == "analytic" and not (plain and (gaussian or full)):
            raise ConfigError(
                "kl 'analytic' exists for a Gaussian posterior and the prior StandardNormal; "
                "'total-derivative' takes any"
            )
        if self.free_bits > 0 and not (kl == "analytic" and gaussian):
            raise ConfigError("free_bits needs a Gaussian posterior and kl 'analytic'")
        if gaussian and plain:
            q = GaussianPosterior(_moments(posterior))
            z, rate = q.sample_kl(noise, self.num_samples, kl, row_offset=row_offset)
            if self.free_bits > 0:
                logvar = q.logvar.expand(q.mu.shape)
                rate = free_rate(q.mu.flatten(1), logvar.flatten(1), self.free_bits)
            return z, rate
        z, log_q = self.draw(posterior, noise, self.num_samples, row_offset=row_offset)
        if kl == "analytic":
            return z, posterior.kl_standard_normal()
        if kl == "sticking-the-landing":
            if not gaussian:
                raise ConfigError("kl 'sticking-the-landing' needs a Gaussian posterior")
            # q's parameters are constants here, so that log q depends on them through z alone.
            mu, logvar = (x.detach() for x in _moments(posterior))
            eps = (z - mu) * torch.exp(-0.5 * logvar)
            halved = 0.5 * logvar.expand(mu.shape).flatten(1).sum(1)
            log_q = log_standard_normal(eps.flatten(2)) - halved
        return z, (log_q - self.log_prior(z)).mean(0)


def _moments(posterior: Gaussian) -> tuple[Tensor, Tensor]:
    # At least float32: under autocast an encoder returns bfloat16.
    mu, logvar = wide(posterior.mean), posterior.logvar
    return mu, wide(logvar) if isinstance(logvar, Tensor) else torch.full_like(mu, logvar)


def _no_autocast(like: Tensor) -> torch.autocast:
    """A block in which sums and densities are of the dtypes that they are given."""
    return torch.autocast(like.device.type, enabled=False)
