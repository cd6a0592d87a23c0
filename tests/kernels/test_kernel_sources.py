"""Whether the kernels work with the lowest supported triton and torch, tested with any versions.

Triton 3.6 has fewer names. Inductor of torch 2.11 copies a kernel into a separate module, and
determines its writes from a copy in which all numbers are constants.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._library.triton import get_triton_kernels_for_op

import vaez_kernels
from bench.bounds import builds
from tests.kernels import offline
from vaez_kernels import interpreting
from vaez_kernels.backend import triton
from vaez_kernels.cases import FOLDERS, ours
from vaez_kernels.define import Op

SOURCES = sorted(Path(vaez_kernels.__file__).parent.rglob("*.py"))
# The public names of triton.language in triton 3.6.0.
NAMES_OF_3_6 = set(Path(__file__).with_name("triton_3_6_names.txt").read_text("ascii").split())

needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels")
compiles = pytest.mark.skipif(interpreting(), reason="interpreted kernels are not compiled")


def names_of_triton(source: str) -> set[str]:
    """The names that a source uses from triton.language, imported as tl."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "tl"
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_source_takes_from_triton_what_3_6_has(path: Path) -> None:
    assert names_of_triton(path.read_text("utf-8")) <= NAMES_OF_3_6


@needs_triton
def test_the_list_of_names_is_that_of_3_6() -> None:
    if not triton.__version__.startswith("3.6."):
        pytest.skip(f"triton {triton.__version__} is installed, not 3.6")
    names = {name: value for name, value in vars(triton.language).items() if name[0] != "_"}
    assert names.keys() >= NAMES_OF_3_6
    # A submodule is an attribute once any code has imported it.
    assert all(isinstance(names[name], ModuleType) for name in names.keys() - NAMES_OF_3_6)


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(vaez_kernels.__path__, "vaez_kernels.")
    return [importlib.import_module(info.name) for info in found]


def jitted() -> dict[str, Any]:
    """Every function that our modules decorate with `jit`, by module and name."""
    return {
        f"{module.__name__}.{name}": value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.JITFunction) and value.fn.__module__ == module.__name__
    }


def loaded_globals(function: Callable[..., Any]) -> set[str]:
    return {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}


def as_inductor_writes_it(kernel: Any, folder: Path) -> ModuleType:
    """The module into which inductor copies a kernel and all that it calls."""
    from torch._inductor.codegen import wrapper

    source = wrapper.user_defined_triton_kernel_transitive_closure_source_code(kernel)
    path = folder / "written.py"
    header = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
    path.write_text(header + source, "utf-8")
    spec = importlib.util.spec_from_file_location("written", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_triton
@compiles
def test_inductors_copy_of_a_kernel_has_every_helper_under_the_name_that_is_called(
    tmp_path: Path,
) -> None:
    functions = jitted()
    kernels = [name for name in functions if name.endswith("_kernel")]
    assert len(kernels) >= 9  # two each for latent, likelihood, mixture, three for last layer, …
    for name in kernels:
        module = as_inductor_writes_it(functions[name], tmp_path)
        copies = [x for x in vars(module).values() if isinstance(x, triton.runtime.JITFunction)]
        for copy in copies:
            missing = loaded_globals(copy.fn) - set(vars(module)) - set(vars(builtins))
            assert not missing, f"{name}: {copy.__name__} finds no {', '.join(sorted(missing))}"


@needs_triton
@compiles
def test_functions_that_a_kernel_reaches_have_names_of_their_own() -> None:
    # Inductor copies one function for each name, from the first module in which it finds the name.
    for name, kernel in jitted().items():
        reached: dict[str, Any] = {}
        todo = [kernel]
        while todo:
            function = todo.pop()
            assert reached.setdefault(function.__name__, function) is function, name
            used = (function.fn.__globals__.get(x) for x in loaded_globals(function.fn))
            callees = [x for x in used if isinstance(x, triton.runtime.JITFunction)]
            todo += [x for x in callees if reached.get(x.__name__) is not x]


@functools.cache
def launched(folder: str) -> dict[str, builds.Specialisation]:
    """For each kernel that an op's cases launch, the first specialisation with an awkward shape."""
    module = FOLDERS[folder]
    cases = [case for case in module.cases() if min(case.shape) > 1 or len(case.shape) > 4]
    found: dict[str, builds.Specialisation] = {}
    for op in module.OPS:
        case = next(case for case in cases if case.op == op)
        cpu = torch.device("cpu")
        for name, what in builds.specialisations(partial(ours, case, cpu)).items():
            found.setdefault(name, what)
    return found


FOLDER_OF = {
    name: folder
    for folder in FOLDERS
    for name in builds.kernels_of(importlib.import_module(f"vaez_kernels.{folder}.kernel"))
}


def with_constants_for_numbers(what: builds.Specialisation) -> builds.Specialisation:
    """All numbers of a launch as constants, as when torch 2.11 determines a kernel's writes."""
    numbers = [name for name, kind in what.signature if kind in ("i32", "i64", "fp32")]
    signature = tuple(
        (name, "constexpr" if name in numbers else kind) for name, kind in what.signature
    )
    return what._replace(
        signature=signature,
        constants=what.constants + tuple((name, 2) for name in numbers),
        aligned=tuple(at for at in what.aligned if what.signature[at][0] not in numbers),
    )


@needs_triton
@compiles
@pytest.mark.parametrize("name", [name for name in FOLDER_OF if name != "decoder_kernel"])
def test_a_kernel_compiles_with_constants_for_numbers(name: str) -> None:
    # The decoder's kernel is not launched through torch.compile.
    if reason := builds.reason_to_skip("sm_90"):
        pytest.skip(reason)
    what = with_constants_for_numbers(launched(FOLDER_OF[name])[name])
    assert builds.build(what, "sm_90").length > 0


@needs_triton
@compiles
@pytest.mark.parametrize("name", [name for name in FOLDER_OF if name != "decoder_kernel"])
@pytest.mark.parametrize("target", list(builds.TARGETS))
def test_a_case_of_every_kernel_stays_in_registers(name: str, target: str) -> None:
    if reason := builds.reason_to_skip(target):
        pytest.skip(reason)
    offline.assert_in_registers(builds.build(launched(FOLDER_OF[name])[name], target))


@needs_triton
@compiles
def test_every_kernel_stands_in_a_room_and_is_launched_by_its_cases() -> None:
    written = {name.rpartition(".")[2] for name in jitted() if name.endswith("_kernel")}
    assert set(FOLDER_OF) == written
    for folder in FOLDERS:
        if folder != "importance":  # its kernel does not support the cases' float32 products
            kernels = {name for name, of in FOLDER_OF.items() if of == folder}
            assert kernels <= set(launched(folder)), folder


@needs_triton
@compiles
def test_an_op_names_the_kernels_that_it_launches() -> None:
    # PyTorch caches compiled code on disk, keyed by the kernels' sources. If a kernel were missing,
    # PyTorch would run outdated code after that kernel changes.
    ops = {
        folder: op
        for folder in FOLDERS
        for op in vars(importlib.import_module(f"vaez_kernels.{folder}")).values()
        if isinstance(op, Op)
    }
    assert set(ops) == set(FOLDERS) - {"importance"}
    for folder, op in ops.items():
        directions = [op.traced] + ([op.traced_backward] if op.differentiable else [])
        named: set[str] = set()
        for direction in directions:
            kernels: list[Any] = get_triton_kernels_for_op(direction._qualname)
            names = [kernel.__name__ for kernel in kernels]
            assert len(set(names)) == len(names), folder
            named |= set(names)  # the directions may share one
        assert named == {name for name, of in FOLDER_OF.items() if of == folder}
