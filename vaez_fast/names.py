"""The names that a command line can choose from; parsers read them without importing PyTorch.

`data`, `model`, `richer`, `measures.samplers`, `compare` and `vaez_kernels.cases` define what each
name stands for.
"""

DATA_SETS = ("mnist-5k", "mnist", "fashion-mnist", "kmnist")
BINARIZATIONS = ("static", "dynamic", "threshold", "none")
MODELS = ("altosaar", "lyeoni", "burda")
POSTERIORS = ("diagonal", "full-covariance", "iaf")
PRIORS = ("standard-normal", "mixture", "vamp", "flow")
SAMPLERS = (
    "standard-normal",
    "diagonal",
    "full-covariance",
    "mixture",
    "flow",
    "posterior",
    "held-out-posterior",
)
# `vaez-fast compare`
BACKENDS = ("fallback", "interpreter", "cuda")
OPS = (
    "normal",
    "uniform",
    "rsample",
    "kl_standard_normal",
    "kl_standard_normal_mc/total-derivative",
    "kl_standard_normal_mc/sticking-the-landing",
    "rsample_kl/analytic",
    "rsample_kl/total-derivative",
    "rsample_kl/sticking-the-landing",
    "bernoulli_log_prob/uint8",
    "bernoulli_log_prob/float32",
    "gaussian_log_prob",
    "mixture_log_prob",
    "mixture_log_prob/leave_out",
    "linear_bernoulli_log_prob/uint8",
    "linear_bernoulli_log_prob/float32",
    "linear_bernoulli_log_prob/bfloat16-products",
    "importance_log_likelihood/float32",
    "importance_log_likelihood/tf32",
    "importance_log_likelihood/bfloat16",
)
