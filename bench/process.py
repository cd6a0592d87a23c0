"""What a child process of this checkout needs: its folder and its environment variables."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(root: Path = ROOT) -> dict[str, str]:
    """This process's variables, with the packages of a checkout first on PYTHONPATH.

    So children run this checkout, or the one at `root`, installed or not.
    """
    paths = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
