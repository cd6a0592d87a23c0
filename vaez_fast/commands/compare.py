"""vaez-fast compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..compare import BACKENDS, available, chosen, compare, record, table
from ..comparison import OPS
from ..environment import environment
from ..results import prepare_file, write_atomically

HELP = "hold every op to float64, and the kernels to the fallback"
DESCRIPTION = """\
Run every op, forward and backward, over a grid of shapes, dtypes and values, and print its largest
errors against the float64 reference beside those of textbook PyTorch, and the distance of kernels
from the fallback. Takes minutes. Exit status 1 if anything is off by more than stated."""
EXAMPLE = "vaez-fast compare --ops rsample_kl/analytic,normal --json comparison.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backends",
        type=_names,
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(BACKENDS)} (default: all that can run here)",
    )
    parser.add_argument(
        "--ops",
        type=_names,
        default=list(OPS),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(OPS)} (default: all)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every comparison to FILE"
    )


def _names(text: str) -> list[str]:
    return text.split(",")


def run(options: argparse.Namespace) -> int:
    backends = chosen(options.backends)
    if options.json is not None:
        prepare_file(options.json)
    rows = compare(backends, options.ops, show_progress=True)
    content = record(rows, environment("cuda" if "cuda" in backends else "cpu"))
    if options.json is not None:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_atomically(options.json, text.encode())
    for name, reason in available().items():
        if reason:
            print(f"not compared: {name}: {reason}")
    print("\n".join(table(rows)))
    return 0 if content["passed"] else 1
