"""The providers of an op benchmark: each is checked and counted; a failing one stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.timing import graphs, rivals
from bench.timing.building import Built, Maker, build
from bench.timing.rivals import GRAPHS, Contest, providers
from bench.timing.rows import Bench, Rival
from vaez_kernels import bernoulli_log_prob, noise_key
from vaez_kernels.bernoulli.case import LikelihoodCase, bernoulli_log_prob_floor
from vaez_kernels.bernoulli.case import textbook_log_prob as textbook
from vaez_kernels.compiler import has_cpu_compiler
from vaez_kernels.latent.case import LatentCase
from vaez_kernels.testing import Function

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
S, B, P = 2, 16, 96


@pytest.fixture
def contest() -> Contest:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(S, B, P, generator=generator).requires_grad_()
    x = torch.randint(2, (B, P), generator=generator, dtype=torch.uint8)
    return Contest(
        title="likelihood",
        case=LikelihoodCase(logits, x, torch.randn(S, B, generator=generator)),
        ours=bernoulli_log_prob,
        textbook=textbook,
        backward=True,
        device=CPU,
        floor_bytes=bernoulli_log_prob_floor((S, B, P), 4, backward=True),
        launch_bound=True,
    )


@pytest.mark.skipif(not has_cpu_compiler(), reason="needs a C++ compiler")
@pytest.mark.parametrize("time", ["first", "second"])  # bytes of a cached graph are counted again
def test_every_provider_of_a_cpu_is_checked_and_counted(contest: Contest, time: str) -> None:
    group = contest.group()
    assert set(group.rivals) | set(group.unavailable) == set(providers(CPU))
    assert set(group.unavailable) == {"triton"}
    assert not group.broken
    moved = {}
    for name, rival in group.rivals.items():
        assert rival.check.passed
        assert rival.moved_bytes is not None
        moved[name] = rival.moved_bytes / contest.floor_bytes
    assert 1 <= moved["fallback"] < 1.1
    assert moved["compiled"] < moved["eager"]
    assert moved["eager"] > 5


def makers_of(contest: Contest) -> Mapping[str, Maker | str]:
    """What `group` would build each provider's rival with; nothing is built."""
    found: dict[str, Maker | str] = {}

    def keep(makers: Mapping[str, Maker | str], _: Any) -> Built:
        found.update(makers)
        return Built()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "build", keep)
        contest.group()
    return found


def replayed(contest: Contest, forward: Function, *, ours: bool) -> Rival:
    """The rival that replays `forward` from a CUDA graph; each of its calls moves 7 bytes."""
    contest = replace(contest, ours=forward, textbook=forward, device=CUDA, kernel_bytes=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "aten_bytes", lambda *_: 7)
        make = makers_of(contest)["triton graph" if ours else "eager graph"]
        assert not isinstance(make, str)
        return make()


@pytest.mark.parametrize("launch_bound", [True, False])
def test_every_row_of_a_gpu_has_a_maker_or_a_reason(contest: Contest, launch_bound: bool) -> None:
    makers = makers_of(replace(contest, device=CUDA, launch_bound=launch_bound))
    assert list(makers) == list(providers(CUDA))
    lacking = {name for name, maker in makers.items() if isinstance(maker, str)}
    assert lacking == (set() if launch_bound else set(GRAPHS))


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no such thing here\nand a long story")


def test_what_torch_cannot_build_is_unavailable_and_the_others_run(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "has_cpu_compiler", lambda: True)
    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(rivals, "inductor_bytes", lambda work: work() and None)
    group = replace(contest, ours=textbook).group()
    assert group.unavailable["compiled"] == "RuntimeError: no such thing here"
    assert set(group.rivals) == {"eager", "fallback"}


def test_ours_that_fails_is_broken_not_unavailable(contest: Contest) -> None:
    group = replace(contest, ours=refuse, textbook=textbook).group()
    assert group.broken == {"fallback": "RuntimeError: no such thing here"}
    assert "eager" in group.rivals
    with pytest.raises(pytest.fail.Exception, match="likelihood, fallback: RuntimeError: no such"):
        Bench(CPU, True, 1e9).record(None, group, "fallback")


def test_a_capture_that_fails_is_unavailable(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_one(makers: Mapping[str, Maker | str], optional: Callable[[str], bool]) -> Built:
        return build({"triton graph": makers["triton graph"]}, optional)

    monkeypatch.setattr(rivals, "build", build_one)
    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    group = replace(contest, device=CUDA).group()
    assert group.unavailable == {"triton graph": "RuntimeError: no such thing here"}


CACHE = 50 << 20  # an H100's


@pytest.fixture
def cuda_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU would be told to do, in order; streams and graphs are stand-ins."""
    log: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def inside(what: Any) -> Iterator[None]:
        name = what.name if isinstance(what, Stream) else "capture"
        log.append(f"begin {name}")
        yield
        log.append(f"end {name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "graph", inside)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("synchronize"))
    properties = SimpleNamespace(L2_cache_size=CACHE)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return log


def test_a_graph_is_warmed_up_beside_captured_once_then_replayed(cuda_log: list[str]) -> None:
    def call(name: str) -> str:
        cuda_log.append(name)
        return name.upper()

    graph = graphs.captured([partial(call, name) for name in "abcde"])
    assert graph.outputs == list("ABCDE")
    graph.replay()
    assert cuda_log == [
        *("side waits for main", "begin side", "a", "b", "c", "end side", "main waits for side"),
        *("begin capture", "a", "b", "c", "d", "e", "end capture", "replay"),
    ]


def latent(rows: int, dtype: torch.dtype) -> LatentCase:
    mu, logvar = (torch.rand(rows, 128).to(dtype).requires_grad_() for _ in range(2))
    noise = noise_key(0, "train")
    return LatentCase(mu, logvar, noise, torch.rand(1, rows, 128).to(dtype), torch.rand(rows))


@pytest.mark.usefixtures("cuda_log")
@pytest.mark.parametrize(("rows", "dtype"), [(128, torch.float32), (256, torch.bfloat16)])
def test_the_sets_of_a_graph_do_not_fit_the_cache(rows: int, dtype: torch.dtype) -> None:
    case = latent(rows, dtype)
    sets = graphs.sets_of(case, CUDA)
    tensors = [(s.mu, s.logvar, s.grad_z, s.grad_kl) for s in sets]
    size = 3 * rows * 128 * dtype.itemsize + 4 * rows
    assert graphs.bytes_of(case) == size
    assert CACHE < len(sets) * size < 1.01 * CACHE
    assert len({tensor.data_ptr() for of_one in tensors for tensor in of_one}) == 4 * len(sets)
    assert case.mu.data_ptr() not in {copy.mu.data_ptr() for copy in sets}
    for copy in sets:
        assert torch.equal(copy.mu, case.mu)
        assert (copy.mu.is_leaf, copy.mu.requires_grad) == (True, True)
        assert copy.noise is case.noise


@pytest.mark.parametrize(("cache", "count"), [(CACHE, 512), (1 << 10, 32)])
def test_a_graph_has_from_32_to_512_calls(
    cache: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(L2_cache_size=cache)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert len(graphs.sets_of(latent(1, torch.float32), CUDA)) == count


def test_a_replayed_call_of_ours_is_on_every_set_and_the_noise_advances_once(
    contest: Contest, cuda_log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LikelihoodCase, "advance", lambda _: cuda_log.append("advance"))
    monkeypatch.setattr(graphs, "MOST_CALLS", 33)

    def forward(logits: Tensor, x: Tensor) -> Tensor:
        cuda_log.append(f"forward {logits.data_ptr()} {x.data_ptr()}")
        return textbook(logits, x)

    def captured_part() -> list[str]:
        begin, end = cuda_log.index("begin capture"), cuda_log.index("end capture")
        return cuda_log[begin + 1 : end]

    rival = replayed(contest, forward, ours=True)
    first, *calls = captured_part()
    assert first == "advance"
    assert len(set(calls)) == len(calls) == rival.calls == 33
    assert rival.check.passed
    assert (rival.moved_bytes, rival.own_memory) == (7, False)
    assert rival.notes == {"graph_calls": 33, "graph_fits_l2": True}
    cuda_log.clear()
    replayed(contest, forward, ours=False)
    assert len(captured_part()) == 33
    assert "advance" not in captured_part()


@pytest.mark.usefixtures("cuda_log")
@pytest.mark.parametrize("wrong", ["first", "last"])
def test_the_first_and_the_last_call_of_a_graph_are_checked(
    contest: Contest, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_CALLS", 32)
    sets: list[int] = []

    def forward(logits: Tensor, x: Tensor) -> Tensor:
        sets.append(logits.data_ptr())
        at = sets[3:].index(logits.data_ptr()) if len(sets) > 3 else None  # three warm up
        return textbook(logits, x) + (at == {"first": 0, "last": 31}[wrong])

    assert not replayed(contest, forward, ours=False).check.passed
