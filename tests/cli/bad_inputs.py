"""The table of bad inputs: what is called or typed, and what the one-line error must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vaez_fast.config import ConfigError, TrainConfig
from vaez_fast.data import binarize, epoch_order, load
from vaez_fast.measures.codes import Codes, Encoded
from vaez_fast.measures.intervals import interval
from vaez_fast.measures.samplers import fit
from vaez_fast.model import VAE
from vaez_kernels import (
    bernoulli_log_prob,
    importance_log_likelihood,
    kl_standard_normal,
    kl_standard_normal_mc,
    mixture_log_prob,
    noise_key,
    normal,
    rsample,
    rsample_kl,
    uniform,
    use_backend,
)
from vaez_kernels import linear_bernoulli_log_prob as linear

MU, LOGVAR = torch.zeros(3, 4), torch.zeros(3, 4)
KEY = noise_key(0, "train")
CODES = Codes(*[Encoded(MU, LOGVAR, MU)] * 3)
PIXELS = torch.zeros(2, 784, dtype=torch.uint8)
LOGITS, X = torch.zeros(2, 3, 5), torch.zeros(3, 5, dtype=torch.uint8)
HIDDEN, WEIGHT, BIAS = torch.zeros(2, 3, 7), torch.zeros(5, 7), torch.zeros(5)
DECODER = nn.Linear(4, 5)


def forced(backend: str) -> None:
    with use_backend(backend):
        rsample(MU, LOGVAR, KEY)


def importance(decoder: Any, x: Tensor = X, num_samples: int = 2, **options: Any) -> Tensor:
    return importance_log_likelihood(decoder, MU, LOGVAR, x, KEY, num_samples, **options)


# Ops and functions: the call, the type of its error, and what the message must contain.
CALLS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: noise_key(-1, "train"), ValueError, "seed must be at least 0"),
    (lambda: noise_key(2**32, "train"), ValueError, "seed must be below 4294967296"),
    (lambda: noise_key(0.5, "train"), TypeError, "seed must be an integer"),  # type: ignore[arg-type]
    (lambda: noise_key(0, "test"), ValueError, "purpose must be one of train, binarize"),
    (lambda: noise_key(0, "train", 2**32), ValueError, "step must be below"),
    (lambda: normal(KEY, -1, 2, 3), ValueError, "S must be at least 0, got -1"),
    (lambda: normal(KEY, 1, 2.0, 3), TypeError, "B must be an integer"),  # type: ignore[arg-type]
    (lambda: normal(KEY.int(), 1, 2, 3), TypeError, r"noise must be int64 \(key, step\)"),
    (lambda: uniform(KEY[:1], 1, 2, 3), ValueError, r"noise must have shape \(2,\)"),
    (lambda: uniform(7, 1, 2, 3), TypeError, r"noise must be a tensor made by noise_key"),  # type: ignore[arg-type]
    (lambda: normal(KEY, 1, 2, 3, row_offset=-1), ValueError, "row_offset must be at least 0"),
    (lambda: normal(KEY, 2, 1, 1, sample_offset=2**32 - 1), ValueError, "sample_offset must be"),
    (lambda: rsample([0.0], LOGVAR, KEY), TypeError, "mu must be a tensor, got list"),  # type: ignore[arg-type]
    (lambda: rsample(MU, LOGVAR[:2], KEY), ValueError, r"logvar must have mu's shape \(3, 4\)"),
    (lambda: rsample(MU[0], LOGVAR[0], KEY), ValueError, r"mu must have shape \(B, D\)"),
    (lambda: rsample(MU.int(), LOGVAR.int(), KEY), TypeError, "mu must be float32, bfloat16"),
    (lambda: rsample(MU, LOGVAR.double(), KEY), TypeError, "logvar must be float64 if and only"),
    (lambda: rsample(MU[:, :0], LOGVAR[:, :0], KEY), ValueError, "at least one column"),
    (lambda: rsample(MU, LOGVAR, KEY, 0), ValueError, "num_samples must be at least 1"),
    (lambda: rsample(MU, LOGVAR, KEY, True), TypeError, "num_samples must be an integer"),
    (lambda: rsample(MU, LOGVAR.to("meta"), KEY), ValueError, "logvar must be on mu's device cpu"),
    (lambda: rsample(MU, LOGVAR, KEY.to("meta")), ValueError, "noise must be on mu's device cpu"),
    (lambda: kl_standard_normal(MU, None), TypeError, "logvar must be a tensor"),  # type: ignore[arg-type]
    (lambda: kl_standard_normal_mc(MU, LOGVAR, KEY, 1, "stl"), ValueError, "estimator must be one"),
    (lambda: rsample_kl(MU, LOGVAR, KEY, 1, "none"), ValueError, "kl must be one of analytic"),
    (lambda: forced("cuda"), ValueError, "name must be one of torch, triton"),
    (lambda: load("mnist-10k"), ValueError, "mnist-5k, mnist, fashion-mnist, kmnist"),
    (lambda: binarize(PIXELS.float(), "threshold"), TypeError, "images must be uint8"),
    (lambda: binarize(PIXELS, "static"), ValueError, "noise"),
    (lambda: binarize(PIXELS, "otsu"), ValueError, "static, dynamic, threshold, none"),
    (lambda: VAE("mlp"), ValueError, "model must be one of altosaar, lyeoni, burda"),
    (lambda: rsample(MU, LOGVAR, KEY, 2**40), ValueError, "num_samples must be below 4294967297"),
    (lambda: normal(KEY, 2**33, 1, 1), ValueError, "S must be below 4294967297"),
    (lambda: rsample(MU, LOGVAR, KEY, row_offset=2**48), ValueError, "row_offset must be below"),
    (lambda: bernoulli_log_prob(LOGITS[0], X), ValueError, r"logits must have shape \(S, B, P\)"),
    (lambda: bernoulli_log_prob(LOGITS.long(), X), TypeError, "logits must be float32, bfloat16"),
    (
        lambda: bernoulli_log_prob(LOGITS, X[:2]),
        ValueError,
        r"x must have shape \(B, P\) = \(3",
    ),
    (lambda: bernoulli_log_prob(LOGITS, X.long()), TypeError, "x must be uint8, bool, float32"),
    (lambda: linear(HIDDEN[0], WEIGHT, BIAS, X), ValueError, r"hidden must have shape \(S, B, H\)"),
    (lambda: linear(HIDDEN, WEIGHT.t(), BIAS, X), ValueError, r"weight must have shape \(P, H\)"),
    (lambda: linear(HIDDEN, WEIGHT.half(), BIAS, X), TypeError, "weight must have hidden's dtype"),
    (
        lambda: linear(HIDDEN, WEIGHT, BIAS[:3], X),
        ValueError,
        r"bias must have shape \(P,\) = ",
    ),
    (
        lambda: linear(HIDDEN, WEIGHT, BIAS, X, precision="int8"),
        ValueError,
        "precision must be one",
    ),
    (
        lambda: mixture_log_prob(MU[:, :2], MU, LOGVAR),
        ValueError,
        r"z must have shape \(M, D\)",
    ),
    (
        lambda: mixture_log_prob(MU, MU[:0], LOGVAR[:0]),
        ValueError,
        "mu must have at least one",
    ),
    (
        lambda: mixture_log_prob(MU, MU, LOGVAR, KEY),
        ValueError,
        "leave_out must have shape",
    ),
    (lambda: mixture_log_prob(MU, MU, LOGVAR, MU[:, 0]), TypeError, "leave_out must be int64"),
    (lambda: importance(None), TypeError, "decoder must be callable"),
    (lambda: importance(nn.Linear(4, 6)), ValueError, "decoder must return logits of shape"),
    (lambda: importance(DECODER, num_samples=0), ValueError, "num_samples must be at least 1"),
    (lambda: importance(DECODER, precision="fp8"), ValueError, "precision must be one of auto"),
    (lambda: importance(DECODER, x=X[:2]), ValueError, r"x must have shape \(B, P\) with B = 3"),
    (lambda: VAE(None), TypeError, "model must be a name or an Architecture"),  # type: ignore[arg-type]
    (lambda: fit("q", CODES), ValueError, "name must be one of standard-normal, diagonal"),
    (lambda: fit("full-covariance", CODES), ValueError, "full covariance in 4 dimensions needs 5"),
    (lambda: fit("mixture", CODES), ValueError, "10 components need 200 draws, got 3"),
    (lambda: interval([1.0]), ValueError, "at least two values are needed, got 1"),
    (lambda: epoch_order(-1, 0, 3, "cpu"), ValueError, "seed must be at least 0"),
    (lambda: TrainConfig(seed=10**5000), ConfigError, "seed must be an integer in"),
]


# Settings of `train`, all refused before anything is written.
SETTINGS: list[tuple[list[str], str]] = [
    (["--data", "mnist-10k"], "data must be one of mnist-5k, mnist, fashion-mnist, kmnist"),
    (["--binarize", "otsu"], "binarize must be one of static, dynamic, threshold, none"),
    (["--model", "resnet"], "model must be one of altosaar, lyeoni, burda"),
    (["--objective", "beta"], "objective must be one of elbo, kl, iwae"),
    (["--objective", "iwae", "--decoder", "separate"], "objective 'iwae' needs decoder joint"),
    (["--objective", "iwae", "--beta", "2"], "beta needs objective elbo"),
    (
        ["--objective", "iwae", "--kl", "analytic"],
        "objective 'iwae' needs kl total-derivative or doubly-reparameterised, got 'analytic'",
    ),
    (["--kl", "doubly-reparameterised"], "kl 'doubly-reparameterised' needs objective iwae"),
    (["--num-samples", "0"], "num_samples must be a positive integer, got 0"),
    (
        ["--objective", "kl", "--decoder", "separate", "--num-samples", "2"],
        "num_samples needs objective elbo or iwae",
    ),
    (["--decoder", "randn", "--num-samples", "2"], "leave objective, kl, beta and num_samples"),
    (
        ["--posterior", "flow"],
        "posterior must be one of diagonal, full-covariance, iaf, got",
    ),
    (["--prior", "nvp"], "prior must be one of standard-normal, mixture, vamp, flow, got 'nvp'"),
    (["--optimizer", "sgd"], "optimizer must be one of adam, rmsprop, got 'sgd'"),
    (
        ["--objective", "iwae", "--posterior", "full-covariance"],
        "posterior 'full-covariance' needs objective elbo",
    ),
    (
        ["--objective", "kl", "--decoder", "separate", "--prior", "flow"],
        "prior 'flow' needs objective elbo",
    ),
    (["--decoder", "randn", "--prior", "vamp"], "prior 'vamp' needs objective elbo and decoder"),
    (
        ["--prior", "mixture", "--kl", "analytic"],
        "prior 'mixture' needs kl total-derivative, got 'analytic'",
    ),
    (
        ["--posterior", "iaf", "--kl", "sticking-the-landing"],
        "posterior 'iaf' needs kl total-derivative, got 'sticking-the-landing'",
    ),
    (
        ["--posterior", "full-covariance", "--kl", "sticking-the-landing"],
        "needs kl analytic or total-derivative, got 'sticking-the-landing'",
    ),
    (["--posterior", "iaf", "--prior", "vamp"], "prior 'vamp' needs posterior diagonal, got 'iaf'"),
    (["--free-bits", "-0.1"], "free_bits must be a number of at least 0, got -0.1"),
    (["--free-bits", "inf"], "free_bits must be a number of at least 0, got inf"),
    (["--free-bits", "0.1", "--prior", "flow"], "free_bits needs objective elbo with kl analytic"),
    (
        ["--free-bits", "0.1", "--kl", "total-derivative"],
        "free_bits needs objective elbo with kl analytic",
    ),
    (["--free-bits", "0.1", "--objective", "iwae"], "free_bits needs objective elbo"),
    (["--kl-warmup", "1.5"], "kl_warmup must be a number from 0 to 1, got 1.5"),
    (["--kl-warmup", "0.1", "--objective", "iwae"], "kl_warmup needs objective elbo and decoder"),
    (["--kl-warmup", "0.1", "--decoder", "randn"], "kl_warmup needs objective elbo and decoder"),
    (["--test-samples", "0"], "test_samples must be a positive integer, got 0"),
    (["--kl", "exact"], "kl must be one of analytic"),
    (["--kl", "as-published"], "kl 'as-published' needs objective kl"),
    (["--decoder", "separate"], "objective 'elbo' needs decoder joint, got 'separate'"),
    (["--objective", "kl"], "objective 'kl' needs decoder separate or simultaneous, got 'joint'"),
    (["--decoder", "randn", "--kl", "total-derivative"], "decoder 'randn' has no encoder"),
    (["--beta", "0"], "beta must be a positive number, got 0.0"),
    (["--objective", "kl", "--decoder", "separate", "--beta", "2"], "beta needs objective elbo"),
    (["--epochs", "0"], "epochs must be a positive integer, got 0"),
    (["--steps", "-5"], "steps must be a positive integer, got -5"),
    (["--batch-size", "0"], "batch_size must be a positive integer"),
    (["--batch-size", "4001", "--steps", "1"], "batch_size must be at most 4000"),
    (["--latent", "1", "--prior", "flow"], "latent must be at least 2 for posterior iaf and prior"),
    (["--latent", "0"], "latent must be a positive integer, got 0"),
    (["--latent", "4294967296"], "latent must be below 2**32, got 4294967296"),
    (["--lr", "0"], "lr must be a positive number, got 0.0"),
    (["--lr", "nan"], "lr must be a positive number, got nan"),
    (["--seed", "-1"], "seed must be an integer in [0, 2**32), got -1"),
    (["--precision", "float16"], "precision must be one of float32, bfloat16, auto"),
    (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    (["--device", "cpu:3"], "device must be auto, cpu, cuda or cuda:N, got 'cpu:3'"),
    (["--device", "cuda:99"], "device 'cuda:99' is not here"),
    (["--lr", "1e400"], "lr must be a positive number, got inf"),
    (["--beta", "inf"], "beta must be a positive number, got inf"),
    (["--epochs", "4294967296"], "epochs must be below 2**32, got 4294967296"),
    (["--epochs", "4294967295"], "epochs must be at most 3225806, got 4294967295"),
    (["--steps", "100000001"], "steps must be at most 100000000, got 100000001"),
    (["--checkpoint-seconds", "-1"], "checkpoint_seconds must be at least 0, got -1"),
    (["--checkpoint-seconds", "nan"], "checkpoint_seconds must be at least 0, got nan"),
    (["--data-root", ""], "data_root must be text, and not empty, got ''"),
    (["--device", ""], "device must be auto, cpu, cuda or cuda:N, got ''"),
    (["--model", "x" * 10_000], "model must be one of altosaar, lyeoni, burda, got 'xxx"),
]


# Whole command lines, refused in the same way.
COMMAND_LINES: list[tuple[list[str], str]] = [
    (["train"], "out is needed: a folder for the results (--out, or out in the --config file)"),
    (
        ["train", "--epochs", "3", "--steps", "4", "--out", "x"],
        "exactly one of epochs and steps must be set",
    ),
    (["train", "--epochs", "many", "--out", "x"], "epochs must be an integer, got 'many'"),
    (["train", "--lr", "fast", "--out", "x"], "lr must be a number, got 'fast'"),
    (["train", "--steps", "--out", "x"], "steps: expected one argument"),
    (["train", "--json=x"], "json: ignored explicit argument 'x'"),
    (["train", "--modle", "burda", "--out", "x"], "no flag '--modle'; did you mean --model?"),
    (["train", "--modl", "burda", "--out", "x"], "no flag '--modl'; did you mean --model?"),
    (["train", "runs/x"], "no argument was expected at 'runs/x'"),
    (["train", "--out", ""], "out must be a path, got ''"),
    (["article"], "out is needed"),
    (["theory"], "out is needed"),
    (["report"], "the following arguments are required: DIR"),
    (["article", "--seeds", "1"], "seeds must be at least 2"),
    (["article", "--seeds", "1001"], "seeds must be at most 1000, got 1001"),
    (["article", "--seeds", "1.5"], "seeds must be an integer, got '1.5'"),
    (["article", "--beta", "1"], "betas must differ from each other, from 1 and from 0.1"),
    (["article", "--test-samples", "0"], "test_samples must be a positive integer, got 0"),
    (["sweep", "--beta", "0.1", "0.10000001"], "betas must differ in their first six digits"),
    (["article", "--beta", "0"], "beta must be a positive number"),
    (["article", "--beta", "nan"], "beta must be a positive number, got nan"),
    (["article", "--steps", "0"], "steps must be a positive integer"),
    (["article", "--data", "cifar"], "data must be one of"),
    (["article", "--lr", "-1"], "lr must be a positive number"),
    (["sweep"], "out is needed"),
    (["sweep", "--seeds", "0"], "seeds must be from 1 to 1000, got 0"),
    (["sweep", "--latents"], "latents must differ from each other, got ()"),
    (["sweep", "--latents", "2", "2"], "latents must differ from each other, got (2, 2)"),
    (["sweep", "--latents", "0"], "latent must be a positive integer, got 0"),
    (["sweep", "--beta", "1", "1"], "betas must differ from each other"),
    (["sweep", "--beta", "-1"], "beta must be a positive number"),
    (["remedies"], "out is needed"),
    (["remedies", "--seeds", "1"], "seeds must be from 2 to 1000, got 1"),
    (["remedies", "--remedies", "luck"], "remedies must be among analytic, monte-carlo"),
    (["remedies", "--remedies"], "remedies must differ from each other, got ()"),
    (["remedies", "--test-samples", "0"], "test_samples must be a positive integer, got 0"),
    (["evaluate"], "the following arguments are required: RUN"),
    (["evaluate", "x", "--split", "train"], "split must be one of validation, test, got 'train'"),
    (["evaluate", "x", "--test-samples", "0"], "test_samples must be a positive integer below"),
    (["evaluate", "x", "--precision", "half"], "precision must be one of float32, bfloat16, auto"),
    (["evaluate", "x", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    (["sample"], "the following arguments are required: RUN"),
    (["sample", "x"], "out is needed"),
    (["sample", "x", "--count", "0"], "count must be a positive integer below 2**32, got '0'"),
    (["sample", "x", "--seed", "-1"], "seed must be an integer in [0, 2**32), got '-1'"),
    (["sample", "x", "--sampler", "q"], "sampler must be one of standard-normal, diagonal"),
    (["latents"], "the following arguments are required: RUN"),
    (["latents", "x"], "out is needed: a folder for the results"),
    (["latents", "x", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    (["latents", "x", "--count", "3"], "no flag '--count'"),
    (["theory", "--steps", "3"], "no flag '--steps'"),
    (["compare", "--ops", "softmax"], "ops must be among normal, uniform, rsample"),
    (["compare", "--ops", ""], "ops must be among normal, uniform, rsample"),
    (["compare", "--backends", "tpu"], "backends must be among fallback, interpreter, cuda"),
    (["report", "a", "b"], "no argument was expected at 'b'"),
    (["report", "x", "--format", "pdf"], "no flag '--format'"),
    (["env", "--data-root"], "data_root: expected one argument"),
    (["env", "--out", "x"], "no flag '--out'"),
    (["train", "--resume", "x", "--steps", "3"], "resume: the run has its own settings; leave out"),
    (["train", "--config"], "config: expected one argument"),
    (["train", "--config", "none.toml"], "config: cannot read none.toml: No such file"),
]
