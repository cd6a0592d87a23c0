"""A GPU with clocks of its own: the host submits launches, one stream runs them in turn."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.timing import clock as measure
from bench.timing import cuda_times

READ = 90e-6  # seconds of a read of 256 MiB at 3 TB/s
LAUNCH = 7e-6  # seconds of the host
HELD = 1024  # launches that a stream holds; the host waits before it submits more


class FakeGPU:
    """A stand-in for the modules `torch` and `time` in bench.timing.cuda_times.

    `host` is the host's clock and `free` the time at which the GPU will be idle, both in seconds.
    `log` names what the host did.
    """

    float32 = torch.float32

    def __init__(self) -> None:
        self.host = self.free = 0.0
        self.log: list[str] = []
        self.read_bytes: list[int] = []
        self._held: deque[float] = deque()
        self.cuda = SimpleNamespace(Event=self._event, synchronize=lambda _=None: self.wait())

    def perf_counter(self) -> float:
        return self.host

    def launch(self, device: float, host: float = LAUNCH) -> None:
        """Submit a kernel that takes `device` seconds; submitting takes `host`."""
        self.host += host
        if len(self._held) == HELD:
            self.host = max(self.host, self._held.popleft())
        self.free = max(self.free, self.host) + device
        self._held.append(self.free)

    def wait(self) -> None:
        """Wait until the GPU is idle."""
        self.host = max(self.host, self.free)
        self._held.clear()

    def zeros(self, *shape: int, **_: Any) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device="meta")

    def sum(self, memory: torch.Tensor, dim: int, out: torch.Tensor) -> None:
        assert out.shape == memory.sum(dim).shape
        self.log.append("read")
        self.read_bytes.append(memory.nbytes)
        self.launch(READ)

    def _event(self, enable_timing: bool) -> Any:
        gpu = self

        class Event:
            at = 0.0

            def record(self) -> None:
                gpu.host += 1e-6
                self.at = max(gpu.free, gpu.host)
                gpu.log.append("event")

            def query(self) -> bool:
                return gpu.host >= self.at

            def synchronize(self) -> None:
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        assert enable_timing
        return Event()


class Calm:
    """Stands for `Waits`: no thread waits for a core, however busy the real machine is."""

    known = True

    def longest(self) -> float:
        return 0.0

    def close(self) -> None:
        """As of `Waits`."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    """The GPU that bench.timing.clock times on."""
    gpu = FakeGPU()
    monkeypatch.setattr(cuda_times, "torch", gpu)
    monkeypatch.setattr(cuda_times, "time", gpu)
    monkeypatch.setattr(measure, "time", gpu)
    monkeypatch.setattr(measure, "Waits", Calm)
    return gpu
