"""What inductor does once before its first CPU build, made shorter.

With empty caches, the first training step comes after 32 s instead of 41, and with torch 2.11 after
34 s instead of 54 (altosaar, float32, two Zen 3 cores; `pytest bench/training/bench_start.py`).
"""

from __future__ import annotations

import contextlib
import functools
import platform
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

import torch


@functools.cache
def instruction_set_options() -> dict[str, Any]:
    """Options of inductor that spare its trial of each instruction set, if none can fail.

    Inductor compiles and loads a library for each set. That guards against a compiler without the
    set, and against a PyTorch that was built without it. Here the compiler is asked whether it
    takes the flags, and PyTorch which set its own kernels use.
    """
    import torch._inductor.config as inductor
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.cpu_vec_isa import supported_vec_isa_list, x86_isa_checker

    known = sys.platform == "linux" and platform.machine() == "x86_64"
    if not known or inductor.cpp.vec_isa_ok is not None:
        return {}
    supported = x86_isa_checker()
    sets = [s for s in supported_vec_isa_list if set(str(s).split()) <= set(supported)]
    widest = "AVX512" if "avx512" in supported else "AVX2"
    if not sets or torch.backends.cpu.get_cpu_capability() != widest:
        return {}
    flags = [flag for s in sets for flag in s.build_arch_flags().split()]
    asked = [get_cpp_compiler(), *flags, "-fsyntax-only", "-x", "c++", "/dev/null"]
    accepted = subprocess.run(asked, capture_output=True, check=False).returncode == 0
    return {"cpp.vec_isa_ok": True} if accepted else {}


@functools.cache
def start_on_header() -> None:
    """Start to compile the header of all CPU code, if it is not in inductor's cache on disk.

    Inductor starts when it has written its first loop, and waits. This takes 5 to 9 s of another
    core, in which a graph can be traced and lowered.
    """
    # All of this in the caller's thread: two threads must not import the same modules at once, and
    # settings of inductor belong to all threads in torch 2.11.
    import torch._inductor.compile_fx  # noqa: F401
    import torch._inductor.config as inductor
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with inductor.patch(instruction_set_options()):
        pick_vec_isa()  # is remembered

    def work() -> None:
        # A build that needs the header repeats what fails here, and reports it.
        with contextlib.suppress(Exception):
            CppPythonBindingsCodeCache.load_pybinding_async(
                ["float*"], 'extern "C" void kernel(float*) {}', submit_fn=lambda _: Future()
            )

    threading.Thread(target=work, daemon=True).start()
