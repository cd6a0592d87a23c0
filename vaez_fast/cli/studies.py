"""What the commands article, sweep and remedies share: signals, ranks and the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..config import check_backend, choose_device
from ..study.config import RemedyConfig, StudyConfig, SweepConfig
from ..system.files import check_place
from ..system.messages import say
from ..system.stopping import KEPT, Signals, Stopped

if TYPE_CHECKING:
    from ..system.world import World


Config = TypeVar("Config", StudyConfig, SweepConfig, RemedyConfig)


def run(
    command: str,
    config: Config,
    out: Path,
    files: Sequence[str],
    work: Callable[[Config, World], None],
    show: Callable[[], int],
) -> int:
    """Do the work on every rank, then show the results on the first one; the exit status.

    Args:
        files: what the report will write into `out`; it fails now rather than after the work.
    """
    from ..system.world import LONG_SECONDS, joined, own_device

    def stopped(how: Stopped) -> None:
        say(command, f"{how}; {KEPT}")

    with Signals() as signals, joined(signals, stopped, LONG_SECONDS) as world:
        device = own_device(choose_device(config.base.device))
        check_backend(device)
        if world.rank == 0:
            for name in files:
                check_place(out / name)
        work(replace(config, base=replace(config.base, device=str(device))), world)
    return show() if world.rank == 0 else 0
