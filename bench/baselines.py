"""What a user writes without us: textbook PyTorch, eager."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.utils.data import DataLoader, TensorDataset

from vaez_fast.data import PIXELS
from vaez_fast.model import MODELS, VAE


def rsample_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """mu, logvar (B, D) → z (B, D), KL (B,): torch.distributions as its documentation shows it.

    Less its checks of arguments, which torch.compile switches off for the whole process: eager rows
    would depend on what was compiled before. They make a GPU's host wait, besides.
    """
    q = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    p = Normal(torch.zeros_like(mu), torch.ones_like(mu), validate_args=False)
    return q.rsample(), kl_divergence(q, p).sum(1)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """logits (S, B, P), x (B, P) uint8 → log p(x|z) (S, B), with the loss that PyTorch has."""
    target = x.to(logits.dtype).expand_as(logits)
    return -binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


class TextbookVAE(nn.Module):
    """A preset of plain PyTorch layers, with the names and initial weights of ours."""

    def __init__(self, name: str, seed: int = 0) -> None:
        super().__init__()
        a = MODELS[name]
        self.scale = a.scale

        def perceptron(*widths: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for fan_in, fan_out in pairwise(widths):
                layers += [nn.Linear(fan_in, fan_out), a.activation()]
            return nn.Sequential(*layers[:-1])

        self.encoder = perceptron(PIXELS, *a.hidden, 2 * a.latent)
        self.decoder = perceptron(a.latent, *reversed(a.hidden), PIXELS)
        self.load_state_dict(VAE(name, seed).state_dict())

    def posterior(self, x: Tensor) -> Normal:
        mu, raw = self.encoder(x).chunk(2, 1)
        return Normal(mu, softplus(raw) if self.scale == "softplus" else torch.exp(0.5 * raw))

    def negative_elbo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One-sample Monte Carlo −ELBO, the article's objective: x (B, 784) → (B,), z (B, D)."""
        q = self.posterior(x)
        z = q.rsample()
        log_prior = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum(1)
        log_likelihood = Bernoulli(logits=self.decoder(z)).log_prob(x).sum(1)
        return q.log_prob(z).sum(1) - log_prior - log_likelihood, z


class TextbookTraining:
    """Eager steps, images from a DataLoader, centred RMSprop: the article's way.

    Args:
        vae: the model, on its device.
        images: (N, 784) uint8, binary.
        batch_size: B.
    """

    def __init__(self, vae: TextbookVAE, images: Tensor, batch_size: int) -> None:
        self.vae = vae
        self.optimizer = torch.optim.RMSprop(vae.parameters(), lr=1e-3, centered=True)
        dataset = TensorDataset(images.float())
        loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
        self._batches = self._endless(loader)
        self.device = next(vae.parameters()).device

    @staticmethod
    def _endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[Tensor]:
        while True:
            for (x,) in loader:
                yield x

    def step(self) -> None:
        x = next(self._batches).to(self.device)
        self.optimizer.zero_grad()
        self.vae.negative_elbo(x)[0].mean().backward()
        self.optimizer.step()
