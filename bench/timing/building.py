"""How the rivals of a group are built: one after the other; one that fails stops no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from bench.timing.rows import Rival

Maker = Callable[[], Rival]


class DeviceLost(RuntimeError):
    """The CUDA device no longer answers calls of this process."""


class Watcher:
    """Is told while groups are built. This one does nothing; bench.gpu.plugin sets another."""

    def begin(self, provider: str) -> str | None:
        """Called before a rival is built; returns why it must not be built, or None."""
        return None

    def end(self, provider: str, seconds: float) -> None:
        """Called after it was built or failed."""

    @property
    def short(self) -> bool:
        """Whether nothing is measured, so that a training may have few steps and few samples."""
        return False

    def done(self) -> None:
        """Called after the last rival of a group is built, before any is timed."""


watcher = Watcher()


@dataclass
class Built:
    """The result of each maker, with the names of `bench.timing.rows.Group`."""

    rivals: dict[str, Rival] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def build(makers: Mapping[str, Maker | str], optional: Callable[[str], bool]) -> Built:
    """Build each provider's rival, in order.

    Args:
        makers: provider → how to build its rival, or why it has none on this machine.
        optional: whether a failing provider counts as unavailable; else it counts as broken.

    Raises:
        DeviceLost: a provider failed, and the CUDA device no longer answers.
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
    """False after an error such as an illegal access, from which a process cannot recover."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def reason_of(error: BaseException) -> str:
    """The type of an error and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
