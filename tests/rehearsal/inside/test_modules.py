"""A loaded cubin has the resources that ptxas reported, and launches keep the device's limits."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.rehearsal import stand_in

PTX = """
.version 8.0
.target {target}
.address_size 64
.visible .entry kernel(.param .u64 p, .param .u32 i)
{{
    .local .align 16 .b8 stack[96];
    .shared .align 16 .b8 tile[256];
    .reg .u64 %rd<8>;
    .reg .u32 %r<8>;
    ld.param.u64 %rd1, [p];
    ld.param.u32 %r1, [i];
    mov.u64 %rd2, stack;
    cvt.u64.u32 %rd3, %r1;
    add.u64 %rd4, %rd2, %rd3;
    st.local.u32 [%rd4], %r1;
    ld.local.u32 %r2, [stack+16];
    mov.u64 %rd6, tile;
    add.u64 %rd7, %rd6, %rd3;
    st.shared.u32 [%rd7], %r2;
    bar.sync 0;
    ld.shared.u32 %r3, [tile];
    st.global.u32 [%rd1], %r3;
    ret;
}}
"""
SUCCESS, INVALID_VALUE, INVALID_IMAGE, NO_BINARY, NOT_FOUND = 0, 1, 200, 209, 500
MAX_THREADS, SHARED, LOCAL, REGISTERS, MAX_DYNAMIC = 0, 1, 3, 4, 8
DRIVER = ctypes.CDLL("libcuda.so.1")


def compiled(folder: Path, target: str) -> tuple[bytes, str]:
    """The cubin that the wrapper of ptxas writes, and the output of ptxas."""
    source, cubin = folder / f"{target}.ptx", folder / f"{target}.cubin"
    source.write_text(PTX.format(target=target))
    command = [os.environ["TRITON_PTXAS_PATH"], "-v", f"--gpu-name={target}", str(source)]
    done = subprocess.run([*command, "-o", str(cubin)], capture_output=True, text=True, check=True)
    return cubin.read_bytes(), done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    return compiled(tmp_path_factory.mktemp("ptx"), "sm_90")


def loaded(image: bytes) -> ctypes.c_void_p:
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert DRIVER.cuModuleLoadData(ctypes.byref(module), image) == SUCCESS
    assert DRIVER.cuModuleGetFunction(ctypes.byref(function), module, b"other") == NOT_FOUND
    assert DRIVER.cuModuleGetFunction(ctypes.byref(function), module, b"kernel") == SUCCESS
    return function


def attribute(function: ctypes.c_void_p, number: int) -> int:
    value = ctypes.c_int()
    assert DRIVER.cuFuncGetAttribute(ctypes.byref(value), number, function) == SUCCESS
    return value.value


def test_a_function_has_the_resources_that_ptxas_counted(built: tuple[bytes, str]) -> None:
    image, said = built
    function = loaded(image)
    registers = re.search(r"Used (\d+) registers", said)
    stack = re.search(r"(\d+) bytes stack frame", said)
    assert registers
    assert stack
    assert attribute(function, REGISTERS) == int(registers[1])
    assert attribute(function, LOCAL) == int(stack[1])
    assert attribute(function, SHARED) == 256 + 1024  # CUDA reserves 1 KiB of every block
    assert attribute(function, MAX_THREADS) == 1024


def launch(function: ctypes.c_void_p, threads: int, shared: int) -> int:
    parameters = (ctypes.c_void_p * 2)()
    dims = (1, 1, 1, threads, 1, 1)
    code: int = DRIVER.cuLaunchKernel(function, *dims, shared, None, parameters, None)
    return code


def test_a_launch_keeps_to_the_limits(built: tuple[bytes, str]) -> None:
    function = loaded(built[0])
    assert launch(function, 1024, 0) == SUCCESS
    assert launch(function, 1025, 0) == INVALID_VALUE
    assert launch(function, 0, 0) == INVALID_VALUE
    # More than 48 KiB of dynamic shared memory has to be requested, up to a limit.
    assert launch(function, 32, 49153) == INVALID_VALUE
    assert DRIVER.cuFuncSetAttribute(function, MAX_DYNAMIC, 232448) == INVALID_VALUE
    assert DRIVER.cuFuncSetAttribute(function, MAX_DYNAMIC, 100_000) == SUCCESS
    assert launch(function, 32, 100_000) == SUCCESS


def test_the_ptx_of_a_launch_is_what_was_compiled(built: tuple[bytes, str]) -> None:
    function = loaded(built[0])
    seen: list[bytes] = []

    def keep(of: stand_in.Launch) -> int:
        seen.append(of.ptx)
        return 0

    stand_in.set_executor(launch=keep)
    launch(function, 32, 0)
    assert seen == [PTX.format(target="sm_90").encode()]


def test_a_cubin_of_another_generation_and_what_is_no_cubin_are_refused(tmp_path: Path) -> None:
    module = ctypes.c_void_p()
    image, _ = compiled(tmp_path, "sm_80")
    assert DRIVER.cuModuleLoadData(ctypes.byref(module), image) == NO_BINARY
    assert DRIVER.cuModuleLoadData(ctypes.byref(module), b"no ELF file") == INVALID_IMAGE
