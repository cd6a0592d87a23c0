"""Inductor's first CPU build: no needless trials, and the header that the build will read."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor

from bench.process import environment
from vaez_kernels.compiler import finds_tools
from vaez_kernels.first_build import instruction_set_options, start_on_header

X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
pytestmark = [
    pytest.mark.skipif(not X86_LINUX, reason="the shortcut is for Linux on x86-64"),
    pytest.mark.skipif(not finds_tools(), reason="no C++ compiler"),
]


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    instruction_set_options.cache_clear()
    yield
    instruction_set_options.cache_clear()


def test_no_set_is_tried_where_pytorch_and_the_compiler_have_them_all() -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    assert instruction_set_options() == {"cpp.vec_isa_ok": True}


def test_sets_are_tried_if_the_compiler_refuses_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\necho g++ 4.2\ncase "$*" in *-mavx2*) exit 1;; esac\n')
    compiler.chmod(0o755)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: str(compiler))
    assert instruction_set_options() == {}


def test_sets_are_tried_if_pytorch_itself_does_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert instruction_set_options() == {}


def test_what_the_user_chose_stands() -> None:
    with inductor.patch({"cpp.vec_isa_ok": False}):
        assert instruction_set_options() == {}


# Prints the files of compiled headers: after the head start alone, then after a build.
BUILDS = """
import sys, threading
from pathlib import Path
import torch
from vaez_kernels.compiler import compiled_without_guards, example, isolated
from vaez_kernels.first_build import start_on_header

def headers():
    return sorted(str(path) for path in Path(sys.argv[1]).rglob("*.gch"))

threads = set(threading.enumerate())
start_on_header()
for thread in set(threading.enumerate()) - threads:
    thread.join()
print(headers())
assert isolated(lambda: compiled_without_guards(torch.neg, example(2))) is not None
print(headers())
"""


def test_a_build_reads_the_header_that_was_started_early(tmp_path: Path) -> None:
    variables = environment() | {"TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", BUILDS, str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    early, late = done.stdout.splitlines()
    assert early == late != "[]"


def test_a_failed_head_start_is_left_to_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    raised: list[object] = []
    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_pybinding_async", fail)
    monkeypatch.setattr(threading, "excepthook", raised.append)
    start_on_header.cache_clear()
    threads = set(threading.enumerate())
    start_on_header()
    for thread in set(threading.enumerate()) - threads:
        thread.join()
    start_on_header.cache_clear()
    assert raised == []
