"""The ops, under the name that users import: `from vaez_fast.ops import rsample_kl`."""

from vaez_kernels import (
    bernoulli_log_prob,
    importance_estimates,
    importance_log_likelihood,
    kl_standard_normal,
    kl_standard_normal_mc,
    linear_bernoulli_log_prob,
    mixture_log_prob,
    noise_key,
    normal,
    rsample,
    rsample_kl,
    uniform,
    use_backend,
)

__all__ = [
    "bernoulli_log_prob",
    "importance_estimates",
    "importance_log_likelihood",
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
