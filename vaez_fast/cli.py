"""The command line. Exit status: 0 done, 1 the run failed, 2 a setting cannot be."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from . import __version__
from .commands import article, compare, report, theory, train
from .compare import CompareError
from .config import ConfigError
from .data import DataError
from .environment import expect_no_gpu
from .results import OutputError
from .train import TrainingError

COMMANDS = {
    "train": train,
    "article": article,
    "theory": theory,
    "report": report,
    "compare": compare,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; argv without the program's name. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot print σ or ² goes on
    options = _parser().parse_args(argv)
    expect_no_gpu()
    name = f"vaez-fast {options.command}"
    try:
        return COMMANDS[options.command].run(options)
    except ConfigError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except (DataError, OutputError, TrainingError, CompareError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vaez-fast",
        description="What distribution do a VAE's latents really have?",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vaez-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(one)
    return parser
