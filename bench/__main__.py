"""The commands of the benchmark suite: `python -m bench COMMAND --help`."""

from __future__ import annotations

import importlib
import sys

# Name → the module whose `main` runs it, and what it does.
COMMANDS = {
    "report": ("bench.records.report", "a report of one or more runs of the suite"),
    "compare": ("bench.records.compare", "what became faster or slower between two runs"),
    "history": ("bench.records.history", "how the rows of all committed runs developed"),
    "summary": ("bench.records.summary", "the tables of a run once more, from its JSON"),
    "speedrun": ("bench.speedrun.run", "seconds of training until a test log p(x) is reached"),
    "ablation": ("bench.speedrun.ablation", "what each ingredient of the speedrun is worth"),
    "likelihood": ("bench.likelihood.run", "log p(x) of trained models, 5,000 samples an image"),
    "reproduction": ("bench.likelihood.reproduction", "Burda et al.'s one-layer models, again"),
    "scaling": ("bench.scaling.run", "training on 1, 2 and 4 processes"),
    "soak": ("bench.soak.run", "a long run, its memory, and many kills"),
    "parts": ("bench.training.parts", "where a training step's time goes"),
    "growth": ("bench.training.growth", "a training step over batch, width and latents"),
    "repeat": ("bench.training.repeat", "committed training runs again, to the last digit"),
    "gpu": ("bench.gpu.__main__", "all that a CUDA machine can say, in four parts"),
}


def usage() -> str:
    """One line for each command."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items())
    return "\n".join(("usage: python -m bench COMMAND …", "", *lines))


def main(argv: list[str]) -> int:
    """Run one command. Exit status: the command's; 2 for one that does not exist."""
    if argv[:1] in (["--help"], ["-h"]):
        print(usage())
        return 0
    if not argv or argv[0] not in COMMANDS:
        wrong = f"no command {argv[0]!r}" if argv else "a command is missing"
        print(f"bench: error: {wrong}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[argv[0]][0])
    return int(module.main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
