"""While a stream captures, the stand-in refuses the same calls as CUDA, with the same messages."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

UNSUPPORTED = "operation not permitted when stream is capturing"
INVALIDATED = "operation failed due to a previous error during capture"
IMPLICIT = "operation would make the legacy stream depend on a capturing blocking stream"
CAPTURED_EVENT = "operation not permitted on an event last recorded in a capturing stream"
UNJOINED = "capturing stream has unjoined work"
ISOLATION = "dependency created on uncaptured work in another stream"


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    torch.ones(3, device="cuda").add(1)  # initialises torch's CUDA state before a capture
    return torch.arange(6.0).cuda()


def refusals(work: Callable[[], object], mode: str = "global") -> list[str]:
    """The errors of `work` in a capture, and of ending the capture."""
    told: list[str] = []

    def tell(error: Exception) -> None:
        told.append(str(error).splitlines()[0].removeprefix("CUDA error: "))

    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            try:
                work()
            except RuntimeError as error:
                tell(error)
    except RuntimeError as error:
        tell(error)
        torch.cuda.set_stream(here)  # after a failed capture torch stays on the capturing stream
    return told


def malloc() -> None:
    code = ctypes.CDLL("libcudart.so.13").cudaMalloc(ctypes.byref(ctypes.c_void_p()), 64)
    if code:
        raise RuntimeError(f"cudaError {code}")


def test_work_that_is_only_launched_is_captured(x: torch.Tensor) -> None:
    assert refusals(lambda: x.clone().add_(1)) == []


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_the_capturing_stream_cannot_be_waited_for(x: torch.Tensor, mode: str) -> None:
    waits = [
        lambda: torch.cuda.current_stream().synchronize(),
        lambda: torch.cuda.current_stream().query(),
        lambda: x.sum().item(),
    ]
    for wait in waits:
        assert refusals(wait, mode) == [UNSUPPORTED, INVALIDATED]


def test_the_device_and_other_streams_cannot_be_waited_for(x: torch.Tensor) -> None:
    other, outside = torch.cuda.Stream(), torch.cuda.Event()
    outside.record(other)
    waits = [torch.cuda.synchronize, other.synchronize, outside.synchronize, outside.query]
    for wait in waits:
        assert refusals(wait) == [UNSUPPORTED, INVALIDATED]
        assert refusals(wait, "relaxed") == []


def test_memory_is_not_allocated_but_in_relaxed_mode(x: torch.Tensor) -> None:
    assert refusals(malloc) == ["cudaError 900", INVALIDATED]
    assert refusals(malloc, "thread_local") == ["cudaError 900", INVALIDATED]
    assert refusals(malloc, "relaxed") == []


def test_torchs_allocator_may_allocate_for_the_graph(x: torch.Tensor) -> None:
    # It changes its thread's capture mode for that.
    assert refusals(lambda: torch.empty(100 << 20, device="cuda").fill_(1)) == []


def test_the_legacy_stream_takes_no_work(x: torch.Tensor) -> None:
    def on_legacy_stream() -> None:
        with torch.cuda.stream(torch.cuda.default_stream()):
            x.add(1)

    assert refusals(on_legacy_stream) == [IMPLICIT, INVALIDATED]


def test_a_captured_event_is_neither_asked_nor_awaited(x: torch.Tensor) -> None:
    event = torch.cuda.Event()

    def ask(how: Callable[[], object]) -> Callable[[], None]:
        def work() -> None:
            event.record()
            how()

        return work

    assert refusals(ask(event.query))[0] == CAPTURED_EVENT
    assert refusals(ask(event.synchronize))[0] == CAPTURED_EVENT


def test_a_fork_is_captured_where_it_is_joined(x: torch.Tensor) -> None:
    side = torch.cuda.Stream()

    def fork(joins: bool) -> Callable[[], None]:
        def work() -> None:
            main = torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                x.add(1)
            if joins:
                main.wait_stream(side)

        return work

    assert refusals(fork(joins=True)) == []
    assert refusals(fork(joins=False)) == [UNJOINED]


def test_work_from_before_the_capture_is_not_awaited(x: torch.Tensor) -> None:
    side, event = torch.cuda.Stream(), torch.cuda.Event()
    event.record(side)
    assert refusals(lambda: torch.cuda.current_stream().wait_event(event))[0] == ISOLATION


def test_after_a_refusal_nothing_more_is_captured(x: torch.Tensor) -> None:
    def work() -> None:
        with pytest.raises(RuntimeError, match=UNSUPPORTED):
            torch.cuda.synchronize()
        torch.add(x, 1, out=x)

    assert refusals(work) == [INVALIDATED, INVALIDATED]


def test_errors_have_cudas_names_and_texts() -> None:
    # The real library, which is installed beside the stand-in, returns them without a GPU.
    from pathlib import Path

    real = ctypes.CDLL(str(Path(torch.__file__).parents[1] / "nvidia/cu13/lib/libcudart.so.13"))
    ours = ctypes.CDLL("libcudart.so.13")
    for function in ("cudaGetErrorString", "cudaGetErrorName"):
        for library in (real, ours):
            getattr(library, function).restype = ctypes.c_char_p
        for code in (0, 1, 2, 9, 101, 209, 400, 401, 600, 719, 801, *range(900, 909)):
            assert getattr(ours, function)(code) == getattr(real, function)(code)
