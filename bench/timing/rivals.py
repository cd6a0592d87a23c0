"""The providers of an op: textbook code eager and compiled, our fallback and kernels, graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.timing.building import build
from bench.timing.graphs import bytes_of, captured, sets_of
from bench.timing.rows import Group, Rival
from bench.timing.traffic import aten_bytes, inductor_bytes
from vaez_kernels import use_backend
from vaez_kernels.compiler import has_cpu_compiler
from vaez_kernels.error_bounds import Check, worst
from vaez_kernels.testing import Function, Shape, Timed, TimedCase

# eager stays first: all ratios are relative to it, and its first call fills a table of
# torch.distributions that a compiled call could not fill.
CPU_PROVIDERS = ("eager", "compiled", "fallback", "triton")
CUDA_PROVIDERS = ("eager", "compiled", "fallback", "triton")
AUTOTUNED = "compiled max-autotune"
GRAPHS = ("eager graph", "compiled graph", "triton graph")

Count = Callable[[Callable[[], object]], int | None]  # work → the bytes that it moves

NO_GPU = "needs a CUDA device; the kernels' numbers are checked by the tests"
NO_BFLOAT16 = "this processor has no instruction for bfloat16 products"
NO_COMPILER = "torch.compile needs a C++ compiler on a CPU"


def providers(device: torch.device) -> tuple[str, ...]:
    """The rows of an op benchmark; a group says which of them it lacks."""
    return CUDA_PROVIDERS + GRAPHS if device.type == "cuda" else CPU_PROVIDERS


def title_of(op: Timed, shape: Shape, dtype: torch.dtype, direction: str) -> str:
    """The title of a group."""
    sizes = " × ".join(f"{n:,}" for n in shape)
    return f"{op.title}, {direction}, {sizes}, {str(dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Contest:
    """One op, direction and size: what each provider runs on `case`; see also `Timed`."""

    title: str
    case: TimedCase
    ours: Function
    textbook: Function
    backward: bool
    device: torch.device
    floor_bytes: int
    launch_bound: bool
    kernel_bytes: int | None = None
    tiled: bool = False
    # Also with max-autotune, which tries templates of products for a minute or so.
    autotuned: bool = False
    cpu_options: dict[str, Any] = field(default_factory=dict)  # the best for torch.compile there

    @classmethod
    def of(
        cls, op: Timed, shape: Shape, dtype: torch.dtype, direction: str, device: torch.device
    ) -> Contest:
        backward = direction == "forward+backward"
        case = op.case(shape, dtype, device)
        return cls(
            title=title_of(op, shape, dtype, direction),
            case=case,
            ours=op.ours(case),
            textbook=op.textbook,
            backward=backward,
            device=device,
            floor_bytes=op.least_bytes(shape, dtype.itemsize, backward),
            launch_bound=shape in op.launch_bound,
            kernel_bytes=op.kernel_bytes(shape, backward) if op.kernel_bytes else None,
            tiled=op.tiled,
            cpu_options=op.cpu_options,
        )

    def group(self) -> Group:
        """Every provider, counted and checked.

        One that torch cannot compile or capture is unavailable; any other that fails is broken.
        """
        torch._dynamo.reset()  # bytes are counted only while a graph is compiled
        built = build(self._makers(), lambda name: name.startswith("compiled") or name in GRAPHS)
        rivals = built.rivals
        if "compiled graph" in rivals and "compiled" in rivals:  # the same kernels
            rivals["compiled graph"].moved_bytes = rivals["compiled"].moved_bytes
        return Group(self.title, rivals, built.unavailable, self.floor_bytes, broken=built.broken)

    def _makers(self) -> dict[str, Callable[[], Rival] | str]:
        # provider → how to build it, or why it is not here
        makers: dict[str, Callable[[], Rival] | str] = {
            "eager": partial(self._rival, self.textbook, self._aten, ours=False),
        }
        if self.device.type == "cpu":
            can_compile = has_cpu_compiler()
            makers["compiled"] = (
                partial(self._compiled, options=self.cpu_options or None)
                if can_compile
                else NO_COMPILER
            )
            count: Count = inductor_bytes if can_compile else self._aten
            if self.tiled:
                count = _unknown
            makers["fallback"] = partial(self._rival, self.ours, count, ours=True)
            makers["triton"] = NO_GPU
            return makers
        makers["compiled"] = self._compiled
        if self.autotuned:
            makers[AUTOTUNED] = partial(self._compiled, mode="max-autotune-no-cudagraphs")
        makers["fallback"] = partial(self._rival, self._fallback, self._aten, ours=True)
        makers["triton"] = partial(self._rival, self.ours, self._kernels, ours=True)
        if self.launch_bound:
            compiled = torch.compile(self.textbook, fullgraph=True, dynamic=False)
            replayed = self._replayed
            makers["eager graph"] = partial(replayed, self.textbook, self._aten, ours=False)
            makers["compiled graph"] = partial(replayed, compiled, inductor_bytes, ours=False)
            makers["triton graph"] = partial(replayed, self.ours, self._kernels, ours=True)
        else:
            makers |= dict.fromkeys(GRAPHS, "launches are a small part of the time at this size")
        return makers

    def _fallback(self, *inputs: Any) -> Any:
        with use_backend("torch"):
            return self.ours(*inputs)

    def _aten(self, work: Callable[[], object]) -> int:
        return aten_bytes(work, self.device)

    def _kernels(self, _: Callable[[], object]) -> int | None:
        if self.kernel_bytes is not None or self.tiled:
            return self.kernel_bytes
        return self.floor_bytes  # S ≤ 8: see bench.timing.traffic

    def _compiled(self, **how: Any) -> Rival:
        run = torch.compile(self.textbook, fullgraph=True, dynamic=False, **how)
        return self._rival(run, inductor_bytes, ours=False, notes={"compiled_with": how})

    def _rival(
        self,
        forward: Function,
        count: Count,
        ours: bool,
        notes: dict[str, Any] | None = None,
    ) -> Rival:
        work = partial(self.case.run, forward, self.backward)
        moved = count(work)
        # Gradients are checked for the row that times the forward, too.
        check = self.case.check(self.case.run(forward, backward=True), ours)
        return Rival(work, check, notes or {}, moved)

    def _replayed(self, forward: Function, count: Count, ours: bool) -> Rival:
        moved = count(partial(self.case.run, forward, self.backward))
        cases = sets_of(self.case, self.device)

        def call(case: TimedCase) -> tuple[Tensor, ...]:
            if ours and case is cases[0]:
                case.advance()
            # An autograd graph that lives on would bind the leaves to the stream of the capture.
            return tuple(out.detach() for out in case.run(forward, self.backward))

        graph = captured([partial(call, case) for case in cases])
        graph.replay()
        torch.cuda.synchronize(self.device)
        graph_bytes = len(cases) * bytes_of(self.case)
        fits = graph_bytes <= torch.cuda.get_device_properties(self.device).L2_cache_size
        checks = [cases[i].check(graph.outputs[i], ours) for i in (0, -1)]
        return Rival(
            graph.replay,
            Check(worst([check.error for check in checks]), checks[0].against),
            {"graph_calls": len(cases), "graph_fits_l2": fits},
            moved_bytes=moved,
            own_memory=False,
            calls=len(cases),
        )


def _unknown(_: Callable[[], object]) -> None:
    return None
