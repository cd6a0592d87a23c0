"""A long run and many kills: `python -m bench soak --out DIR`.

- 20,000 training steps in one process: its memory, read every 100 steps, must not grow.
- 20 runs, each killed with SIGKILL at a random moment of its training and resumed: each must end
  bit for bit as an undisturbed run.

DIR/results.json holds both; DIR/README.md and DIR/memory.png are drawn from it. Exit status 1 if
memory grows, a run differs, or at most half of the kills hit the training. About 15 minutes on two
cores; `make test` includes two kills.
"""

from __future__ import annotations

import random
import resource
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.command import Parser
from bench.soak.kills import killed, undisturbed
from vaez_fast.config import TrainConfig
from vaez_fast.data import load
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text, markdown
from vaez_fast.drawing.style import BLUE, figure, png
from vaez_fast.model import VAE
from vaez_fast.system.environment import environment, expect_no_gpu
from vaez_fast.system.files import OutputError, prepare_files, write_atomically, write_json
from vaez_fast.system.progress import Progress
from vaez_fast.training.checkpoint import Keeping
from vaez_fast.training.train import train

SCHEMA = 1
STEPS, EVERY = 20_000, 100  # of the long run, and between two readings of its memory
# By this step the allocator and the buffers of the first epochs have settled; then memory is flat.
SETTLED = 2_000
# Growth of the resident memory that fails. Over the run a leak of one float a step is 80 kB, one of
# a batch a step 8 GB. The arenas of the allocator make some MiB of pages come and go.
FLAT_MIB = 8.0
KILLS, SEED = 20, 0
# So many steps that most kills hit the training, and a checkpoint every few steps.
KILLED_SETTINGS = [
    *("--model", "lyeoni", "--steps", "4000", "--batch-size", "50", "--test-samples", "64"),
    *("--checkpoint-seconds", "0.2"),
]

Record = dict[str, Any]


def resident_mib() -> float:
    """Resident memory of this process now, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(steps: int, folder: Path) -> Record:
    """Train for `steps` with checkpoints, reading the memory every `EVERY` steps."""
    config = TrainConfig(epochs=None, steps=steps, batch_size=128, test_samples=16)
    points: list[tuple[int, float]] = []

    def observe(_: str, step: int, __: VAE) -> None:
        points.append((step, resident_mib()))

    result = train(
        config,
        load(config.data),
        show_progress=True,
        observe=observe,
        observe_at=range(EVERY, steps + 1, EVERY),
        keeping=Keeping(folder, seconds=5.0),
    )
    after = min(SETTLED, steps // 2)
    return {
        "config": asdict(config),
        "steps": steps,
        "train_seconds": result.train_seconds,
        "points": points,
        "settled_after": after,
        "growth_mib": slope(points, after) * (steps - after),
    }


def slope(points: list[tuple[int, float]], after: int) -> float:
    """MiB a step: the slope of the least-squares line through the readings after step `after`."""
    steps, mib = torch.tensor([p for p in points if p[0] > after], dtype=torch.float64).T
    centred = steps - steps.mean()
    return float((centred * mib).sum() / centred.square().sum())


def kills(count: int, folder: Path) -> list[Record]:
    """Records of `count` runs, each killed once at a random moment and resumed."""
    undisturbed(KILLED_SETTINGS, folder / "compiling")
    seconds = undisturbed(KILLED_SETTINGS, folder / "undisturbed")
    draw = random.Random(SEED)
    stories = []
    with Progress(count, "kills", show=True, unit="run") as progress:
        for number in range(count):
            out = folder / f"killed-{number}"
            story = killed(KILLED_SETTINGS, out, folder / "undisturbed", seconds, 1, draw)
            stories.append(asdict(story))
            progress.advance()
    return stories


def passed(record: Record) -> bool:
    flat = record["memory"]["growth_mib"] < FLAT_MIB
    runs = record["kills"]
    # A run that was killed before its first checkpoint starts from scratch and tests nothing.
    resumed = sum(story["steps"][0] is not None for story in runs)
    return flat and 2 * resumed > len(runs) and all(story["identical"] for story in runs)


def page(record: Record) -> Iterator[Block]:
    of, runs = record["memory"], record["kills"]
    where = record["environment"]
    identical = sum(story["identical"] for story in runs)
    settled = f"{of['settled_after']:,}"
    yield Heading(1, "A long run and many kills")
    yield Text(
        f"{where['device']}, torch {where['torch']}, Python {where['python']}, {record['date']}."
    )
    yield Text("python -m bench soak --out DIR", code=True)
    yield Heading(2, "Memory over a long run")
    yield Text(
        f"{of['steps']:,} steps of {of['config']['model']} on {of['config']['data']}, batch "
        f"{of['config']['batch_size']}, an evaluation of the validation split each epoch and a "
        f"checkpoint every five seconds: {of['train_seconds']:.0f} s. From step {settled} on, the "
        f"line fitted to the readings rises by {of['growth_mib']:+.2f} MiB in all; {FLAT_MIB:g} "
        "would fail."
    )
    yield Figure("memory.png", f"Resident memory over {of['steps']:,} training steps")
    yield Heading(2, "Killed and resumed")
    yield Text(
        f"{identical} of {len(runs)} runs, each killed with SIGKILL and resumed, ended with the "
        "same metrics, curve and weights as an undisturbed run, bit for bit. The moment of a kill "
        "is drawn uniformly from the training time of that run, counted from the first checkpoint. "
        f"`vaez-fast train {' '.join(KILLED_SETTINGS)}`"
    )
    rows = [
        (
            str(number),
            f"{story['seconds'][0]:.1f} s",
            "whole" if story["whole"][0] else _step(story["steps"][0]),
            "yes" if story["identical"] else "**no**",
        )
        for number, story in enumerate(runs)
    ]
    yield Table(("run", "killed after", "checkpoint then at step", "bit-identical"), rows)


def _step(step: int | None) -> str:
    return "none" if step is None else f"{step:,}"


def memory_figure(of: Record) -> bytes:
    with figure() as (drawn, (axes,)):
        axes.plot(*zip(*of["points"], strict=True), color=BLUE)
        axes.axvline(of["settled_after"], color="#767676", linestyle=":")
        axes.set_ylim(0, 1.2 * max(mib for _, mib in of["points"]))
        axes.set_xlabel("training step")
        axes.set_ylabel("resident memory, MiB")
        axes.set_title(f"{of['growth_mib']:+.2f} MiB from step {of['settled_after']:,} to the end")
    return png(drawn)


def write(record: Record, out: Path) -> None:
    write_json(out / "results.json", record)
    write_atomically(out / "memory.png", memory_figure(record["memory"]))
    write_atomically(out / "README.md", markdown(list(page(record))).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 passed, 1 failed or the output cannot be written, 2 a wrong setting."""
    parser = Parser("soak", __doc__)
    parser.add_out_folder()
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"of the long run (default {STEPS})"
    )
    parser.add_argument(
        "--kills", type=int, default=KILLS, help=f"runs that are killed (default {KILLS})"
    )
    options = parser.parse_args(argv)
    if options.steps < 10 * EVERY:
        parser.error(f"--steps must be at least {10 * EVERY}, got {options.steps}")
    if options.kills < 1:
        parser.error(f"--kills must be at least 1, got {options.kills}")
    expect_no_gpu()
    try:
        prepare_files(options.out, "results.json", "memory.png", "README.md")
        with tempfile.TemporaryDirectory(prefix="soak-", dir=options.out) as folder:
            record = {
                "kind": "vaez_fast soak",
                "schema": SCHEMA,
                "date": date.today().isoformat(),
                "environment": environment(),
                "memory": memory(options.steps, Path(folder)),
                "kills": kills(options.kills, Path(folder)),
            }
        write(record, options.out)
    except OutputError as error:
        return parser.failed(error)
    print((options.out / "README.md").read_text())
    return 0 if passed(record) else 1
