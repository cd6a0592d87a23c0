"""Compiles kernels for GPUs that are not present, as a launch would, and reads the output.

A recorder replaces each kernel while its launcher runs. So kernels are compiled exactly as the
launcher would launch them: with its flags, its block shape, and the properties on which Triton
specialises (16-byte aligned pointers, integers that are 1 or divisible by 16).
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from vaez_kernels import backend, use_backend
from vaez_kernels.backend import triton
from vaez_kernels.cases import FOLDERS

# Triton 3.9 fuses multiply and add by default, and warns that 3.10 will not. The budgets assume
# fusion.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
DIVISIBLE = (("tt.divisibility", 16),)


def reason_to_skip(target: str) -> str:
    """Why code for `target` cannot be compiled here; empty if it can."""
    if triton is None:
        return "triton is not installed: there are no kernels to compile"
    from triton.backends import backends

    name = "amd" if TARGETS[target][0] == "hip" else "nvidia"
    return "" if name in backends else f"this triton has no {name} backend"


class Specialisation(NamedTuple):
    """The key of one Triton compilation: types and constants by name, attributes by position."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]  # num_warps and the like


class Launched(NamedTuple):
    """A launch, recorded."""

    what: Specialisation
    programs: int


class _Recorder:
    """Stands for a kernel, and adds each launch of it to `seen`."""

    def __init__(self, kernel: Any, seen: list[Launched]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self.record, math.prod(grid))

    def record(self, programs: int, *args: Any, **constants: Any) -> None:
        values = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        constexpr = set(constants)
        # Triton's own list of the integers on whose values a kernel is not specialised.
        fixed_type = {p.name for p in self.kernel.params if p.do_not_specialize}
        signature: dict[str, str] = {}
        aligned = []
        for position, name in enumerate(self.kernel.arg_names):
            value = values[name]
            if isinstance(value, Tensor):
                signature[name] = TYPES[value.dtype]
                if value.data_ptr() % 16 == 0:
                    aligned.append(position)
            elif (
                name in constexpr
                or value is None
                or (type(value) is int and value == 1 and name not in fixed_type)
            ):
                signature[name] = "constexpr"
                constexpr.add(name)
            elif isinstance(value, int):
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0 and name not in fixed_type:
                    aligned.append(position)
            else:
                signature[name] = "fp32"
        fixed = tuple((name, values[name]) for name in self.kernel.arg_names if name in constexpr)
        options = tuple(item for item in constants.items() if item[0] not in signature)
        what = Specialisation(self.kernel, tuple(signature.items()), fixed, tuple(aligned), options)
        self.seen.append(Launched(what, programs))


def specialisation(launch: Callable[..., Any], kernel: Any, *args: Any) -> Specialisation:
    """The specialisation of `kernel` that `launch(*args)` would compile."""
    found = _recorded([sys.modules[launch.__module__]], functools.partial(launch, *args))
    (of_kernel,) = (launched.what for launched in found if launched.what.kernel is kernel)
    return of_kernel


def kernel_modules() -> list[ModuleType]:
    """The modules with the ops' kernels."""
    modules = [importlib.import_module(f"vaez_kernels.{name}.kernel") for name in FOLDERS]
    return list(dict.fromkeys(modules))


def kernels_of(module: ModuleType) -> dict[str, Any]:
    found = {name: kernel for name, kernel in vars(module).items() if name.endswith("_kernel")}
    return {n: k for n, k in found.items() if isinstance(k, triton.runtime.JITFunction)}


def specialisations(run: Callable[[], object]) -> dict[str, Specialisation]:
    """The first specialisation of each kernel that `run` launches on CPU tensors, by name."""
    return {name: launched.what for name, launched in launches(run).items()}


def launches(run: Callable[[], object]) -> dict[str, Launched]:
    """The first launch of each kernel that `run` launches on CPU tensors, by name, in order."""
    with patch.object(backend, "interpreting", lambda: True), use_backend("triton"):
        found = _recorded(kernel_modules(), run)
    first: dict[str, Launched] = {}
    for launched in found:
        first.setdefault(launched.what.kernel.__name__, launched)
    return first


def _recorded(modules: Iterable[ModuleType], run: Callable[[], object]) -> list[Launched]:
    # All launches of kernels of these modules, in order.
    seen: list[Launched] = []
    with ExitStack() as stack:
        for module in modules:
            for name, kernel in kernels_of(module).items():
                stack.enter_context(patch.object(module, name, _Recorder(kernel, seen)))
        run()
    return seen


class Binary(NamedTuple):
    """A compiled kernel. Instructions are counted without NOPs."""

    ir: str  # PTX or AMD assembly
    registers: int
    spills: int  # to memory: instructions (NVIDIA) or registers (AMD)
    parked: int  # AMD's scalar registers that are stored in lanes of a vector register
    stack: int
    shared: int
    instructions: Counter[str]
    listing: str = ""  # NVIDIA's machine code (SASS), as nvdisasm prints it

    @property
    def length(self) -> int:
        return sum(self.instructions.values())

    def count(self, pattern: str) -> int:
        matches = (n for name, n in self.instructions.items() if re.match(pattern, name))
        return sum(matches)


@functools.cache
def build(what: Specialisation, target: str) -> Binary:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = what.kernel.arg_names
    source = ASTSource(
        fn=what.kernel,
        signature=dict(what.signature),
        constexprs={(names.index(name),): value for name, value in what.constants},
        attrs={(position,): [list(pair) for pair in DIVISIBLE] for position in what.aligned},
    )
    built = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=dict(what.options))
    read = _read_amd if TARGETS[target][0] == "hip" else _read_nvidia
    return read(built)


def _read_nvidia(built: Any) -> Binary:
    from triton import knobs

    ptx = built.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        cubin, source = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(built.asm["cubin"])
        source.write_text(ptx)
        usage = _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin)
        sass = _run(knobs.nvidia.nvdisasm.path, "-c", "-ndf", cubin)
    line = r"^\s+/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)"
    instructions = Counter(name for name in re.findall(line, sass, re.M) if name != "NOP")
    return Binary(
        ir=ptx,
        registers=_number(r"REG:(\d+)", usage),
        # Spilled registers are in local memory, which only these two instructions access.
        spills=sum(n for name, n in instructions.items() if name.startswith(("STL", "LDL"))),
        parked=0,
        stack=_number(r"STACK:(\d+)", usage),
        shared=built.metadata.shared,
        instructions=instructions,
        listing=sass,
    )


def _read_amd(built: Any) -> Binary:
    text = built.asm["amdgcn"]
    body = text[: text.index(".section", text.index("s_endpgm"))]
    names = re.findall(
        r"^\s+([sv]_\w+|global_\w+|buffer_\w+|ds_\w+|scratch_\w+|flat_\w+)", body, re.M
    )
    return Binary(
        ir=text,
        registers=_number(r"\.vgpr_count:\s+(\d+)", text),
        spills=_number(r"\.vgpr_spill_count:\s+(\d+)", text),
        parked=_number(r"\.sgpr_spill_count:\s+(\d+)", text),
        stack=_number(r"\.private_segment_fixed_size:\s+(\d+)", text),
        shared=built.metadata.shared,
        instructions=Counter(name for name in names if name != "s_nop"),
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in:\n{text[-2000:]}"
    return int(found[1])


def _run(*command: str | os.PathLike[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
