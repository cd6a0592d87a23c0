"""The command line.

Exit status: 0 done, 1 the run failed, 2 a setting cannot be, 130 and 143 stopped by SIGINT (Ctrl-C)
and SIGTERM, 141 nobody reads the output any more. Whatever fails for a reason that a user can see
to says so in one line on stderr, `vaez-fast COMMAND: error: …`; a traceback is a defect.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from . import __version__
from .commands.kinds import no_such

COMMANDS = {
    "train": "train a VAE; write metrics.json and checkpoint.pt",
    "evaluate": "measure trained VAEs again: another split, more samples, the law of z",
    "sample": "draw images from a trained VAE, z from N(0, I) or a law fitted to q(z)",
    "article": "run the article's study: every framework on several seeds; write its report",
    "theory": "what the KL term does by itself: numbers and figures, no training",
    "compare": "hold every op to float64, and the kernels to the fallback",
    "report": "draw the report of a study or of one training run",
    "env": "what runs where on this machine, and why something does not",
}

HELP = """\
usage: vaez-fast COMMAND ...

What distribution do a VAE's latents really have?

commands:
{commands}

a first session, two minutes on two cores, without a network:
  vaez-fast env
  vaez-fast train --out runs/first
  vaez-fast sample runs/first --out runs/first/samples
  vaez-fast report runs/first

  vaez-fast COMMAND --help lists a command's settings, with units, defaults and an example.
  vaez-fast --version prints the version.

Every command takes its settings from flags, then from --config FILE (TOML or JSON, also the record
that a run wrote), then from their defaults. Where a script would want it, --json prints one JSON
document. Progress is shown on a terminal only.

environment: VAEZ_BACKEND=torch|triton forces the ops' backend; TRITON_INTERPRET=1 interprets the
kernels on the CPU; VAEZ_AUTOTUNE=1 times other launch parameters on CUDA.

exit status: 0 done; 1 the run failed (data, files, training, a comparison); 2 a setting cannot be;
130 stopped by Ctrl-C and 143 by SIGTERM, what was finished is kept; 141 the reader of its output
went away."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; argv without the program's name. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot print σ or ² goes on
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return 141
    except OSError as error:  # a disk is full that the output goes to
        print(f"vaez-fast: error: cannot write the output: {error.strerror}", file=sys.stderr)
        _forget_output()
        return 1
    return status


def _forget_output() -> None:
    # Python flushes once more when it ends, and would complain then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in ("", "-h", "--help"):
        listed = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
        print(HELP.format(commands=listed), file=sys.stdout if first else sys.stderr)
        return 0 if first else 2
    if first == "--version":
        print(f"vaez-fast {__version__}")
        return 0
    if first not in COMMANDS:
        print(f"vaez-fast: error: {no_such('command', first, list(COMMANDS))}", file=sys.stderr)
        return 2
    return _run(first, words[1:])


def _run(name: str, words: list[str]) -> int:
    try:
        # Here, because help should not wait seconds for torch.
        command = importlib.import_module(f".commands.{name}", __package__)
        return _run_command(name, command, words)
    except KeyboardInterrupt:
        print(f"vaez-fast {name}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _run_command(name: str, command: ModuleType, words: list[str]) -> int:
    from .commands.parser import Parser
    from .environment import expect_no_gpu
    from .errors import printable
    from .stopping import Stopped

    # All ranks of torchrun read the same words; once they have met, they agree who speaks.
    silent = os.environ.get("RANK", "0") != "0"
    try:
        options = Parser(name, command).settings(words)
        silent = False
        expect_no_gpu()
        status: int = command.run(options)
    except SystemExit as stop:  # --help, or a rank that leaves it to another to say what is wrong
        return int(stop.code or 0)
    except BrokenPipeError:
        raise
    except Stopped as stopped:
        print(f"vaez-fast {name}: {stopped}; what was finished is kept", file=sys.stderr)
        return stopped.exit_status
    except Exception as error:
        failure = _failure(error, command)
        if failure is None:
            raise
        status, reason = failure
        line = printable(" ".join(reason.split()))  # one, also where a path holds a line break
        if not silent:
            print(f"vaez-fast {name}: error: {line}", file=sys.stderr)
    return status


def _failure(error: Exception, command: ModuleType) -> tuple[int, str] | None:
    """The exit status and the line for what a user can see to; None for a defect of ours."""
    from .compare import CompareError
    from .config import ConfigError
    from .data import DataError
    from .errors import is_out_of_memory
    from .files import OutputError
    from .train import TrainingError
    from .world import RankError

    if isinstance(error, ConfigError):
        return 2, str(error)
    if isinstance(error, (DataError, OutputError, TrainingError, CompareError, RankError)):
        return 1, str(error)
    if isinstance(error, OSError) and error.filename is not None:  # else it is the output's
        return 1, f"cannot use {error.filename}: {error.strerror}"
    if is_out_of_memory(error):
        lighter = getattr(command, "LIGHTER", "")
        return 1, "memory ran out" + (f"; it may fit with {lighter}" if lighter else "")
    return None
