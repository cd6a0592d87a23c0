"""The command line.

Exit status: 0 done; 1 the run failed; 2 a setting is invalid; 130, 143 and 129 stopped by SIGINT
(Ctrl-C), SIGTERM and SIGHUP; 141 the reader of the output is gone. An error that the user can
correct is one line on stderr, `vaez-fast COMMAND: error: …`; a traceback is a defect.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..system.environment import expect_no_gpu
from ..system.errors import UserError, is_out_of_memory
from ..system.files import OutputError
from ..system.messages import open_closed_streams, say
from ..system.stopping import KEPT, Signals, Stopped
from .kinds import no_such
from .parser import Parser

COMMANDS = {
    "train": "train a VAE; write metrics.json and checkpoint.pt",
    "evaluate": "measure trained VAEs again: another split, more samples, the law of z",
    "sample": "draw images from a trained VAE, z from N(0, I) or a law fitted to q(z)",
    "latents": "measure and draw what law z has: bounds on its KL, tests, pictures",
    "article": "run the article's study: every framework on several seeds; write its report",
    "sweep": "measure what drives the law of z: latent sizes times weights of the rate",
    "remedies": "compare richer posteriors, learned priors and other training with the VAE",
    "theory": "study the KL term by itself: numbers and figures, no training",
    "compare": "compare every op with float64, and the kernels with the fallback",
    "report": "draw the report of a study or of one training run",
    "env": "show what works on this machine, and why something does not",
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
  vaez-fast latents runs/first --out runs/first/latents
  vaez-fast report runs/first

  vaez-fast COMMAND --help lists a command's settings, with units, defaults and an example.
  vaez-fast --version prints the version.

Every command takes its settings from flags, then from --config FILE (TOML or JSON, also the record
that a run wrote), then from their defaults. For scripts, --json prints one JSON document. Progress
is shown on a terminal only.

environment: VAEZ_BACKEND=torch|triton forces the ops' backend; TRITON_INTERPRET=1 interprets the
kernels on the CPU; VAEZ_AUTOTUNE=1 times other launch parameters on CUDA; VAEZ_RANK_PATIENCE is the
number of seconds that a rank of torchrun waits for another rank (default 600; in article, sweep and
remedies a week, because a rank may have more to do).

exit status: 0 done; 1 the run failed (data, files, training, a comparison); 2 a setting is invalid;
130 stopped by Ctrl-C, 143 by SIGTERM and 129 by SIGHUP, what was finished is kept; 141 the reader
of the output is gone.

If stderr is closed, messages are lost; if stdout is closed, printed numbers are lost. The run
continues, but a command that only prints (env, evaluate, --help) then ends with 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; argv without the program's name. Returns the exit status."""
    closed = open_closed_streams()
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv), closed)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return 141
    except OSError as error:  # for instance, the disk of the output is full
        say("", f"error: cannot write the output: {error.strerror}")
        _forget_output()
        return 1
    return status


def _forget_output() -> None:
    # Otherwise Python's last flush would print an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(words: list[str], closed: frozenset[str]) -> int:
    first = words[0] if words else ""
    if first in ("", "-h", "--help"):
        listed = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
        if first:
            _expect_stdout(closed)
        print(HELP.format(commands=listed), file=sys.stdout if first else sys.stderr)
        return 0 if first else 2
    if first == "--version":
        _expect_stdout(closed)
        print(f"vaez-fast {__version__}")
        return 0
    if first not in COMMANDS:
        say("", f"error: {no_such('command', first, list(COMMANDS))}")
        return 2
    return _run(first, words[1:], closed)


def _expect_stdout(closed: frozenset[str]) -> None:
    """Refuse a command that only prints, if its output is lost."""
    if "stdout" in closed:
        raise OSError(errno.EBADF, "stdout is closed")


def _run(name: str, words: list[str], closed: frozenset[str]) -> int:
    # Parsing does not import PyTorch, so help and errors of the command line come at once.
    command = importlib.import_module(f".commands.{name}", __package__)
    with Signals():
        try:
            return _run_command(name, command, words, closed)
        except SystemExit as stop:  # another rank reports the error
            return int(stop.code or 0)
        except BrokenPipeError:
            raise
        except Stopped as stopped:
            status, line = stopped.exit_status, f"{stopped}; {KEPT}"
        except KeyboardInterrupt:  # a second Ctrl-C, without waiting for the step
            status, line = 130, f"interrupted; {KEPT}"
        except Exception as error:
            failure = _failure(error, command)
            if failure is None:
                raise
            status, line = failure[0], f"error: {failure[1]}"
        if _may_speak():
            say(name, line)
        return status


def _run_command(name: str, command: ModuleType, words: list[str], closed: frozenset[str]) -> int:
    try:
        options = Parser(name, command).settings(words)
    except SystemExit:  # argparse has printed the help
        _expect_stdout(closed)
        return 0
    if getattr(command, "ONLY_PRINTS", False):
        _expect_stdout(closed)
    _expect_folder()
    expect_no_gpu()
    status: int = command.run(options)
    return status


def _expect_folder() -> None:
    # PyTorch's libraries end the process if the working directory was deleted.
    try:
        os.getcwd()
    except OSError as error:
        raise OutputError(f"cannot use the current folder: {error.strerror}") from None


def _may_speak() -> bool:
    # Under torchrun many processes fail in the same way.
    if os.environ.get("WORLD_SIZE", "1") in ("0", "1") or "RANK" not in os.environ:
        return True
    from ..system.world import may_speak

    return may_speak()


def _failure(error: Exception, command: ModuleType) -> tuple[int, str] | None:
    """The exit status and the message of an error that the user can correct; None for a defect."""
    if isinstance(error, UserError):
        return error.exit_status, str(error)
    if isinstance(error, OSError):
        if error.filename is None:  # it concerns the output, and `main` reports it
            return None
        return 1, f"cannot use {error.filename}: {error.strerror}"
    if is_out_of_memory(error):
        lighter = getattr(command, "LIGHTER", "")
        return 1, "memory ran out" + (f"; it may fit with {lighter}" if lighter else "")
    return None
