"""The settings of a training run, and their checks."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from .names import BINARIZATIONS, DATA_SETS, MODELS, POSTERIORS, PRIORS
from .system.errors import ConfigError as ConfigError
from .system.errors import shown

if TYPE_CHECKING:
    import torch

# PyTorch is imported where it is used: it takes seconds, and parsing a command line must not wait.

OBJECTIVES = ("elbo", "kl", "iwae")
IWAE_KLS = ("total-derivative", "doubly-reparameterised")
KLS = ("analytic", *IWAE_KLS, "sticking-the-landing", "as-published")
DECODERS = ("joint", "separate", "simultaneous", "randn")
OPTIMIZERS = ("adam", "rmsprop")
PRECISIONS = ("float32", "bfloat16", "auto")

LOG_PX_SAMPLES = 128
CHECKPOINT_SECONDS = 60.0  # between two checkpoints; one of altosaar's is 10 MB

# The settings that an arm's name has where they are not the usual ones, and how it calls them.
IN_ARM = {
    "latent": "latent",
    "beta": "beta",
    "num_samples": "k",
    "posterior": "posterior",
    "prior": "prior",
    "free_bits": "free-bits",
    "kl_warmup": "kl-warmup",
    "optimizer": "optimizer",
}

# Counts and seeds are 32-bit words of the noise stream.
WORD = 2**32


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training run.

    `objective`, `kl` and `decoder` are the three choices that make an arm of the study; its name
    joins them. The ELBO and the importance-weighted bound ("iwae") train the decoder jointly; the
    KL alone leaves it to be trained after the encoder ("separate") or beside it ("simultaneous");
    "randn" has no encoder, so it ignores objective and KL. `kl` defaults to "analytic". For iwae it
    names the encoder's gradient and defaults to "total-derivative". `num_samples` is the number of
    z per image that both bounds draw in training; `test_samples` is the number behind the test
    split's log p(x). `latent` is the number of latents, the model's own if None. Exactly one of
    `epochs` and `steps` is set: the length of each phase.

    `posterior` and `prior` name the families of q(z|x) and p(z); see `vaez_fast.richer`. A prior
    other than N(0, I), and the posterior "iaf", need the ELBO with kl "total-derivative", which is
    then the default. `free_bits` is in nats per latent. `kl_warmup` is the fraction of the steps
    over which the rate's weight rises from 0 to β. The optimizer "rmsprop" is the article's,
    centred, with the constant learning rate `lr`.

    Raises:
        ConfigError: a value outside its range, or values that do not go together.
    """

    data: str = "mnist-5k"
    data_root: str = "data"
    binarize: str = "static"
    model: str = "altosaar"
    latent: int | None = None
    objective: str = "elbo"
    kl: str = None  # type: ignore[assignment]  # a word from __post_init__ on
    decoder: str = "joint"
    beta: float = 1.0
    num_samples: int = 1
    posterior: str = "diagonal"
    prior: str = "standard-normal"
    free_bits: float = 0.0
    kl_warmup: float = 0.0
    optimizer: str = "adam"
    epochs: int | None = 30
    steps: int | None = None
    batch_size: int = 128
    lr: float = 2e-3
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    test_samples: int = LOG_PX_SAMPLES

    def __post_init__(self) -> None:
        if self.kl is None:
            kls = IWAE_KLS if self.objective == "iwae" else self._richer_kls()
            object.__setattr__(self, "kl", kls[0])
        for name, choices in (
            ("data", DATA_SETS),
            ("binarize", BINARIZATIONS),
            ("model", MODELS),
            ("objective", OBJECTIVES),
            ("kl", KLS),
            ("decoder", DECODERS),
            ("posterior", POSTERIORS),
            ("prior", PRIORS),
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
        for name in ("data_root", "device"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or "\0" in value:
                raise ConfigError(f"{name} must be text, and not empty, got {shown(value)}")
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError("exactly one of epochs and steps must be set")
        for name in ("latent", "epochs", "steps", "batch_size", "num_samples", "test_samples"):
            count = getattr(self, name)
            if count is not None or name not in ("latent", "epochs", "steps"):
                _check_count(name, count)
        for name, expected, least, most in (
            ("lr", "a positive number", math.ulp(0.0), sys.float_info.max),
            ("beta", "a positive number", math.ulp(0.0), sys.float_info.max),
            ("free_bits", "a number of at least 0", 0.0, sys.float_info.max),
            ("kl_warmup", "a number from 0 to 1", 0.0, 1.0),
        ):
            _check_number(name, getattr(self, name), expected, least, most)
        if type(self.seed) is not int or not 0 <= self.seed < WORD:
            raise ConfigError(f"seed must be an integer in [0, 2**32), got {shown(self.seed)}")
        self._check_richer()
        self._check_arm()

    def _check_arm(self) -> None:
        if self.decoder == "randn":
            if (self.objective, self.kl, self.beta, self.num_samples) != ("elbo", "analytic", 1, 1):
                raise ConfigError(
                    "decoder 'randn' has no encoder: leave objective, kl, beta and num_samples"
                )
            return
        decoders = ("separate", "simultaneous") if self.objective == "kl" else ("joint",)
        if self.decoder not in decoders:
            raise ConfigError(
                f"objective {self.objective!r} needs decoder {' or '.join(decoders)}, "
                f"got {self.decoder!r}"
            )
        if self.kl == "as-published" and self.objective != "kl":
            raise ConfigError("kl 'as-published' needs objective kl")
        if self.objective == "iwae" and self.kl not in IWAE_KLS:
            raise ConfigError(f"objective 'iwae' needs kl {' or '.join(IWAE_KLS)}, got {self.kl!r}")
        if self.kl == "doubly-reparameterised" and self.objective != "iwae":
            raise ConfigError("kl 'doubly-reparameterised' needs objective iwae")
        if self.beta != 1.0 and self.objective != "elbo":
            raise ConfigError("beta needs objective elbo")
        if self.num_samples != 1 and self.objective == "kl":
            raise ConfigError("num_samples needs objective elbo or iwae")

    def _check_richer(self) -> None:
        usual = (self.objective, self.decoder) == ("elbo", "joint")
        both = (("posterior", "diagonal"), ("prior", "standard-normal"))
        richer = [name for name, plain in both if getattr(self, name) != plain]
        for name in richer:
            if not usual:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r} needs objective elbo and decoder joint"
                )
        if richer and self.kl not in self._richer_kls():
            kls = " or ".join(self._richer_kls())
            named = f"{richer[-1]} {getattr(self, richer[-1])!r}"
            raise ConfigError(f"{named} needs kl {kls}, got {self.kl!r}")
        if self.latent == 1 and (self.posterior == "iaf" or self.prior == "flow"):
            raise ConfigError("latent must be at least 2 for posterior iaf and prior flow, got 1")
        if self.prior == "vamp" and self.posterior != "diagonal":
            raise ConfigError(f"prior 'vamp' needs posterior diagonal, got {self.posterior!r}")
        if self.free_bits > 0 and (richer or not usual or self.kl != "analytic"):
            raise ConfigError(
                "free_bits needs objective elbo with kl analytic, posterior diagonal and prior "
                "standard-normal"
            )
        if self.kl_warmup > 0 and not usual:
            raise ConfigError("kl_warmup needs objective elbo and decoder joint")

    def _richer_kls(self) -> tuple[str, ...]:
        analytic = self.prior == "standard-normal" and self.posterior != "iaf"
        return ("analytic", "total-derivative") if analytic else ("total-derivative",)

    @property
    def arm(self) -> str:
        """objective/KL/decoder, as in all tables, then the settings that are not the usual ones.

        These are β and K where they are not 1, posterior, prior, free-bits, kl-warmup and
        optimizer. The arm without an encoder is "randn" instead of the three names.
        """
        usual = {field.name: field.default for field in fields(self)}
        randn = self.decoder == "randn"
        name = "randn" if randn else f"{self.objective}/{self.kl}/{self.decoder}"
        for setting, label in IN_ARM.items():
            value = getattr(self, setting)
            if value != usual[setting]:
                name += f"/{label}={value if isinstance(value, (str, int)) else format(value, 'g')}"
        return name


def _check_count(name: str, count: object) -> None:
    # not isinstance: True is an int
    if type(count) is not int or count < 1:
        raise ConfigError(f"{name} must be a positive integer, got {shown(count)}")
    if count >= WORD:
        raise ConfigError(f"{name} must be below 2**32, got {shown(count)}")


def _check_number(name: str, value: object, expected: str, least: float, most: float) -> None:
    is_number = type(value) in (int, float)
    if not is_number or not least <= value <= most:  # type: ignore[operator]
        raise ConfigError(f"{name} must be {expected}, got {shown(value)}")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first CUDA device, else the CPU.

    Raises:
        ConfigError: PyTorch does not know the name, or this machine lacks the device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or name.startswith("cpu:"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {name!r} is not here: PyTorch sees {count} CUDA devices")
    return device


def check_backend(device: torch.device) -> None:
    """Refuse a VAEZ_BACKEND that cannot run on `device`, before any work is done.

    Raises:
        ConfigError: it is not the name of a backend, or it forces triton where triton cannot run.
    """
    import torch

    from vaez_kernels.backend import uses_triton

    try:
        uses_triton(torch.empty(0, device=device))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from None


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; "auto" is bfloat16 where the processor multiplies it."""
    import torch

    from vaez_kernels.backend import has_fast_bfloat16

    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
