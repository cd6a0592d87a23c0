"""Times two revisions in turn, several processes each: `python -m bench revisions OLD --out DIR`.

OLD is a commit, and NEW this checkout as it is, or the commit after --new. Each revision is checked
out under DIR, and the suite runs in turn in both, so that a drift of the machine meets both alike.
What follows -- goes to pytest, such as the benchmarks to run (all by default):

  python -m bench revisions main~1 --out /tmp/turns -- bench/ops/bench_ops.py -k latent

Writes old-1.json, new-1.json, … and prints what `python -m bench compare` says of them. Exit
status: that of the comparison, or 1 if a run failed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.command import Parser
from bench.process import ROOT, environment
from bench.records import compare
from bench.records.several import FEWEST_RUNS
from vaez_fast.system.files import OutputError, prepare_files


class RunError(Exception):
    """git or a run of the suite failed; the message says which and how."""


def git(*arguments: str) -> str:
    """What git prints in this checkout.

    Raises:
        RunError: git is not here, or it failed.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except OSError as error:
        raise RunError(f"git: {error.strerror or error}") from None
    except subprocess.CalledProcessError as error:
        raise RunError(f"git {' '.join(arguments)}: {error.stderr.strip()}") from None
    return done.stdout.strip()


@contextmanager
def checkout(revision: str | None, folder: Path) -> Iterator[Path]:
    """A folder with the files of a revision, for the block; this checkout for None."""
    if revision is None:
        yield ROOT
        return
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    git("worktree", "add", "--force", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def run(checked_out: Path, arguments: Sequence[str], out: Path) -> None:
    """Run the suite of a checkout in a process of its own, and write its JSON and its log.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", "pytest", *arguments, "--benchmark-only"]
    log = out.with_suffix(".log")
    with log.open("w") as output:
        status = subprocess.run(
            [*command, f"--benchmark-json={out}"],
            cwd=checked_out,
            env=environment(checked_out),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status != 0:
        raise RunError(f"{' '.join(command)} in {checked_out} ended with {status}: see {log}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: see the docstring of the module."""
    parser = Parser("revisions", __doc__)
    parser.add_argument("old", metavar="OLD", help="a commit")
    parser.add_argument("--new", metavar="COMMIT", help="instead of this checkout as it is")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="of each side (default: 5, at least 3)"
    )
    parser.add_out_folder()
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    options, suite = parser.parse_args(given[:end]), given[end + 1 :] or ["bench"]
    if options.runs < FEWEST_RUNS:
        parser.error(f"--runs must be at least {FEWEST_RUNS}, got {options.runs}")
    out = options.out.absolute()
    files = {
        side: [out / f"{side}-{n}.json" for n in range(1, options.runs + 1)]
        for side in ("old", "new")
    }
    try:
        prepare_files(out, *(file.name for of_side in files.values() for file in of_side))
        with (
            checkout(options.old, out / "old") as old,
            checkout(options.new, out / "new") as new,
        ):
            for n in range(options.runs):
                # The first of a pair alternates, too.
                for side, folder in (("old", old), ("new", new))[:: 1 if n % 2 == 0 else -1]:
                    run(folder, suite, files[side][n])
                    print(f"wrote {files[side][n]}", file=sys.stderr)
    except (RunError, OutputError) as error:
        return parser.failed(error)
    return compare.main([*map(str, files["old"]), "--new", *map(str, files["new"])])
