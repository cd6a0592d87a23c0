"""Execute every kernel's PTX and record its errors, bytes and instructions.

Results of other Triton versions in the folder are kept and also appear on the page. The JSON file
is written after each case, so an interrupted run keeps the cases that it has executed.
Exit status: 0 done, 1 an error is larger than its bound, 2 nothing can be executed or written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vaez_fast.system.files import (
    OutputError,
    prepare_files,
    read_json,
    write_atomically,
    write_json,
)
from vaez_kernels.backend import interpreting, triton


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.executed", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the cases that CI executes (default: all)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="in the case's name")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the JSON file and README.md")
    options = parser.parse_args(argv)
    if triton is None or interpreting():
        print("executed: error: needs Triton, and TRITON_INTERPRET not set", file=sys.stderr)
        return 2

    from tests.executed.cases import all_cases
    from tests.executed.record import faults, line, page, record_of, rows_of

    name = f"results-triton-{'.'.join(triton.__version__.split('.')[:2])}.json"
    rows = []
    try:
        if options.out is not None:
            prepare_files(options.out, name, "README.md")
        for case in all_cases():
            if (case.quick or not options.quick) and options.only in str(case):
                for target in case.targets:
                    for row in rows_of(case, target):
                        rows.append(row)
                        print(line(row), flush=True)
                if options.out is not None:
                    write_json(options.out / name, record_of(rows))
        if not rows:
            print(f"executed: error: no case has {options.only!r} in its name", file=sys.stderr)
            return 2
        if options.out is not None:
            records = [read_json(path) for path in sorted(options.out.glob("results-*.json"))]
            write_atomically(options.out / "README.md", page(records).encode())
    except OutputError as error:
        print(f"executed: error: {error}", file=sys.stderr)
        return 2
    for fault in (found := faults(rows)):
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
