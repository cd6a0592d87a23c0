"""vaez-fast report."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "redraw a study's report from its results.json"
DESCRIPTION = "Write DIR/report.md, DIR/report.html and their figures from DIR/results.json."
EXAMPLE = "vaez-fast report runs/article"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="DIR", help="the folder of a study")


def run(options: argparse.Namespace) -> int:
    from .. import report

    print("\n".join(report.write(options.out)))
    print(f"wrote {options.out / 'report.html'} and report.md")
    return 0
