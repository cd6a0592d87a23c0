"""A command on the stand-in: `python -m tests.rehearsal.command COMMAND …`, without a GPU.

For instance all of a dry run, an hour on one slow core: `python -m tests.rehearsal.command
python -m bench.gpu --dry-run --minutes 60 --data-root DIR --out DIR`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import build, environment, reason_to_skip

ROOT = Path(__file__).parents[2]


def run_on_stand_in(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` with this checkout's packages; `options` are those of `subprocess.run`."""
    with tempfile.TemporaryDirectory(prefix="rehearsal_") as folder:
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environ = os.environ | environment(build(Path(folder))) | variables
        return subprocess.run(command, env=environ, text=True, **options)


def main(command: Sequence[str]) -> int:
    """Exit status: the command's, as shells count; 2 without a command or the stand-in's parts."""
    reason = reason_to_skip() or ("" if command else "COMMAND is missing")
    if reason:
        print(f"tests.rehearsal.command: error: {reason}", file=sys.stderr)
        return 2
    status = run_on_stand_in(command).returncode
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
