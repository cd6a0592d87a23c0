"""What a training run can be told, and the checks of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .data import BINARIZATIONS, DATA_SETS
from .model import MODELS

OBJECTIVES = ("elbo", "kl", "iwae")
KLS = ("analytic", "total-derivative", "sticking-the-landing", "as-published")
DECODERS = ("joint", "separate", "simultaneous", "randn")
PRECISIONS = ("float32", "bfloat16", "auto")

NOT_BUILT_YET = {"objective": ("iwae",)}


class ConfigError(ValueError):
    """A setting that no run can have; its one line names the setting and what was expected."""


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training run.

    `objective`, `kl` and `decoder` are the three choices that make an arm of the study; its name
    joins them. The ELBO trains the decoder jointly; the KL alone leaves it to be trained after the
    encoder ("separate") or in tandem ("simultaneous"); "randn" has no encoder, and neither
    objective nor KL. Exactly one of `epochs` and `steps` is set: the length of each phase.

    Raises:
        ConfigError: a value outside its range, or one that is not built yet.
    """

    data: str = "mnist-5k"
    data_root: str = "data"
    binarize: str = "static"
    model: str = "altosaar"
    objective: str = "elbo"
    kl: str = "analytic"
    decoder: str = "joint"
    beta: float = 1.0
    epochs: int | None = 30
    steps: int | None = None
    batch_size: int = 128
    lr: float = 2e-3
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("data", DATA_SETS),
            ("binarize", BINARIZATIONS),
            ("model", tuple(MODELS)),
            ("objective", OBJECTIVES),
            ("kl", KLS),
            ("decoder", DECODERS),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
            if value in NOT_BUILT_YET.get(name, ()):
                built = ", ".join(c for c in choices if c not in NOT_BUILT_YET[name])
                raise ConfigError(f"{name} {value!r} is not built yet; choose {built}")
        self._check_arm()
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError("exactly one of epochs and steps must be set")
        for name in ("epochs", "steps", "batch_size"):
            count = getattr(self, name)
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ConfigError(f"{name} must be a positive integer, got {count!r}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr must be a positive number, got {self.lr!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be an integer in [0, 2**32), got {self.seed!r}")

    def _check_arm(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"beta must be a positive number, got {self.beta!r}")
        if self.decoder == "randn":
            if self.objective != "elbo" or self.kl != "analytic" or self.beta != 1.0:
                raise ConfigError("decoder 'randn' has no encoder: leave objective, kl and beta")
            return
        decoders = ("joint",) if self.objective == "elbo" else ("separate", "simultaneous")
        if self.decoder not in decoders:
            raise ConfigError(
                f"objective {self.objective!r} needs decoder {' or '.join(decoders)}, "
                f"got {self.decoder!r}"
            )
        if self.kl == "as-published" and self.objective != "kl":
            raise ConfigError("kl 'as-published' needs objective kl")
        if self.beta != 1.0 and self.objective != "elbo":
            raise ConfigError("beta needs objective elbo")

    @property
    def arm(self) -> str:
        """objective/KL/decoder, as in all files and figures; "randn" has neither of the others."""
        if self.decoder == "randn":
            return "randn"
        name = f"{self.objective}/{self.kl}/{self.decoder}"
        return name if self.beta == 1.0 else f"{name}/beta={self.beta:g}"


def choose_device(name: str) -> torch.device:
    """ "auto": the first CUDA device, else the CPU.

    Raises:
        ConfigError: a name that PyTorch does not know, or a device that is not here.
    """
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


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; "auto" is bfloat16 where the processor multiplies it."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
