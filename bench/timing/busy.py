"""Whether other processes disturbed the rows that were timed, and the line that says so.

The record of a row has the numbers: whether too few of its rounds were undisturbed (see
bench.timing.clock), the shares of the machine that other processes and other virtual machines took
(on Linux), the share of the time in which the timing thread had a processor (on every platform),
and the load average.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaez_fast.system.environment import usable_cores

# Measured on two cores over a mix of products, small and large elementwise operations and a
# backward, with two threads that spin or sleep while they wait. Alone on the machine, others take
# 0 ± 2 % of it (ticks of 10 ms), and the timing thread has a processor 99 % of the time (87 % if it
# sleeps while it waits). Beside one busy loop others take 32 to 48 %, the timing thread 51 to 68 %,
# and a product takes 2.6 times as long. Our own spinning thread, which fills the second core, does
# not count as another process.
MOST_OF_OTHERS = 0.10
LEAST_OF_OWN = 0.78
# Linux counts processor time in ticks of 10 ms, and a daemon that wakes up once takes as long. In a
# short measurement so much means nothing.
SLACK_SECONDS = 0.03


@dataclass(frozen=True)
class Reading:
    """Clocks at one moment, in seconds; None if the platform does not have them."""

    wall: float
    thread: float  # processor time of the thread that times
    process: float  # processor time of all threads of this process
    machine: float | None  # busy time, summed over the processors that we may use
    stolen: float | None  # the part of it that other virtual machines took
    load_average: float | None  # of the last minute


def reading() -> Reading:
    """The clocks now."""
    try:
        load_average = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        load_average = None
    busy, stolen = processor_times()
    return Reading(
        time.perf_counter(), time.thread_time(), time.process_time(), busy, stolen, load_average
    )


def processor_times(stat: Path = Path("/proc/stat")) -> tuple[float, float] | tuple[None, None]:
    """Busy and stolen seconds of the processors that we may use; stolen ones are busy. Linux only.

    Stolen time went to other virtual machines. Both are None where the system does not tell.
    """
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
        usable = {f"cpu{i}" for i in os.sched_getaffinity(0)}
        # user, nice, system, idle, iowait, irq, softirq, steal; user includes guests
        times = [[int(n) for n in line[1:9]] for line in lines if line and line[0] in usable]
        if not any(map(sum, times)):  # a sandbox that shows zeros
            return None, None
        busy = sum(sum(of_one) - sum(of_one[3:5]) for of_one in times)
        stolen = sum(sum(of_one[7:]) for of_one in times)
        return busy / os.sysconf("SC_CLK_TCK"), stolen / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return None, None


class Watch:
    """Watches the machine from now on.

    Args:
        read: reads the clocks; tests pass another function.
        processors: how many this process may use; by default as the system says.
    """

    def __init__(
        self, read: Callable[[], Reading] = reading, processors: int | None = None
    ) -> None:
        self._read, self._processors = read, processors or usable_cores() or 1
        self._begin = read()

    def record(self, disturbed: bool | None = None) -> dict[str, Any]:
        """The load since then, as JSON values.

        `seconds` is the time that passed, and `ended` is now, in seconds since 1970. `others` is
        the share of all usable processors that other processes took, `stolen` the share that other
        virtual machines took (None if unknown), and `own` the share of the time in which the timing
        thread had a processor.

        Args:
            disturbed: whether too few rounds were undisturbed; None if that is unknown.
        """
        begin, end = self._begin, self._read()
        wall = max(end.wall - begin.wall, 1e-9)
        others = stolen = None
        if begin.machine is not None and end.machine is not None:
            seconds = end.machine - begin.machine - (end.process - begin.process)
            others = max(0.0, seconds / (wall * self._processors))  # ticks may lag behind
        if begin.stolen is not None and end.stolen is not None:
            stolen = (end.stolen - begin.stolen) / (wall * self._processors)
        return {
            "seconds": wall,
            "ended": time.time(),
            "own": (end.thread - begin.thread) / wall,
            "others": others,
            "stolen": stolen,
            "disturbed": disturbed,
            "load_average": end.load_average,
            "processors": self._processors,
        }


def disturbed(load: Mapping[str, Any], device: str = "cpu") -> bool:
    """Whether other processes took so much of the machine that the times are doubtful.

    Args:
        load: a result of `Watch.record`.
        device: "cpu", or "cuda", where the timing thread may sleep until the device is done.
    """
    seconds, others = load["seconds"], load["others"]
    if load.get("disturbed") is not None:
        # Others may have had the cores that no row used, and what they took beside is left out. But
        # a stolen core looks to Linux like a slow one.
        return bool(load["disturbed"] or _much(load.get("stolen") or 0.0, load))
    if others is not None:
        return _much(others, load)
    lost = (1 - load["own"]) * seconds
    return device == "cpu" and bool(lost > (1 - LEAST_OF_OWN) * seconds + SLACK_SECONDS)


def _much(share: float, load: Mapping[str, Any]) -> bool:
    processor_seconds = load["seconds"] * load["processors"]
    return bool(share * processor_seconds > MOST_OF_OTHERS * processor_seconds + SLACK_SECONDS)


def busy_line(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The line for a run with disturbed rows; None if there are none, or the file is too old.

    Args:
        rows: the `extra_info` of each.
    """
    infos = list(rows)
    judged = [i for i in infos if i.get("load")]
    loads = [i["load"] for i in judged if disturbed(i["load"], i.get("device", "cpu"))]
    if not loads:
        return None
    known = [load["others"] for load in loads if load["others"] is not None]
    if known:
        what = f"other processes took up to {max(known):.0%} of its processors"
    else:
        least = min(load["own"] for load in loads)
        what = f"the timing thread had a processor for as little as {least:.0%} of the time"
    averages = [load["load_average"] for load in loads if load["load_average"] is not None]
    average = f"; load {max(averages):.1f} on {loads[0]['processors']}" if averages else ""
    return (
        f"The machine was busy: {what} while rows were timed ({len(loads)} of {len(infos)} rows"
        f"{average}); their medians may be several times too high."
    )
