"""How the rivals of a group are built: one after the other, and none takes the others down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from bench.timing.rows import Rival

Maker = Callable[[], Rival]


class DeviceLost(RuntimeError):
    """The CUDA device answers no call of this process any more."""


class Watcher:
    """Looks on while groups are built; this one does nothing. `bench.gpu` sets another."""

    def begin(self, provider: str) -> str | None:
        """Before a rival is built: why it must not be, or None."""
        return None

    def end(self, provider: str, seconds: float) -> None:
        """After it was built, or failed."""

    @property
    def short(self) -> bool:
        """Whether nothing is measured: a training takes a few steps, its evaluation few samples."""
        return False

    def done(self) -> None:
        """After the last rival of a group, before any is timed."""


watcher = Watcher()


@dataclass
class Built:
    """What became of each maker; the names are those of `bench.timing.rows.Group`."""

    rivals: dict[str, Rival] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def build(makers: Mapping[str, Maker | str], optional: Callable[[str], bool]) -> Built:
    """Build each provider's rival, in order.

    Args:
        makers: provider → how to build its rival, or why it has none here.
        optional: whether a provider that fails is unavailable; others are broken.

    Raises:
        DeviceLost: after a provider that failed, the CUDA device no longer answers.
    """
    built = Built()
    for name, make in makers.items():
        reason = make if isinstance(make, str) else watcher.begin(name)
        if isinstance(make, str) or reason is not None:
            built.unavailable[name] = str(reason)
            continue
        begin = time.perf_counter()
        try:
            built.rivals[name] = make()
        except Exception as error:
            if not device_answers():
                raise DeviceLost(f"{name}: {reason_of(error)}") from error
            (built.unavailable if optional(name) else built.broken)[name] = reason_of(error)
        watcher.end(name, time.perf_counter() - begin)
    watcher.done()
    return built


def device_answers() -> bool:
    """False after an illegal access or the like, which a process does not recover from."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def reason_of(error: BaseException) -> str:
    """The error's type and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
