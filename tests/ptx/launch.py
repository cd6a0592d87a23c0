"""Compiles a Triton kernel for a GPU and executes it on CPU tensors. No GPU is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from tests.ptx.errors import UnsupportedPtx
from tests.ptx.machine import execute
from tests.ptx.memory import GlobalMemory
from tests.ptx.program import Program, parse
from tests.ptx.traffic import Traffic
from tests.ptx.units import Units

Grid = Sequence[int] | Callable[[dict[str, Any]], Sequence[int]]

_programs: dict[str, tuple[Program, Any]] = {}  # with Triton's metadata, by source and options


class Run(NamedTuple):
    """A launch that was executed."""

    grid: tuple[int, ...]
    traffic: Traffic
    metadata: Any  # of Triton's compiled kernel: shared, num_warps and so on
    program: Program


class PtxKernel:
    """Replaces a Triton kernel: `PtxKernel(kernel)[grid](*args, **constants)`.

    Args:
        kernel: the function returned by @triton.jit.
        target: "sm_80" and the like. For sm_90 and later Triton emits matrix instructions (wgmma,
            tcgen05) that are not supported here.
        units: which results approximate instructions give (see approximate.py).
    """

    def __init__(self, kernel: Any, target: str = "sm_80", units: Units = Units.NEAREST) -> None:
        self.kernel, self.units = kernel, units
        self.target = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
        self.runs: list[Run] = []
        self._backend = make_backend(self.target)
        self._bind = create_function_from_signature(kernel.signature, kernel.params, self._backend)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)  # launchers read attributes such as arg_names

    def __getitem__(self, grid: Grid) -> Callable[..., Run]:
        return lambda *args, **options: self.run(grid, args, options)

    def run(self, grid: Grid, args: Sequence[Any], options: dict[str, Any]) -> Run:
        """Compile if necessary, execute on the memory of the tensors, and record the run.

        Raises:
            UnsupportedPtx: see program.parse; also if an argument is not a tensor, number or None.
            Fault: see machine.execute.
        """
        bound, specialization, options = self._bind(*args, **options)
        parsed, signature, constexprs, attributes = self.kernel._pack_args(
            self._backend, options, bound, specialization, options
        )
        program, metadata = self._program(parsed, signature, constexprs, attributes)
        values = [bound[name] for name, type in signature.items() if type != "constexpr"]
        numbers = [_argument(value) for value in values]
        # Triton appends pointers to scratch memory. Kernels that use none do not read them.
        numbers += [0] * (len(program.parameters) - len(numbers))
        sizes = tuple(int(size) for size in (grid(bound) if callable(grid) else grid))
        traffic = execute(program, sizes, numbers, memory_of(bound), metadata.shared, self.units)
        run = Run(sizes, traffic, metadata, program)
        self.runs.append(run)
        return run

    def _program(
        self, options: Any, signature: Any, constexprs: Any, attributes: Any
    ) -> tuple[Program, Any]:
        source = ASTSource(self.kernel, signature, constexprs, attributes)
        key = f"{source.hash()} {options.hash()} {self.target}"
        if key not in _programs:
            built = triton.compile(source, target=self.target, options=options.__dict__)
            _programs[key] = parse(built.asm["ptx"]), built.metadata
        return _programs[key]


def _argument(value: Any) -> int | float:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, int | float):
        return value
    raise UnsupportedPtx(f"expected a tensor or a number as argument, got {type(value).__name__}")


def memory_of(arguments: dict[str, Any]) -> GlobalMemory:
    """The memory from the first to the last element of each CPU tensor, and nothing else.

    Raises:
        ValueError: a tensor is not on the CPU.
    """
    spans: list[tuple[int, int, str]] = []
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.device.type != "cpu":
            raise ValueError(f"expected {name} on the CPU, got {tensor.device}")
        if tensor.numel() == 0:
            continue
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        elements = 1 + sum((length - 1) * step for length, step in steps)
        start = tensor.data_ptr()
        end = start + elements * tensor.element_size()
        if spans and start < spans[-1][1]:
            first, last, names = spans.pop()
            spans.append((first, max(last, end), f"{names} and {name}"))
        else:
            spans.append((start, end, name))
    memory = GlobalMemory()
    for start, end, name in spans:
        data = (ctypes.c_uint8 * (end - start)).from_address(start)
        memory.add(start, np.ctypeslib.as_array(data), name)
    return memory
