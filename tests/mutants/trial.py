"""Tries mutants: puts each into a copy of the checkout and runs the tests there."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant, MutantError

# With warm caches no set of tests takes a third of this, so a mutant that takes longer hangs.
LONGEST = 900.0  # seconds
PASSED, FAILED, BROKEN = 0, 1, 2  # pytest's exit statuses; 2 also if a file cannot be imported
# Triton reads TRITON_INTERPRET when a kernel is decorated, so these tests need their own process.
INTERPRETED = "tests/interpreted/"
INTERPRETER = {"TRITON_INTERPRET": "1", "VAEZ_BACKEND": "triton"}


@dataclass(frozen=True)
class Verdict:
    """The result of the tests on a mutant."""

    mutant: Mutant
    caught: bool
    by: str  # the first failed test, or another reason; empty if missed
    seconds: float


def copy_of(root: Path, target: Path) -> None:
    """Copy the files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if not (root / name).is_file():  # deleted, but the deletion is not committed
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)


def run_tests(tree: Path, tests: Sequence[str], *flags: str) -> tuple[int | None, str]:
    """Run pytest in `tree`. Returns its exit status, None if it did not end, and its output.

    Tests of interpreted kernels run last, in their own process, if the others pass.
    """
    status: int | None = PASSED
    printed = ""
    for interpreted in (False, True):
        group = [test for test in tests if test.startswith(INTERPRETED) == interpreted]
        if group and status == PASSED:
            status, printed = _run_pytest(tree, group, flags, INTERPRETER if interpreted else {})
    return status, printed


def _run_pytest(
    tree: Path, tests: Sequence[str], flags: Sequence[str], settings: dict[str, str]
) -> tuple[int | None, str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "kernels")]),
        # Python compares compiled files by whole seconds and sizes, which mutants may share.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    environment.update(settings)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags, *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def prove_baseline(root: Path, mutants: Sequence[Mutant], jobs: int) -> None:
    """Run all tests without any mutant.

    Raises:
        MutantError: a test fails or does not exist, or no test ran. No verdict would be possible.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with _copies(root, 1) as trees:
        tree = trees.get()
        status, printed = run_tests(tree, tests, "-n", str(jobs), "--dist", "loadfile")
    if status != PASSED:
        last = "\n".join(printed.splitlines()[-25:])
        raise MutantError(f"without a mutant the tests end with status {status}:\n{last}")


def tried(
    root: Path,
    mutants: Sequence[Mutant],
    jobs: int = 1,
    observe: Callable[[Verdict], None] = lambda _: None,
) -> list[Verdict]:
    """Run the tests of each mutant. Returns the verdicts in the mutants' order.

    Args:
        root: the checkout, which is not changed.
        mutants: the mutants to try.
        jobs: how many are tried at once, each in its own copy.
        observe: called with each verdict as soon as it is known.

    Raises:
        MutantError: a mutant cannot be made, or its tests do not exist.
    """
    for mutant in mutants:
        mutant.mutated(root)  # check all mutants before the first one runs
    with _copies(root, jobs) as trees, ThreadPoolExecutor(jobs) as pool:

        def one(mutant: Mutant) -> Verdict:
            tree = trees.get()
            try:
                verdict = _try(tree, mutant)
            finally:
                trees.put(tree)
            observe(verdict)
            return verdict

        return list(pool.map(one, mutants))


@contextmanager
def _copies(root: Path, count: int) -> Iterator[queue.Queue[Path]]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(count):
            tree = Path(folder) / str(number)
            copy_of(root, tree)
            trees.put(tree)
        yield trees


def _try(tree: Path, mutant: Mutant) -> Verdict:
    file = tree / mutant.file
    original = file.read_text()
    file.write_text(mutant.mutated(tree))
    start = time.monotonic()
    try:
        status, printed = run_tests(tree, mutant.tests, "-x")
    finally:
        file.write_text(original)
    seconds = time.monotonic() - start
    if status is None:
        return Verdict(mutant, True, f"it does not end in {LONGEST:.0f} s", seconds)
    if status == PASSED:
        return Verdict(mutant, False, "", seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
    if status not in (FAILED, BROKEN) or failed is None:
        last = "\n".join(printed.splitlines()[-10:])
        raise MutantError(f"{mutant.says!r}: pytest ends with status {status}:\n{last}")
    return Verdict(mutant, True, failed.group(1), seconds)
