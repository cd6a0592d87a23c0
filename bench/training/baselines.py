"""What a user writes without us: textbook PyTorch, the same compiled, and an expert's care."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.utils.data import DataLoader, TensorDataset

from vaez_fast.data import PIXELS
from vaez_fast.model import MODELS, VAE, Architecture


class TextbookVAE(nn.Module):
    """A model of plain PyTorch layers, with the names and initial weights of ours."""

    def __init__(self, model: str | Architecture, seed: int = 0) -> None:
        super().__init__()
        a = MODELS[model] if isinstance(model, str) else model
        self.scale = a.scale

        def perceptron(*widths: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for fan_in, fan_out in pairwise(widths):
                layers += [nn.Linear(fan_in, fan_out), a.activation()]
            return nn.Sequential(*layers[:-1])

        self.encoder = perceptron(PIXELS, *a.hidden, 2 * a.latent)
        self.decoder = perceptron(a.latent, *reversed(a.hidden), PIXELS)
        self.load_state_dict(VAE(model, seed).state_dict())

    def posterior(self, x: Tensor) -> Normal:
        mu, raw = self.encoder(x).chunk(2, 1)
        return Normal(mu, softplus(raw) if self.scale == "softplus" else torch.exp(0.5 * raw))

    def negative_elbo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One-sample Monte Carlo −ELBO, the article's objective: x (B, 784) → (B,), z (B, D)."""
        kl, z = self.monte_carlo_kl(x)
        return kl - Bernoulli(logits=self.decoder(z)).log_prob(x).sum(1), z

    def analytic_negative_elbo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """−ELBO with the KL in closed form, and the loss that PyTorch has for logits."""
        q = self.posterior(x)
        z = q.rsample()
        kl = 0.5 * (q.loc.square() + q.scale.square() - 1 - 2 * q.scale.log()).sum(1)
        logits = self.decoder(z)
        return kl + binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1), z

    def monte_carlo_kl(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The KL term alone: the article's encoder-only training."""
        q = self.posterior(x)
        z = q.rsample()
        log_prior = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum(1)
        return q.log_prob(z).sum(1) - log_prior, z

    def distortion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """−log p(x|z), z from an encoder that it does not train."""
        with torch.no_grad():
            z = self.posterior(x).sample()
        return -Bernoulli(logits=self.decoder(z)).log_prob(x).sum(1), z


Loss = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (B, 784) → nats (B,), z (B, D)


class TextbookTraining:
    """Eager steps, images from a DataLoader, centred RMSprop: the article's way.

    Args:
        vae: the model, on its device.
        images: (N, 784) uint8, binary, on the CPU.
        batch_size: B.
        loss: what is minimised, a method of `vae`.
        trained: the half of the model that it trains; the whole by default.
    """

    def __init__(
        self,
        vae: TextbookVAE,
        images: Tensor,
        batch_size: int,
        loss: Loss | None = None,
        trained: nn.Module | None = None,
    ) -> None:
        self.vae, self.loss = vae, loss or vae.negative_elbo
        parameters = (trained or vae).parameters()
        self.optimizer = torch.optim.RMSprop(parameters, lr=1e-3, centered=True)
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
        self.loss(x)[0].mean().backward()
        self.optimizer.step()


def compiled_training(vae: TextbookVAE, images: Tensor, batch_size: int) -> TextbookTraining:
    """The textbook with its loss under torch.compile, with default options."""
    return TextbookTraining(vae, images, batch_size, torch.compile(vae.negative_elbo))


class CarefulTraining:
    """Eager, as an expert writes it: images on the device, the KL in closed form, fused Adam.

    Args: as for `TextbookTraining`, the images anywhere.
    """

    def __init__(self, vae: TextbookVAE, images: Tensor, batch_size: int) -> None:
        self.vae, self.batch_size = vae, batch_size
        self.loss = vae.analytic_negative_elbo
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
        self.images = images.to(next(vae.parameters()).device).float()
        self._order = self._epoch()
        self._at = 0

    def _epoch(self) -> Tensor:
        return torch.randperm(len(self.images), device=self.images.device)

    def step(self) -> None:
        if self._at + self.batch_size > len(self.images):
            self._order, self._at = self._epoch(), 0
        rows = self._order[self._at : self._at + self.batch_size]
        self._at += self.batch_size
        self.optimizer.zero_grad()
        self.loss(self.images[rows])[0].mean().backward()
        self.optimizer.step()
