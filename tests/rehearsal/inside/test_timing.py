"""The benchmarks' times on a device with a known clock, under the real host code."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial

import pytest
import torch

from bench.timing import cuda_times, graphs
from bench.timing.cuda_times import FLUSH_BYTES, Flush
from bench.timing.rows import Bench, Group, Rival
from tests.rehearsal import stand_in
from vaez_kernels import noise_key, rsample_kl
from vaez_kernels.error_bounds import Check
from vaez_kernels.latent.case import LatentCase
from vaez_kernels.latent.case import textbook_rsample_kl as textbook

CUDA = torch.device("cuda")
# Durations of kernels in microseconds. Reads and products are slow because other processes use this
# machine: a process that slept continues late, but seldom by milliseconds.
READ, ADD, PRODUCT, OURS, OTHERS = 1000, 3, 2500, 4, 2
DURATIONS = {
    "*reduce_kernel*sum_functor*": READ,
    "*CUDAFunctorOnSelf_add*": ADD,
    "*gemm*": PRODUCT,
    "latent_forward_kernel": OURS,
}
LOOP = 50e-3  # seconds of a loop of calls, at least
# The fastest of eleven loops may take this many times as long.
SLACK = 1.25
# An event returns milliseconds as a float32.
EXACT = 1e-6


def device_seconds(kernels: Counter[str]) -> float:
    def microseconds(name: str) -> float:
        return next((last for p, last in DURATIONS.items() if fnmatch(name, p)), OTHERS)

    return 1e-6 * sum(count * microseconds(name) for name, count in kernels.items())


class Arguments:
    """An executor that records the first two arguments of each captured launch of our kernel."""

    def __init__(self) -> None:
        self.captured: list[tuple[int, int]] = []

    def __call__(self, launch: stand_in.Launch) -> int:
        if not launch.capturing:
            return 0
        assert launch.name == "latent_forward_kernel"
        arguments = ctypes.cast(launch.parameters, ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)))
        self.captured.append((arguments[0][0], arguments[1][0]))
        return len(self.captured)


@dataclass
class Timed:
    """The timed rows, and the counts."""

    group: Group
    sets: list[LatentCase]
    captured: list[tuple[int, int]]  # addresses of mu and logvar
    nodes: list[int]
    eager: stand_in.Counts  # of a call of the textbook
    made: stand_in.Counts  # of creating a flush
    read: stand_in.Counts  # of one read of a flush


def works(latent: LatentCase) -> dict[str, Callable[[], object]]:
    x, w = torch.ones(6, device=CUDA), torch.ones(6, 6, device=CUDA)

    def host_bound() -> None:
        x + 1
        time.sleep(5e-3)
        x + 1

    def device_bound() -> None:
        time.sleep(2e-3)
        w @ w
        w @ w

    def waiting() -> None:
        x + 1
        torch.cuda.synchronize()
        x + 1

    return {
        "eager": lambda: latent.run(textbook, backward=True),
        "host-bound": host_bound,
        "device-bound": device_bound,
        "waiting": waiting,
    }


@pytest.fixture(scope="module")
def timed() -> Iterator[Timed]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_times, "LOOP_SECONDS", LOOP)
        yield of_all()


def of_all() -> Timed:
    for pattern, microseconds in DURATIONS.items():
        stand_in.set_duration(pattern, microseconds)
    mu, logvar, grad_z = torch.rand(3, 128, 128, device=CUDA).unbind()
    latent = LatentCase(
        mu.clone().requires_grad_(), logvar.clone().requires_grad_(),
        noise_key(0, "train", device=CUDA), grad_z.clone()[None], torch.rand(128, device=CUDA),
    )  # fmt: skip
    of_torch = works(latent)

    def ours(mu: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rsample_kl(mu, logvar, latent.noise)

    latent.run(ours, backward=False)  # compiles
    arguments = Arguments()
    stand_in.set_executor(launch=arguments, replay=lambda _: 0)
    sets = graphs.sets_of(latent, CUDA)
    with stand_in.counting() as capture:
        graph = graphs.captured([partial(one.run, ours, backward=False) for one in sets])
    stand_in.set_executor()
    with stand_in.counting() as made:
        flush = Flush(CUDA)
    with stand_in.counting() as read:
        flush.queue(1)
    of_torch["eager"]()
    with stand_in.counting() as eager:
        of_torch["eager"]()
    rivals = {name: Rival(work, PASSED) for name, work in of_torch.items()}
    rivals["graph"] = Rival(graph.replay, PASSED, calls=len(sets))
    group = Bench(CUDA, False, 1e12).measured(0, lambda: Group("g", rivals, {}, None), 0.0)
    return Timed(group, sets, arguments.captured, capture.captured, eager, made, read)


PASSED = Check(0.5, "nothing: the device computes nothing")


def test_the_textbooks_device_time_is_the_sum_of_its_kernels(timed: Timed) -> None:
    counts = timed.eager
    copied = {("device to device", 128 * 128 * 4): 2}
    assert counts.copies == copied
    assert counts.launches == counts.aten.total() + 2
    # A copy reads and writes at 3,352 bytes a nanosecond and takes 1.5 µs more.
    seconds = device_seconds(counts.aten) + 2 * (1.5e-6 + 2 * 128 * 128 * 4 / 3352e9)
    # The stand-in's times are whole nanoseconds.
    assert timed.group.device_seconds["eager"] == pytest.approx([seconds] * 11, abs=2e-9)


def test_the_host_is_in_the_wall_time_and_never_in_the_devices(timed: Timed) -> None:
    device, wall = timed.group.device_seconds["host-bound"], timed.group.seconds["host-bound"]
    assert device == pytest.approx([2 * ADD * 1e-6] * 11, rel=EXACT)
    assert 5e-3 <= min(wall) <= SLACK * 5e-3


def test_the_device_hides_the_host_where_it_takes_longer(timed: Timed) -> None:
    device, wall = timed.group.device_seconds["device-bound"], timed.group.seconds["device-bound"]
    assert device == pytest.approx([5e-3] * 11, rel=EXACT)
    assert 5e-3 <= min(wall) <= SLACK * 5e-3 < 2e-3 + 5e-3


def test_work_that_waits_for_the_device_has_a_wall_time_alone(timed: Timed) -> None:
    assert "waiting" not in timed.group.device_seconds
    assert min(timed.group.seconds["waiting"]) >= 2 * ADD * 1e-6


def test_the_cache_is_flushed_by_one_kernel_that_reads(timed: Timed) -> None:
    (kernel,) = timed.read.happened
    assert "reduce_kernel" in kernel.name
    assert "sum_functor" in kernel.name
    largest = max(size for _, size in timed.made.allocations)
    assert largest == FLUSH_BYTES > 2 * torch.cuda.get_device_properties(CUDA).L2_cache_size


def test_a_graph_holds_a_call_on_each_of_many_sets_that_no_cache_holds(timed: Timed) -> None:
    count = len(timed.sets)
    assert timed.nodes == [count]
    assert timed.captured == [(one.mu.data_ptr(), one.logvar.data_ptr()) for one in timed.sets]
    assert len({address for launch in timed.captured for address in launch}) == 2 * count
    cache = torch.cuda.get_device_properties(CUDA).L2_cache_size
    assert cache < count * graphs.bytes_of(timed.sets[0]) < 1.1 * cache


def test_a_graphs_time_is_that_of_one_of_its_calls(timed: Timed) -> None:
    device, wall = timed.group.device_seconds["graph"], timed.group.seconds["graph"]
    assert device == pytest.approx([OURS * 1e-6] * 11, rel=EXACT)
    assert min(wall) >= OURS * 1e-6
