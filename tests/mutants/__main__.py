"""Put small bugs into copies of the checkout and check that the tests catch them.

Exit status: 0 done, 1 too few bugs are caught or a bug that a review had named is missed, 2 a
mutant cannot be tried.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutant import MutantError, read, sample
from tests.mutants.record import bugs, faults, page, record_of
from tests.mutants.trial import Verdict, prove_baseline, tried
from vaez_fast.system.files import OutputError, prepare_file, write_atomically, write_json

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="of mutants (default: all of them)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="in the bug's description")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N",
        help="try every N-th bug that no review named (default: 1, all)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="to try at once (default: 2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for results.json and README.md")
    options = parser.parse_args(argv)
    for name in ("jobs", "every"):
        if (count := getattr(options, name)) < 1:
            parser.error(f"argument --{name}: must be at least 1, got {count}")
    try:
        if options.out is not None:
            prepare_file(options.out / "results.json")
        files = options.files or sorted(FOLDER.glob("*.toml"))
        there = [m for file in files for m in read(file) if options.only in m.says]
        mutants = sample(there, options.every)
        if not mutants:
            raise MutantError("there are no such mutants")
        prove_baseline(ROOT, mutants, options.jobs)
        verdicts = tried(ROOT, mutants, options.jobs, _show)
        record = record_of(ROOT, verdicts, len(there))
        if options.out is not None:
            write_json(options.out / "results.json", record)
            write_atomically(options.out / "README.md", page(record).encode())
    except (MutantError, OutputError) as error:
        print(f"mutants: error: {error}", file=sys.stderr)
        return 2
    wanted = bugs(record)
    print(f"{sum(m['caught'] for m in wanted)} of {len(wanted)} caught")
    for line in (lines := faults(record)):
        print(line)
    return 1 if lines else 0


def _show(verdict: Verdict) -> None:
    expected = "harmless" if verdict.mutant.harmless else "MISSED"
    said = "caught" if verdict.caught else expected
    print(f"{said:<9}{verdict.seconds:6.0f} s  {verdict.mutant.says}", flush=True)
    if verdict.caught:
        print(f"{'':18}by {verdict.by}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
