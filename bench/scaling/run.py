"""How training on several processes scales: `python -m bench scaling --out DIR`.

The same run in 1, 2 and 4 processes of one thread each, and in one process of two threads. Each
layout is first compared with the single process: gradients of the first step, losses of 100 steps,
the ELBO of a short training. Layouts that agree are timed: a step at fixed global batches and at
fixed rows a rank, a bare all-reduce of the same size, and an evaluation. DIR gets results.json,
README.md and scaling.png; `--report DIR` draws the latter two again from results.json.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench.command import Parser
from bench.process import ROOT
from bench.process import environment as process_environment
from bench.scaling.figure import figure
from bench.scaling.page import page
from bench.scaling.rank import Plan
from vaez_fast.config import ConfigError
from vaez_fast.data import DATA_SETS, DataError, load
from vaez_fast.drawing.page import markdown
from vaez_fast.model import VAE
from vaez_fast.system.environment import environment, expect_no_gpu, usable_cores
from vaez_fast.system.errors import UserError
from vaez_fast.system.files import (
    OutputError,
    prepare_files,
    read_json,
    write_atomically,
    write_json,
)
from vaez_fast.training.train import steps_of

KIND, SCHEMA = "bench.scaling", 1
LONGEST = 600.0  # seconds of one layout
PASSES = 2
TWO_THREADS = ((1, 2),)  # what two processes should beat
QUICK: dict[str, Any] = {
    "processes": (1, 2), "strong": (64, 128), "weak": 64, "steps": 20, "checked_steps": 10,
    "rounds": 3, "evaluations": 2,
}  # fmt: skip

# How far several ranks may be from one: gradients relative, the rest in nats. The rows of an
# evaluation differ only through the shapes of matrix products: 1e-6 of hundreds of nats.
LIMITS = {"gradient": 1e-6, "loss": 1e-3, "elbo": 0.1, "log_px": 1e-3}

Record = dict[str, Any]


class LayoutError(UserError, RuntimeError):
    """The processes of a layout failed or took too long."""


def measure(plan: Plan) -> Record:
    """Everything that results.json holds.

    There are two passes through the layouts, the second in reverse order, because clock rates and
    the load of other processes drift.

    Raises:
        LayoutError: a worker failed; its messages are on stderr.
    """
    layouts = [*((processes, 1) for processes in plan.processes), *TWO_THREADS]
    passes: list[dict[tuple[int, int], Record]] = []
    with tempfile.TemporaryDirectory(prefix="vaez-scaling-") as name:
        folder = Path(name)
        write_json(folder / "plan.json", asdict(plan))
        for i in range(PASSES):
            done = {}
            for processes, threads in layouts if i % 2 == 0 else layouts[::-1]:
                done[processes, threads] = launch(folder, processes, threads, check=i == 0)
                said = f"pass {i + 1} of {PASSES}: processes {processes}, threads {threads}: done"
                print(said, file=sys.stderr, flush=True)
            passes.append(done)
    rounding = passes[0][1, 1]["rounding"]
    weights = [p.numel() for p in VAE(plan.config(plan.strong[0]).model).parameters()]
    images = load(plan.data, plan.data_root)
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "environment": {**environment(), "threads": None, "cores": usable_cores()},
        "plan": asdict(plan) | {"data_root": None},  # it would name a folder of this machine
        "parameters": sum(weights),
        "rounding": rounding,
        "images": {s: len(getattr(images, s).images) for s in ("train", "validation", "test")},
        "limits": LIMITS,
        "layouts": [
            merged(*layout, [done[layout] for done in passes], plan, rounding) for layout in layouts
        ],
    }


def launch(folder: Path, processes: int, threads: int, *, check: bool) -> Record:
    """Start the ranks of a layout, wait for them, and return their record."""
    name = f"{processes}x{threads}"
    options = ["--threads", str(threads)]
    if check:
        options += ["--check", *(["--reference"] if (processes, threads) == (1, 1) else [])]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    who = f"{processes} process{'es' if processes > 1 else ''}"
    try:
        done = subprocess.run(
            [sys.executable, *torchrun, "-m", "bench.scaling.worker", str(folder), name, *options],
            env=process_environment() | {"OMP_NUM_THREADS": str(threads)},
            cwd=ROOT, timeout=LONGEST,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LayoutError(f"{who} took more than {LONGEST:.0f} s") from None
    if done.returncode != 0:
        raise LayoutError(f"{who} ended with status {done.returncode}")
    return read_json(folder / f"{name}.json")


def merged(
    processes: int,
    threads: int,
    passes: list[Record],
    plan: Plan,
    rounding: dict[str, float | None],
) -> Record:
    """The record of a layout: its checks in the first pass, and quartiles of all rounds.

    What fails a check gets no times. Losses may differ by their limit or, if that is more, by what
    rounding alone does to one process at that batch: a hundred steps at the full learning rate
    multiply a rounding error by up to a thousand.
    """
    first = passes[0]
    whole = within(first["difference"], "elbo")
    allowed = {"apart", "all_reduce"} if whole else set()
    if whole and within(first["difference"], "log_px"):
        allowed.add("evaluation")
    for batch, found in first["difference"]["batches"].items():
        loss = found["loss"] is not None and found["loss"] <= loss_limit(rounding[batch])
        if whole and within(found, "gradient") and loss:
            allowed.add(batch)
    names = [*map(str, plan.batches(processes)), "apart", "all_reduce", "evaluation"]
    timed = [name for name in names if name in first["seconds"]]
    return {
        "processes": processes,
        "threads": threads,
        **{name: first[name] for name in ("elbo", "log_px", "difference", "bytes")},
        "compile_seconds": [one["compile_seconds"] for one in passes],  # first with an empty cache
        "failed": [name for name in timed if name not in allowed],
        "seconds": {
            name: quantiles([s for one in passes for s in one["seconds"][name]], n=4)
            for name in timed
            if name in allowed
        },
    }


def loss_limit(rounding: float | None) -> float:
    """How far losses may differ if rounding alone moves those of one process by `rounding`."""
    return max(LIMITS["loss"], rounding or 0.0)


def within(difference: Record, name: str) -> bool:
    """Whether a difference is finite and at most its limit."""
    return difference[name] is not None and difference[name] <= LIMITS[name]


def draw(results: Record, out: Path) -> None:
    """Write README.md and scaling.png."""
    write_atomically(out / "scaling.png", figure(results))
    write_atomically(out / "README.md", markdown(page(results)).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 data, output, a process or a check failed, 2 a wrong setting."""
    parser = Parser("scaling", __doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="a folder for the results")
    where.add_argument("--report", type=Path, metavar="DIR", help="draw DIR/results.json again")
    parser.add_argument("--data", default="mnist-5k", choices=DATA_SETS, help="default: mnist-5k")
    parser.add_data_root("the data")
    parser.add_argument("--quick", action="store_true", help="1 and 2 processes, few rounds")
    options = parser.parse_args(argv)
    expect_no_gpu()
    try:
        if options.report is not None:
            results = read_json(options.report / "results.json")
            if (results.get("kind"), results.get("schema")) != (KIND, SCHEMA):
                raise OutputError(f"{options.report / 'results.json'} is not of {KIND} {SCHEMA}")
            draw(results, options.report)
            return 0
        root = str(Path(options.data_root).expanduser().resolve())  # workers run in another folder
        plan = Plan(data=options.data, data_root=root, **(QUICK if options.quick else {}))
        prepare_files(options.out, "results.json", "scaling.png", "README.md")
        steps_of(plan.config(max(plan.batches(*plan.processes))), load(plan.data, root))
        results = measure(plan)
        write_json(options.out / "results.json", results)
        draw(results, options.out)
    except ConfigError as error:
        parser.error(str(error))
    except (DataError, OutputError, LayoutError) as error:
        return parser.failed(error)
    return int(any(layout["failed"] for layout in results["layouts"]))
