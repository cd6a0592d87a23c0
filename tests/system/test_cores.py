"""Waits for cores are counted, and threads sleep exactly while other processes want the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.process import ROOT, environment
from vaez_fast.system.cores import THREADS, SharedCores, Waits

COUNTED = (THREADS / str(os.getpid()) / "schedstat").exists()
needs_counts = pytest.mark.skipif(not COUNTED, reason="this system does not count waits")
INTERVAL = 0.25


def write(folder: Path, **nanoseconds: int) -> None:
    for thread, waited in nanoseconds.items():
        (folder / thread).mkdir(exist_ok=True)
        (folder / thread / "schedstat").write_text(f"123456789 {waited} 17\n")


class TestWaits:
    def test_the_longest_wait_of_a_thread_since_the_last_call_counts(self, tmp_path: Path) -> None:
        write(tmp_path, a=5_000_000_000, b=1_000_000_000)
        waits = Waits(tmp_path)
        assert waits.known
        assert waits.longest() == 0.0
        write(tmp_path, a=5_100_000_000, b=1_300_000_000)
        assert waits.longest() == pytest.approx(0.3)
        assert waits.longest() == 0.0
        write(tmp_path, a=5_600_000_000, b=1_400_000_000)
        assert waits.longest() == pytest.approx(0.5)
        waits.close()

    def test_a_thread_that_has_ended_no_longer_counts(self, tmp_path: Path) -> None:
        write(tmp_path, a=1, b=1)
        waits = Waits(tmp_path)
        (tmp_path / "a" / "schedstat").write_text("")
        write(tmp_path, b=2_000_000_001)
        assert waits.longest() == pytest.approx(2.0)
        waits.close()

    def test_a_thread_that_ends_while_threads_are_listed_hides_no_other(
        self, tmp_path: Path
    ) -> None:
        for thread in ("a", "c"):
            (tmp_path / thread).mkdir()  # its counts have gone
        write(tmp_path, b=1)
        waits = Waits(tmp_path)
        write(tmp_path, b=2_000_000_001)
        assert waits.known
        assert waits.longest() == pytest.approx(2.0)
        waits.close()

    def test_nothing_is_known_where_the_system_does_not_count(self, tmp_path: Path) -> None:
        waits = Waits(tmp_path / "absent")
        assert not waits.known
        assert waits.longest() == 0.0

    @needs_counts
    def test_its_files_are_closed(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        waits = Waits()
        assert len(os.listdir("/proc/self/fd")) > before
        waits.close()
        assert len(os.listdir("/proc/self/fd")) == before

    @needs_counts
    def test_a_thread_that_shares_its_core_waits_for_about_half_of_the_time(self) -> None:
        """This thread and a busy process are bound to one core for half a second."""
        cores = os.sched_getaffinity(0)
        one = min(cores)
        command = (
            f"import os\nos.sched_setaffinity(0, [{one}])\nprint(flush=True)\nwhile True: pass"
        )
        with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE) as busy:
            try:
                assert busy.stdout is not None
                busy.stdout.readline()
                os.sched_setaffinity(0, [one])
                waits = Waits()
                end = time.perf_counter() + 0.5
                while time.perf_counter() < end:
                    pass
                waited = waits.longest()
            finally:
                os.sched_setaffinity(0, cores)
                busy.kill()
        waits.close()
        assert waited > 0.1


class FakeMachine:
    """A clock, and waits, that tests move."""

    known = True

    def __init__(self) -> None:
        self.now, self.waited = 100.0, 0.0

    def longest(self) -> float:
        waited, self.waited = self.waited, 0.0
        return waited

    def close(self) -> None:
        """As of `Waits`, for which this stands."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return FakeMachine()


@pytest.fixture
def cores(machine: FakeMachine) -> Iterator[SharedCores]:
    found = SharedCores(lambda: machine, lambda: machine.now)  # type: ignore[arg-type,return-value]
    found.done()  # begins the first interval
    yield found
    found.close()


@pytest.fixture
def interval(machine: FakeMachine, cores: SharedCores) -> Callable[..., bool]:
    """An interval in which a thread waits for `share` of the time; returns whether they sleep."""

    def run(share: float, steps: int = 100, seconds: float = INTERVAL) -> bool:
        machine.now += seconds
        machine.waited += share * seconds
        cores.done(steps)
        return cores.sleeping

    return run


class TestSharedCores:
    def test_threads_sleep_when_one_waited_for_a_tenth_of_an_interval(
        self, interval: Callable[..., bool]
    ) -> None:
        assert not interval(0.09)
        assert interval(0.11)

    def test_nothing_is_decided_before_the_end_of_an_interval(
        self, interval: Callable[..., bool]
    ) -> None:
        assert not interval(0.9, seconds=0.2)
        assert interval(0.9, seconds=0.06)

    def test_threads_sleep_until_the_cores_are_free(self, interval: Callable[..., bool]) -> None:
        assert [interval(share) for share in (0.5, 0.4, 0.04, 0.02)] == [True, True, True, False]

    def test_threads_spin_for_five_seconds_if_sleeping_made_steps_slower(
        self, interval: Callable[..., bool]
    ) -> None:
        assert interval(0.5, steps=100)
        assert not interval(0.5, steps=99)
        assert not any(interval(0.5) for _ in range(19))  # 4.75 s
        assert interval(0.5)

    def test_spinning_is_tried_again_after_ten_seconds(self, interval: Callable[..., bool]) -> None:
        # A process that takes little lets threads wait for a twentieth of the time.
        assert interval(0.5)
        assert all(interval(0.05) for _ in range(39))  # 9.75 s
        assert not interval(0.05)
        assert not interval(0.05)
        assert interval(0.5)

    def test_speeds_are_compared_once(self, interval: Callable[..., bool]) -> None:
        # Later, steps may be slower for another reason.
        assert [interval(0.5, steps=n) for n in (100, 120, 10)] == [True, True, True]

    def test_the_speed_is_that_of_steps_in_a_time(self, interval: Callable[..., bool]) -> None:
        assert interval(0.5, steps=100, seconds=1.0)
        assert interval(0.5, steps=60, seconds=0.5)

    def test_one_thread_has_none_to_wait_for(
        self, interval: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert not interval(0.9)

    def test_nothing_happens_where_the_system_does_not_count(
        self, interval: Callable[..., bool], machine: FakeMachine
    ) -> None:
        machine.known = False
        assert not interval(0.9)

    def test_at_the_end_threads_spin_again_and_no_thread_of_ours_is_left(
        self, interval: Callable[..., bool], cores: SharedCores
    ) -> None:
        before = threading.active_count()
        assert interval(0.5)
        assert threading.active_count() == before + 1
        cores.close()
        assert not cores.sleeping
        assert threading.active_count() == before


# Processor time of all threads but this one, over 50 pauses of 2 ms, each after a loop of two
# threads: first with threads that spin for some milliseconds, then with threads that sleep.
PAUSES = """
import time
import torch
from vaez_fast.system.cores import SharedCores

class Busy:
    known = True
    def longest(self): return 1e9
    def close(self): pass

def others():
    x = torch.ones(1 << 17)
    before = time.process_time() - time.thread_time()
    for _ in range(50):
        x.add_(1)
        time.sleep(0.002)
    return time.process_time() - time.thread_time() - before

torch.set_num_threads(2)
others()
spinning = others()
cores = SharedCores(Busy)
cores.done()
time.sleep(0.3)
cores.done()
sleeping = others()
cores.close()
print(spinning, sleeping, others())
"""


@pytest.mark.skipif(
    not COUNTED or "libgomp" not in Path("/proc/self/maps").read_text(),
    reason="PyTorch does not use GNU's OpenMP here",
)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="needs as many cores as threads")
def test_sleeping_threads_leave_the_cores_to_others() -> None:
    """A thread that spins uses up to 100 ms in 50 pauses of 2 ms, one that sleeps a few."""
    variables = {k: v for k, v in environment().items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", PAUSES],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    spinning, sleeping, again = map(float, done.stdout.split())
    assert sleeping < spinning / 2
    assert sleeping < again / 2
