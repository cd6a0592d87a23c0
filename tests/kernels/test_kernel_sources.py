"""What the lowest supported triton and torch make of the kernels, seen with any that are installed.

Triton 3.6 has fewer names. Inductor of torch 2.11 copies a kernel into a module of its own, and
finds out what it writes from a copy whose numbers are all constants.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._library.custom_ops import CustomOpDef
from torch._library.triton import get_inner_triton_kernels, get_triton_kernels_for_op

import vaez_kernels
from tests.kernels import offline
from vaez_kernels import bernoulli as likelihood
from vaez_kernels import interpreting, latent, mixture, noise
from vaez_kernels import linear_bernoulli as linear_likelihood
from vaez_kernels.backend import triton

SOURCES = sorted(Path(vaez_kernels.__file__).parent.rglob("*.py"))
# The public names of triton.language in triton 3.6.0.
NAMES_OF_3_6 = set(Path(__file__).with_name("triton_3_6_names.txt").read_text("ascii").split())

needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels")
compiles = pytest.mark.skipif(interpreting(), reason="interpreted kernels are not compiled")


def names_of_triton(source: str) -> set[str]:
    """What a source takes from triton.language, there called tl."""
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
    # A submodule is there once somebody has imported it.
    assert all(isinstance(names[name], ModuleType) for name in names.keys() - NAMES_OF_3_6)


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(vaez_kernels.__path__, "vaez_kernels.")
    return [importlib.import_module(info.name) for info in found]


def jitted() -> dict[str, Any]:
    """Every function that our modules decorate with `jit`, by its module and name."""
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
    assert len(kernels) >= 9  # two a latent, a likelihood and a mixture, three a last layer, …
    for name in kernels:
        module = as_inductor_writes_it(functions[name], tmp_path)
        copies = [x for x in vars(module).values() if isinstance(x, triton.runtime.JITFunction)]
        for copy in copies:
            missing = loaded_globals(copy.fn) - set(vars(module)) - set(vars(builtins))
            assert not missing, f"{name}: {copy.__name__} finds no {', '.join(sorted(missing))}"


@needs_triton
@compiles
def test_functions_that_a_kernel_reaches_have_names_of_their_own() -> None:
    # Inductor copies one function for each name, from whichever module it finds it first.
    for name, kernel in jitted().items():
        reached: dict[str, Any] = {}
        todo = [kernel]
        while todo:
            function = todo.pop()
            assert reached.setdefault(function.__name__, function) is function, name
            used = (function.fn.__globals__.get(x) for x in loaded_globals(function.fn))
            callees = [x for x in used if isinstance(x, triton.runtime.JITFunction)]
            todo += [x for x in callees if reached.get(x.__name__) is not x]


S, B, D, P = 3, 7, 20, 784
KEY = noise.noise_key(1, "train")
LATENTS = torch.zeros(B, D)
LOGITS, PIXELS = torch.zeros(S, B, P), torch.zeros(B, P)
LAYER = (torch.zeros(S, B, D), torch.zeros(P, D), torch.zeros(P), PIXELS, "float32")
OF_DRAWS, LEFT_OUT = torch.zeros(B), torch.zeros(B, dtype=torch.int64)
GRAD = torch.zeros(S, B)
of_layer = linear_likelihood
LAUNCHES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "noise": (noise._launch, (KEY, (S, B, D), 1, 2, True)),
    "latent_forward": (
        latent._launch_forward,
        (LATENTS, LATENTS, KEY, S, True, "total-derivative", 1, 2),
    ),
    "latent_backward": (
        latent._launch_backward,
        (
            *(torch.zeros(S, B, D), OF_DRAWS, LATENTS, LATENTS, KEY),
            *(S, "total-derivative", 1, 2, True, True),
        ),
    ),
    "bernoulli_forward": (likelihood._launch_forward, (LOGITS, PIXELS)),
    "bernoulli_backward": (likelihood._launch_backward, (GRAD, LOGITS, PIXELS, True, True)),
    "linear_bernoulli_forward": (of_layer._launch_forward, LAYER),
    "linear_bernoulli_hidden": (of_layer._launch_hidden, (GRAD, *LAYER)),
    "linear_bernoulli_weight": (of_layer._launch_weight, (GRAD, *LAYER)),
    "mixture_forward": (mixture._launch_forward, (LATENTS, LATENTS, LATENTS, LEFT_OUT)),
    "mixture_backward": (
        mixture._launch_backward,
        (OF_DRAWS, LATENTS, LATENTS, LATENTS, LEFT_OUT, OF_DRAWS, OF_DRAWS),
    ),
}


def with_constants_for_numbers(what: offline.Specialisation) -> offline.Specialisation:
    """Each number that a launch passes is a constant, as where torch 2.11 sees what is written."""
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
@pytest.mark.parametrize("name", list(LAUNCHES))
def test_a_kernel_compiles_with_constants_for_numbers(name: str) -> None:
    if reason := offline.reason_to_skip("sm_90"):
        pytest.skip(reason)
    launch, args = LAUNCHES[name]
    (kernel,) = (k for full, k in jitted().items() if full.endswith(f".{name}_kernel"))
    what = with_constants_for_numbers(offline.specialisation(launch, kernel, *args))
    assert offline.build(what, "sm_90").length > 0


@needs_triton
@compiles
def test_every_kernel_that_inductor_sees_is_compiled_with_constants() -> None:
    kernels = {name.rpartition(".")[2] for name in jitted() if name.endswith("_kernel")}
    # The whole decoder's kernel is launched past torch.compile.
    assert {f"{name}_kernel" for name in LAUNCHES} == kernels - {"decoder_kernel"}


@needs_triton
@compiles
def test_an_op_names_the_kernels_that_pytorch_would_find_in_its_source() -> None:
    # PyTorch keeps compiled code on the disk under their sources. If a name were missing, it would
    # run code that it compiled before that kernel was changed.
    ops = {
        value._qualname: value
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, CustomOpDef) and "twin" not in value._qualname
    }
    assert len(ops) == 9
    for name, op in ops.items():
        assert op._abstract_fn is not None
        found: set[Any] = set(get_inner_triton_kernels(op._abstract_fn))
        kernels = {kernel for kernel in found if kernel.__name__.endswith("_kernel")}
        assert set(get_triton_kernels_for_op(name)) == kernels != set(), name
