"""The three VAEs of the study: multilayer perceptrons with a Gaussian q(z|x), Bernoulli pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .data import PIXELS


@dataclass(frozen=True)
class Architecture:
    hidden: tuple[int, ...]  # encoder widths; the decoder mirrors them
    latent: int
    activation: type[nn.Module]
    scale: str  # the second half of the encoder's output: "logvar", or "softplus": softplus(·) = σ


MODELS = {
    # github.com/altosaar/variational-autoencoder, the article's own; 632,848 parameters
    "altosaar": Architecture((256, 256), 128, nn.ReLU, "softplus"),
    # github.com/lyeoni/pytorch-mnist-VAE, the article's other reference
    "lyeoni": Architecture((512, 256), 2, nn.ReLU, "logvar"),
    # Burda et al. 2016, one stochastic layer
    "burda": Architecture((200, 200), 50, nn.Tanh, "logvar"),
}


def architecture(model: str, latent: int | None = None) -> Architecture:
    """The architecture of that name, with another number of latents if `latent` is given.

    Raises:
        ValueError: an unknown name.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    return MODELS[model] if latent is None else replace(MODELS[model], latent=latent)


def log_softplus(raw: Tensor) -> Tensor:
    """ln(ln(1 + e^raw)), finite for every finite input; accurate in float32, as is its gradient.

    Far below zero softplus(r) = e^r (1 − e^r/2 + …), so the logarithm is r − e^r/2, with an error
    below 5e-10 for r < −10.
    """
    far = raw < -10.0
    # Each branch gets inputs that it can differentiate: an infinite gradient times 0 would be NaN.
    tail, body = torch.where(far, raw, -10.0), torch.where(far, -10.0, raw)
    return torch.where(far, tail - 0.5 * torch.exp(tail), torch.log(softplus(body)))


class Linear(nn.Linear):
    """x (…, in) → (…, out) float32: a product in the weight's dtype, the bias added in float32."""

    is_affine = True  # vaez_kernels may replace `forward` by its own code

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight.t()).float() + self.bias


def _perceptron(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class VAE(nn.Module):
    """q(z|x) and p(x|z). Weight matrices may be float32 or bfloat16; all else is float32.

    Args:
        model: one of `MODELS`, or your own architecture.
        seed: fixes the initial weights (PyTorch's default scheme); the global generator does not
            matter.

    Raises:
        TypeError, ValueError: neither a name nor an architecture, or an unknown name.
    """

    def __init__(self, model: str | Architecture, seed: int = 0) -> None:
        super().__init__()
        if isinstance(model, str):
            model = architecture(model)
        if not isinstance(model, Architecture):
            raise TypeError(f"model must be a name or an Architecture, got {model!r}")
        self.architecture = a = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = _perceptron((PIXELS, *a.hidden, 2 * a.latent), a.activation)
            self.decoder = _perceptron((a.latent, *reversed(a.hidden), PIXELS), a.activation)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1] → mu, logvar of q(z|x), each (B, D) float32."""
        return self.gaussian(self.encoder(x))

    def gaussian(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output (B, 2·D) → mu, logvar, each (B, D)."""
        mu, scale = raw.chunk(2, 1)
        return mu, 2.0 * log_softplus(scale) if self.architecture.scale == "softplus" else scale

    def decode(self, z: Tensor) -> Tensor:
        """z (…, D) → logits of the Bernoulli pixels, (…, 784) float32."""
        return self.decoder(z)
