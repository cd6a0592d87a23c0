"""The speedrun's recipe: everything that may differ from ordinary training, except the model.

Every ingredient was chosen on the validation split of static MNIST, without the test split.
reports/speedrun/README.md says how much each is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vaez_fast.model import VAE, Linear
from vaez_fast.training.optimizer import Adam, rise


@dataclass(frozen=True)
class Recipe:
    """Steps, schedules, optimiser, estimator and initial weights of a run."""

    steps: int
    batch_size: int = 128
    lr: float = 6e-3
    warmup: float = 0.05  # share of the steps over which the learning rate rises
    kl_warmup: float = 0.5  # share of the steps over which the KL's weight rises from 0 to 1
    kl: str = "sticking-the-landing"
    centred: bool = True  # the encoder gets x minus the mean image
    he: bool = True  # He's initial weights; else PyTorch's default weights and biases
    optimizer: Adam = field(default=Adam(beta1=0.85, beta2=0.99))
    posterior_scale: float = 0.3  # of the encoder's last weights, relative to He's
    posterior_deviation: float = 0.3  # sigma of every latent if those weights were zero
    logits_scale: float = 0.3  # of the decoder's last weights

    def learning_rates(self) -> Tensor:
        """(steps,) float64: a linear rise, times a linear decay to zero over the whole run."""
        t = torch.arange(self.steps, dtype=torch.float64)
        return self.lr * rise(t + 1, self.warmup * self.steps) * (1 - t / self.steps)

    def kl_weights(self) -> Tensor:
        """(steps,) float64: a rise from 0 to 1, then 1 (Sønderby et al. 2016, section 3)."""
        t = torch.arange(self.steps, dtype=torch.float64)
        return rise(t, self.kl_warmup * self.steps)


@dataclass(frozen=True)
class Trained:
    """A model trained by a recipe, and the seconds that this took."""

    vae: VAE
    train_seconds: float
    compile_seconds: float


class CenteredVAE(VAE):
    """The same model in another parametrisation: its encoder gets x minus the mean image.

    W(x − m) + b = Wx + (b − Wm): a step of W does not change the output for the mean image.
    `folded` gives the ordinary VAE that computes the same function.

    Args:
        model, seed: as for `VAE`.
        mean: (784,) float32, each pixel's mean over the training split.
    """

    mean: Tensor

    def __init__(self, model: str, seed: int, mean: Tensor) -> None:
        super().__init__(model, seed)
        self.register_buffer("mean", mean)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1] → mu, logvar of q(z|x), each (B, D) float32."""
        return super().encode(x - self.mean)

    @torch.no_grad()
    def folded(self, model: str) -> VAE:
        """An ordinary VAE with the same function."""
        vae = VAE(model).to(self.mean.device)
        state = self.state_dict()
        mean = state.pop("mean")
        state["encoder.0.bias"] = state["encoder.0.bias"] - state["encoder.0.weight"] @ mean
        vae.load_state_dict(state)
        return vae


@torch.no_grad()
def start(vae: VAE, recipe: Recipe, seed: int) -> None:
    """Set initial weights for ReLU layers (He et al. 2015, equation 10), smaller in last layers.

    PyTorch's default has a sixth of the variance, so signals and gradients shrink from layer to
    layer. Biases are zero, except those that set the initial sigma to the recipe's.
    """
    if not recipe.he:
        return
    generator = torch.Generator().manual_seed(seed)
    for half, scale in ((vae.encoder, recipe.posterior_scale), (vae.decoder, recipe.logits_scale)):
        layers = [module for module in half if isinstance(module, Linear)]
        for layer in layers:
            deviation = math.sqrt(2 / layer.in_features) * (scale if layer is layers[-1] else 1.0)
            drawn = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(drawn * deviation)
            layer.bias.zero_()
    last = vae.encoder[-1]
    assert isinstance(last, Linear)
    assert vae.architecture.scale == "softplus"
    last.bias[vae.architecture.latent :] = math.log(math.expm1(recipe.posterior_deviation))
