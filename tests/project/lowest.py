"""What `make test-oldest` installs: only what a CUDA machine has, at the lowest versions.

Prints pip requirements made from pyproject.toml, so that the tests run with the declared versions.
"""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
# These compile the ops, so they are pinned. The others may be newer than the declared minimum: a
# machine with Python 3.12 has the newest NumPy.
LOWEST = ("torch", "triton", "torchvision")
AS_DECLARED = ("numpy", "matplotlib", "filelock")
FOR_TESTS = ("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis")


def requirements(pyproject: str) -> list[str]:
    """The lines for pip, from the text of pyproject.toml.

    Raises:
        ValueError: a package is not declared as NAME>=VERSION.
    """
    project = tomllib.loads(pyproject)["project"]
    declared = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    by_name = {re.split(r"[^\w.-]", line)[0]: line for line in declared}
    found = []
    for name in (*LOWEST, *AS_DECLARED, *FOR_TESTS):
        line = by_name.get(name, "")
        if not line.startswith(f"{name}>="):
            raise ValueError(f"pyproject.toml must declare {name}>=VERSION, found {line!r}")
        if name in LOWEST:
            line = re.sub(r">=([\d.]+)", r"==\1.*", line, count=1)
        found.append(line)
    return found


if __name__ == "__main__":
    print("\n".join(requirements(PYPROJECT.read_text("utf-8"))))
