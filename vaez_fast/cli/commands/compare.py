"""vaez-fast compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...names import BACKENDS, OPS
from ...system.files import prepare_file, write_atomically
from .. import settings
from ..kinds import PATH, some_of

DESCRIPTION = """\
Run every op, forward and backward, over a grid of shapes, dtypes and values, and print its largest
errors against the float64 reference beside those of textbook PyTorch, and the distance of kernels
from the fallback. Takes minutes. Exit status 1 if an error exceeds its bound."""
EXAMPLE = "vaez-fast compare --ops rsample_kl/analytic,normal --out comparison.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    grid = parser.add_argument_group("what is compared")
    grid.add_argument(
        "--backends",
        type=some_of(BACKENDS),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(BACKENDS)} (default: all that can run here)",
    )
    grid.add_argument(
        "--ops",
        type=some_of(OPS),
        default=list(OPS),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(OPS)} (default: all)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=PATH, metavar="FILE", help="also write every comparison to FILE, as JSON"
    )
    settings.add_json(output, "every comparison, and whether all passed")


def run(options: argparse.Namespace) -> int:
    from ...compare import available, chosen, compare, record, table
    from ...system.environment import environment

    out: Path | None = options.out
    backends = chosen(options.backends)
    if out is not None:
        prepare_file(out)
    rows = compare(backends, options.ops, show_progress=True)
    asked = {"backends": ",".join(backends), "ops": ",".join(options.ops)}
    content = {"kind": "vaez-fast compare", "config": asked} | record(
        rows, environment("cuda" if "cuda" in backends else "cpu")
    )
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if out is not None:
        write_atomically(out, text.encode())
    if options.json:
        print(text, end="")
    else:
        for name, reason in available().items():
            if reason:
                print(f"not compared: {name}: {reason}")
        print("\n".join(table(rows)))
    return 0 if content["passed"] else 1
