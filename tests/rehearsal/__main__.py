"""Counts the device calls of a CUDA run without a GPU: `python -m tests.rehearsal --out DIR`.

Builds the stand-in and runs a training step, its captured graph and every op on it. Counts their
launches, copies and waits, and measures the host time. Writes results.json and README.md to DIR.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.rehearsal.build import reason_to_skip
from tests.rehearsal.command import run_on_stand_in
from vaez_fast.system.environment import environment as machine
from vaez_fast.system.errors import printable
from vaez_fast.system.files import OutputError, prepare_files, write_atomically, write_json

INSIDE = "import json; from tests.rehearsal.__main__ import results; print(json.dumps(results()))"


def results() -> dict[str, Any]:
    """The numbers as JSON values; runs in the process on the stand-in."""
    from tests.rehearsal.ops import rehearse_all
    from tests.rehearsal.steps import OBJECTIVES, PRECISIONS, rehearse_step

    steps = []
    for objective in OBJECTIVES:
        for precision in PRECISIONS:
            step = rehearse_step(objective, precision)
            steps.append(
                {
                    "objective": objective,
                    "precision": precision,
                    "launches": step.one.launches,
                    "kernels": step.one.triton.total() + step.one.aten.total(),
                    "products": step.one.products.total(),
                    "copies": step.one.copies.total() + step.one.fills.total(),
                    "synchronisations": step.one.synchronisations.total(),
                    "captured_nodes": sum(step.capture.captured),
                    "launches_per_replay": step.replay.graph_launches + step.replay.launches,
                    "host_us": step.host_us,
                    "host_us_replayed": step.replay_host_us,
                    "order": [h.name for h in step.one.happened],
                }
            )
    ops = [
        {
            "op": name,
            "launches": op.counts.launches,
            "ours": sum(n for kernel, n in op.counts.triton.items() if kernel.endswith("_kernel")),
            "synchronisations": op.counts.synchronisations.total(),
            "nodes": op.nodes,
            "host_us": op.host_us,
            "add_us": op.add_us,
        }
        for name, op in rehearse_all().items()
    ]
    return {"machine": machine("cuda"), "steps": steps, "ops": ops}


def page(found: dict[str, Any]) -> Iterator[str]:
    """The lines of README.md."""
    where = found["machine"]
    yield "# What a CUDA run asks of the device"
    yield ""
    yield (
        f"Counted without a GPU, on the stand-in for the CUDA libraries (tests/rehearsal), which "
        f"reports an {where['device']}. The host code is real; kernels do nothing and take no "
        f"time. Host times are of one core of this machine ({where['cpu']}) with torch "
        f"{where['torch']} and triton {where['triton']}. They differ on a GPU's host, and they "
        "lack the time of the real driver, some microseconds a launch. "
        "Repeat with `python -m tests.rehearsal --out DIR`."
    )
    yield ""
    yield "## A training step"
    yield ""
    yield (
        "The altosaar VAE, batches of 128. A replay is 32 steps in one graph; its host time is "
        "given for one step."
    )
    yield ""
    yield (
        "| objective | precision | launches | kernels | products | copies and fills | waits | "
        "nodes of 32 steps | host µs, launched | host µs, replayed |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for s in found["steps"]:
        yield (
            f"| {s['objective']} | {s['precision']} | {s['launches']} | {s['kernels']} | "
            f"{s['products']} | {s['copies']} | {s['synchronisations']} | "
            f"{s['captured_nodes']:,} | {s['host_us']:.0f} | {s['host_us_replayed']:.1f} |"
        )
    yield ""
    yield "## A call of each op"
    yield ""
    yield (
        "128 rows, 20 latents, 784 pixels, 512 hidden units, 1,024 components. Nodes are those of "
        "a graph that captures the call. `torch.add` of two small tensors is timed in turn with "
        "each op; the last column is the op's host time over that of `torch.add`."
    )
    yield ""
    yield "| op | launches | our kernels | waits | nodes | host µs | `torch.add` µs | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for op in found["ops"]:
        yield (
            f"| {op['op']} | {op['launches']} | {op['ours']} | {op['synchronisations']} | "
            f"{op['nodes']} | {op['host_us']:.0f} | {op['add_us']:.1f} | "
            f"{op['host_us'] / op['add_us']:.0f} |"
        )


def _rehearse() -> dict[str, Any]:
    done = run_on_stand_in([sys.executable, "-c", INSIDE], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 it failed or cannot write its files, 2 it cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    out: Path = parser.parse_args(argv).out
    if reason := reason_to_skip():
        print(f"tests.rehearsal: error: {reason}", file=sys.stderr)
        return 2
    try:
        prepare_files(out, "results.json", "README.md")
        found = _rehearse()
        write_json(out / "results.json", found)
        write_atomically(out / "README.md", "".join(f"{line}\n" for line in page(found)).encode())
    except (OutputError, subprocess.CalledProcessError) as error:
        print(f"tests.rehearsal: error: {printable(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
