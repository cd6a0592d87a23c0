"""The commands of the benchmark suite: `python -m bench COMMAND`."""

from __future__ import annotations

import importlib
import sys

# Name → the module whose `main` runs it, and the line of the help text.
COMMANDS = {
    "report": ("bench.records.report", "a report of one or more runs of the suite"),
    "compare": ("bench.records.compare", "what became faster or slower between runs"),
    "revisions": ("bench.revisions", "two commits timed in turn, and what became faster or slower"),
    "history": ("bench.records.history", "how the rows developed over all committed runs"),
    "summary": ("bench.records.summary", "the tables of a run, printed again from its JSON"),
    "speedrun": ("bench.speedrun.run", "seconds of training to a known test log p(x)"),
    "ablation": ("bench.speedrun.ablation", "what each ingredient of the speedrun is worth"),
    "likelihood": (
        "bench.likelihood.run",
        "log p(x) of trained models, 5,000 samples an image",
    ),
    "reproduction": (
        "bench.likelihood.reproduction",
        "Burda et al.'s one-layer models, repeated",
    ),
    "scaling": ("bench.scaling.run", "training on 1, 2 and 4 processes"),
    "soak": ("bench.soak.run", "the memory of a long run, and runs that are killed and resumed"),
    "parts": ("bench.training.parts", "where a training step's time goes"),
    "growth": ("bench.training.growth", "how a training step grows with batch, width and latents"),
    "repeat": ("bench.training.repeat", "train committed runs again and compare to the last digit"),
    "bounds": ("bench.bounds.run", "what bounds each kernel on a GPU, from its machine code"),
    "gpu": ("bench.gpu.__main__", "all measurements and checks of a CUDA machine, in four parts"),
}


def usage() -> str:
    """The help text: one line for each command."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items())
    return "\n".join(
        (
            "usage: python -m bench COMMAND …",
            "",
            *lines,
            "",
            "`python -m bench COMMAND --help` explains a command.",
        )
    )


def main(argv: list[str]) -> int:
    """Exit status: that of the command, or 2 if there is no such command."""
    if argv[:1] in (["--help"], ["-h"]):
        print(usage())
        return 0
    if not argv or argv[0] not in COMMANDS:
        wrong = f"no such command: {argv[0]!r}" if argv else "no command was given"
        print(f"bench: error: {wrong}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[argv[0]][0])
    return int(module.main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
