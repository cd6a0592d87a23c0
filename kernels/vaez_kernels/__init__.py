"""Fused ops for Gaussian latents: sampling and KL, with one noise stream on every backend."""

from .backend import BACKENDS, interpreting, use_backend
from .latent import kl_standard_normal, kl_standard_normal_mc, rsample, rsample_kl
from .likelihood import bernoulli_log_prob
from .noise import PURPOSES, noise_key, normal, uniform

__all__ = [
    "BACKENDS",
    "PURPOSES",
    "bernoulli_log_prob",
    "interpreting",
    "kl_standard_normal",
    "kl_standard_normal_mc",
    "noise_key",
    "normal",
    "rsample",
    "rsample_kl",
    "uniform",
    "use_backend",
]
