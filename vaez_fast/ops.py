"""The ops, under the name that users import: `from vaez_fast.ops import rsample_kl`."""

from vaez_kernels import (
    bernoulli_log_prob,
    kl_standard_normal,
    kl_standard_normal_mc,
    noise_key,
    normal,
    rsample,
    rsample_kl,
    uniform,
    use_backend,
)

__all__ = [
    "bernoulli_log_prob",
    "kl_standard_normal",
    "kl_standard_normal_mc",
    "noise_key",
    "normal",
    "rsample",
    "rsample_kl",
    "uniform",
    "use_backend",
]
