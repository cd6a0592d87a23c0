"""Fused ops for VAEs: sampling, KL and likelihoods, with one noise stream on every backend."""

from .backend import BACKENDS, interpreting, use_backend
from .bernoulli import bernoulli_log_prob
from .gaussian import gaussian_log_prob
from .importance import ImportanceEstimates, importance_estimates, importance_log_likelihood
from .latent import kl_normal, kl_standard_normal, kl_standard_normal_mc, rsample, rsample_kl
from .linear_bernoulli import linear_bernoulli_log_prob
from .mixture import mixture_log_prob
from .noise import PURPOSES, noise_key, normal, uniform

__all__ = [
    "BACKENDS",
    "PURPOSES",
    "ImportanceEstimates",
    "bernoulli_log_prob",
    "gaussian_log_prob",
    "importance_estimates",
    "importance_log_likelihood",
    "interpreting",
    "kl_normal",
    "kl_standard_normal",
    "kl_standard_normal_mc",
    "linear_bernoulli_log_prob",
    "mixture_log_prob",
    "noise_key",
    "normal",
    "rsample",
    "rsample_kl",
    "uniform",
    "use_backend",
]
