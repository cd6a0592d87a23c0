"""Gaussian latents of your own models: q(z|x), noise without counting steps, diffusers."""

from .gaussian import GaussianPosterior
from .noise import Noise, generator_key
from .with_diffusers import patch_diffusers

__all__ = ["GaussianPosterior", "Noise", "generator_key", "patch_diffusers"]
