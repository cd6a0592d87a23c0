"""Imports go one way: between the packages, between the stages of vaez_fast, and without circles.

Every import counts, those inside functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From low to high: a package or stage imports itself and what stands before it.
PACKAGES = {
    "vaez_kernels": ROOT / "kernels/vaez_kernels",
    "vaez_fast": ROOT / "vaez_fast",
    "bench": ROOT / "bench",
    "tests": ROOT / "tests",
}
STAGES = (
    ("", "moved"),
    ("system",),
    ("names",),
    ("config",),
    ("streams",),
    ("data",),
    ("sources",),
    ("model",),
    ("flows",),
    ("likelihoods",),
    ("richer",),
    ("objective",),
    ("ops",),
    ("latents",),
    ("drawing",),
    ("measures",),
    ("training",),
    ("trainer",),
    ("runs",),
    ("theory",),
    ("study",),
    ("report",),
    ("compare",),
    ("cli",),
    ("__main__",),
)

# The state of an executed PTX program holds its parts, and their types name each other.
PTX_TYPES = {
    ("tests.ptx.lanes", "tests.ptx.form"),
    ("tests.ptx.lanes", "tests.ptx.program"),
    ("tests.ptx.lanes", "tests.ptx.shared"),
    ("tests.ptx.memory", "tests.ptx.lanes"),
    ("tests.ptx.copies_under_way", "tests.ptx.lanes"),
}

Imports = dict[str, dict[str, int]]  # module → each module that it imports, with the line


def modules(packages: Mapping[str, Path]) -> dict[str, Path]:
    """Every module's file, by the module's name."""
    found = {}
    for package, folder in packages.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(files: Mapping[str, Path]) -> Imports:
    return {name: dict(_imported(name, path, files)) for name, path in files.items()}


def _imported(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(filter(None, [*(above if node.level else []), node.module]))
            wanted = [(f"{start}.{alias.name}", start) for alias in node.names]
        else:
            continue
        for whole, start in wanted:
            target = whole if whole in files else start
            if target in files and target != name:
                yield target, node.lineno


def circle(graph: Imports) -> list[str] | None:
    """Modules of which each imports the next, from one back to itself, if there are any."""
    ours = {a: [b for b in others if (a, b) not in PTX_TYPES] for a, others in graph.items()}
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None


def stage_of(module: str) -> int:
    name = (f"{module}.").split(".")[1]
    places = [place for place, stage in enumerate(STAGES) if name in stage]
    assert places, f"{module}: tests/project/test_house.py has no stage for it"
    return places[0]


def upward(graph: Imports) -> list[str]:
    """A line for each import from a later package or stage."""
    order = list(PACKAGES)
    found = []
    for module, imported in graph.items():
        # The package itself names its public classes for type checkers, and imports none.
        if module == "vaez_fast":
            continue
        for other, line in imported.items():
            package, its = module.split(".")[0], other.split(".")[0]
            where = f"{module} imports {other} (line {line})"
            if order.index(its) > order.index(package):
                found.append(f"{where}: {package} must not import {its}")
            elif package == its == "vaez_fast" and stage_of(other) > stage_of(module):
                found.append(f"{where}: its stage is later")
    return found


@pytest.fixture(scope="module")
def graph() -> Imports:
    return imports(modules(PACKAGES))


def test_no_modules_import_each_other_in_a_circle(graph: Imports) -> None:
    found = circle(graph)
    assert found is None, " → ".join(found or [])


def test_nothing_imports_from_a_later_package_or_stage(graph: Imports) -> None:
    found = upward(graph)
    assert not found, "\n".join(found)


def test_every_module_of_vaez_fast_has_a_stage() -> None:
    for module in modules({"vaez_fast": PACKAGES["vaez_fast"]}):
        stage_of(module)


def test_a_bad_import_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "vaez_fast"
    for name, content in {
        "__init__.py": "",
        "config.py": "def choose():\n    from .training import loop\n",
        "system/__init__.py": "",
        "system/files.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from bench.timing import clock\n",
        "training/__init__.py": "from ..training.loop import run\n",
        "training/loop.py": "import vaez_fast.config\nfrom . import state\n",
        "training/state.py": "from ..system import files\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    clock = tmp_path / "bench" / "timing" / "clock.py"
    clock.parent.mkdir(parents=True)
    clock.write_text("")
    graph = imports(modules({"vaez_fast": folder, "bench": tmp_path / "bench"}))
    assert graph["vaez_fast.training.loop"] == {
        "vaez_fast.config": 1,
        "vaez_fast.training.state": 2,
    }
    assert upward(graph) == [
        "vaez_fast.config imports vaez_fast.training.loop (line 2): its stage is later",
        "vaez_fast.system.files imports bench.timing.clock (line 3): "
        "vaez_fast must not import bench",
    ]
    found = circle(graph)
    assert found is not None
    assert found[0] == found[-1]
    assert set(found) == {"vaez_fast.config", "vaez_fast.training.loop"}
