"""How an op becomes PyTorch's: `torch.library.triton_op`, told which kernels it launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch._library import triton as library
from torch._library.custom_ops import CustomOpDef

from .backend import triton


def triton_op(name: str, *kernels: Any) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Register a function without side effects, which launches these kernels through `launcher`.

    PyTorch keeps compiled code on the disk under the sources of an op's kernels. It would look for
    them in the source of the function, and import inductor for that: 2.8 of the 3.2 s of processor
    time that `import vaez_kernels` took. It would also warn, for each op, where triton is missing.
    """
    # Functions of the interpreter, and those that are nothing without triton, are never compiled.
    compiled: list[object] = [
        kernel for kernel in kernels if triton and isinstance(kernel, triton.runtime.JITFunction)
    ]

    def register(function: Callable[..., Any]) -> CustomOpDef:
        search = library.get_inner_triton_kernels

        def found(fn: Callable[..., Any]) -> list[object]:
            # Another thread may be registering an op of its own.
            return compiled if fn is function else search(fn)

        library.get_inner_triton_kernels = found
        try:
            return cast(CustomOpDef, torch.library.triton_op(name, function, mutates_args=()))
        finally:
            library.get_inner_triton_kernels = search

    return register
