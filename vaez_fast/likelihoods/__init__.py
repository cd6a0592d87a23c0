"""Likelihoods p(x|z) that a decoder can return: a function for each, and its parameters as a class.

Rows of x are (B, *event). Parameters are (B, *event), or (S, B, *event) for S samples of z, and
`log_prob` is (B,) or (S, B), in nats. x is broadcast over samples and never copied for them.
"""

from .bernoulli import Bernoulli, bernoulli_log_prob
from .categorical import Categorical, categorical_log_prob
from .counts import (
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from .gaussian import Gaussian, gaussian_log_prob
from .interface import Likelihood, samples_apart
from .logistic import DiscretizedLogistic, discretized_logistic_log_prob
from .logistic_mixture import LogisticMixture, logistic_mixture_log_prob

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiscretizedLogistic",
    "Gaussian",
    "Likelihood",
    "LogisticMixture",
    "NegativeBinomial",
    "ZeroInflatedNegativeBinomial",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "discretized_logistic_log_prob",
    "gaussian_log_prob",
    "logistic_mixture_log_prob",
    "negative_binomial_log_prob",
    "samples_apart",
    "zero_inflated_negative_binomial_log_prob",
]
