"""The old names of modules that moved: `import vaez_fast.train` still gives the module of today."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

NEW_NAMES = {
    "vaez_fast.train": "vaez_fast.training.train",
    "vaez_fast.evaluate": "vaez_fast.measures.evaluate",
    "vaez_fast.results": "vaez_fast.runs.folder",
    "vaez_fast.samplers": "vaez_fast.measures.samplers",
    "vaez_fast.aggregate": "vaez_fast.measures.aggregate",
    "vaez_fast.image_metrics": "vaez_fast.measures.image_metrics",
}


class MovedModules:
    """Finds and loads the modules of `NEW_NAMES`; nothing is imported before it is asked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in NEW_NAMES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Python makes a module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(NEW_NAMES[module.__name__])


def install() -> None:
    """Add the finder of old names to Python's, once."""
    if not any(type(finder).__qualname__ == MovedModules.__qualname__ for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
