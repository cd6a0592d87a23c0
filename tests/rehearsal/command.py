"""Runs a command on the stand-in, without a GPU: `python -m tests.rehearsal.command COMMAND …`.

For instance all of a dry run, an hour on one slow core: `python -m tests.rehearsal.command
python -m bench gpu --dry-run --minutes 60 --data-root DIR --out DIR`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.process import environment as process_environment
from tests.rehearsal.build import build, environment, reason_to_skip


def run_on_stand_in(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` with this checkout's packages; `options` are those of `subprocess.run`."""
    with tempfile.TemporaryDirectory(prefix="rehearsal_") as folder:
        variables = process_environment() | environment(build(Path(folder)))
        return subprocess.run(command, env=variables, text=True, **options)


def main(command: Sequence[str]) -> int:
    """Exit status: the command's, or 2 if no command is given or the stand-in cannot be built.

    If a signal ends the command, it is 128 plus the signal's number, as in a shell.
    """
    reason = reason_to_skip() or ("" if command else "COMMAND is missing")
    if reason:
        print(f"tests.rehearsal.command: error: {reason}", file=sys.stderr)
        return 2
    status = run_on_stand_in(command).returncode
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
