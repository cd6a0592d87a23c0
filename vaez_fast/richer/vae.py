"""A VAE whose posterior or prior is richer than a diagonal Gaussian and N(0, I)."""

from __future__ import annotations

import torch
from torch import Tensor

from vaez_kernels import normal, rsample

from ..model import VAE, Architecture
from ..names import POSTERIORS, PRIORS
from ..system.errors import ConfigError
from .posteriors import Diagonal, FullCovariance, InverseAutoregressive, Posterior
from .priors import Flow, Law, Mixture, Prior, StandardNormal, Vamp


class RicherVAE(VAE):
    """q(z|x) of a family, p(z) of a kind, and p(x|z) as in `VAE`.

    Encoder and decoder start with the weights that a `VAE` of the same seed has.

    Args:
        model, seed: as for `VAE`.
        posterior: one of `names.POSTERIORS`.
        prior: one of `names.PRIORS`; "vamp" needs the diagonal posterior.

    Raises:
        TypeError, ValueError: an unknown name, or two that do not go together.
    """

    posterior: Posterior
    prior: Prior

    def __init__(
        self,
        model: str | Architecture,
        posterior: str = "diagonal",
        prior: str = "standard-normal",
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed)
        for name, value, known in (("posterior", posterior, POSTERIORS), ("prior", prior, PRIORS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if prior == "vamp" and posterior != "diagonal":
            raise ValueError(f"prior 'vamp' needs posterior diagonal, got {posterior!r}")
        latent, hidden = self.architecture.latent, self.architecture.hidden[-1]
        self.posterior_name, self.prior_name = posterior, prior
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.posterior = _posterior(posterior, latent, hidden)
            self.prior = _prior(prior, latent, seed)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As for `VAE`, if q(z|x) is a diagonal Gaussian.

        Raises:
            ConfigError: it is not, so mu and logvar would not describe it.
        """
        if self.posterior_name != "diagonal":
            raise ConfigError(
                "only a diagonal Gaussian q(z|x) has a mu and logvar to measure, and this model's "
                f"posterior is {self.posterior_name}"
            )
        return super().encode(x)

    def parameters_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, 784) in [0, 1] → the parameters of q(z|x): mu, logvar (B, D) and the family's own.

        The first dimension of each is the image.
        """
        hidden = self.encoder[:-1](x)
        return (*self.gaussian(self.encoder[-1](hidden)), *self.posterior.added(hidden))

    def law(self) -> Law:
        """p(z) with the current weights."""
        return self.prior.law(self.encode)


def build(
    model: str | Architecture,
    posterior: str = "diagonal",
    prior: str = "standard-normal",
    seed: int = 0,
) -> VAE:
    """The model of a run: a plain `VAE` if posterior and prior are the usual ones.

    Raises:
        TypeError, ValueError: as for `RicherVAE`.
    """
    if (posterior, prior) == ("diagonal", "standard-normal"):
        return VAE(model, seed)
    return RicherVAE(model, posterior, prior, seed)


def codes(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """One z of q(z|x) for each image, whatever the family: x (B, 784), noise (2,) → (B, D)."""
    if not isinstance(vae, RicherVAE):
        return rsample(*vae.encode(x), noise)[0]
    parameters = vae.parameters_of(x)
    return vae.posterior.transform(normal(noise, 1, *parameters[0].shape), *parameters)[0][0]


def _posterior(name: str, latent: int, hidden: int) -> Posterior:
    if name == "full-covariance":
        return FullCovariance(latent, hidden)
    return InverseAutoregressive(latent, hidden) if name == "iaf" else Diagonal()


def _prior(name: str, latent: int, seed: int) -> Prior:
    if name == "mixture":
        return Mixture(latent)
    if name == "vamp":
        return Vamp()
    return Flow(latent, seed) if name == "flow" else StandardNormal(latent)
