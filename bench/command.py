"""How the help and the errors of every `python -m bench COMMAND` read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from vaez_fast.system.errors import printable


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Args:
        name: of the command.
        description: its help text, the docstring of its module.
    """

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m bench {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.name = name

    def add_out_folder(self) -> None:
        self.add_argument(
            "--out", required=True, type=Path, metavar="DIR", help="a folder for the results"
        )

    def add_data_root(self, data: str) -> None:
        self.add_argument(
            "--data-root", default="data", metavar="DIR", help=f"folder of {data} (default: data)"
        )

    def error(self, message: str) -> NoReturn:
        """A setting is wrong: print usage and one line, and exit with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"bench.{self.name}: error: {printable(message)}\n")

    def failed(self, error: object, status: int = 1) -> int:
        """Print one line for an error that ends the command, and return its exit status."""
        print(f"bench.{self.name}: error: {printable(error)}", file=sys.stderr)
        return status
