"""All that a CUDA machine can say of the ops, in one call: `python -m bench.gpu --out DIR`.

Correctness first, in parallel: `vaez-fast compare` on CUDA and tests/cuda. Then, alone on the
machine, the op benchmarks, and the training steps where mnist-5k is at hand. DIR gets
comparison.json, tests.txt, bench.json and a README.md that shows them; what the time limit cut off
is named there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.summary import rows_of_json, summary
from vaez_fast.compare import Row, record, table
from vaez_fast.comparison import OPS
from vaez_fast.data import DataError, load
from vaez_fast.environment import environment
from vaez_fast.errors import printable
from vaez_fast.files import OutputError, prepare_files, write_atomically

ROOT = Path(__file__).parents[1]
BENCHES = (
    "bench/bench_latent.py",
    "bench/bench_likelihood.py",
    "bench/bench_linear.py",
    "bench/bench_importance.py",
    "bench/bench_mixture.py",
    "bench/bench_noise.py",
)
STEPS = "bench/bench_step.py"  # where mnist-5k is at hand
# Of the whole call; correctness may take up to half of it.
MINUTES = 8.0
# A run that is told to stop writes what it has: so long it may take for that.
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, or None where the time limit stopped it."""

    name: str
    status: int | None
    output: str
    seconds: float

    @property
    def verdict(self) -> str:
        if self.status is None:
            return f"cut off after {self.seconds:.0f} s"
        return "passed" if self.status == 0 else f"FAILED (exit status {self.status})"


def run(name: str, command: Sequence[str], deadline: float) -> Outcome:
    """Run Python with `command` at the repository's root; interrupt it at the deadline."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    begin = time.monotonic()
    try:
        output, _ = process.communicate(timeout=max(1.0, deadline - begin))
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        status = None
    return Outcome(name, status, output, time.monotonic() - begin)


def check(out: Path, deadline: float) -> tuple[list[Outcome], list[Row]]:
    """Comparisons, a process for each op, and the CUDA tests, a process for each file."""
    files = {op: out / f".comparison-{i}.json" for i, op in enumerate(OPS)}
    jobs: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests" / "cuda").glob("test_*.py")):
        name = str(path.relative_to(ROOT))
        jobs[name] = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", name]
    for op, file in files.items():
        flags = ["--backends", "fallback,cuda", "--ops", op, "--out", str(file)]
        jobs[f"compare {op}"] = ["-m", "vaez_fast", "compare", *flags]
    with ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) // 2)) as pool:
        outcomes = list(pool.map(lambda name: run(name, jobs[name], deadline), jobs))
    rows = []
    for file in files.values():
        if file.exists():
            rows += [_row(values) for values in json.loads(file.read_text())["rows"]]
            file.unlink()
    return outcomes, rows


def _row(values: dict[str, Any]) -> Row:
    # JSON has no NaN: the numbers that a failed row lacks come back as such
    numbers = ("absolute", "relative", "ulp", "tolerance")
    lacking = {name: math.nan for name in numbers if values[name] is None}
    return Row(**(values | lacking))


def measure(out: Path, data_root: str, deadline: float) -> Outcome:
    """The op benchmarks and, where there are digits, the training steps."""
    flags = ["--benchmark-only", f"--benchmark-json={out / 'bench.json'}", "-p", "no:cacheprovider"]
    files = list(BENCHES)
    try:
        load("mnist-5k", data_root)
        files.append(STEPS)
        flags.append(f"--data-root={Path(data_root).resolve()}")
    except DataError as error:
        print(f"no training steps: {error}", file=sys.stderr)
    return run("benchmarks", ["-m", "pytest", *files, *flags, "-q"], deadline)


def gpu_state() -> str:
    """Name, driver, clocks, power and throttling, as nvidia-smi tells; empty without it."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    fields += ",clocks_event_reasons.active"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def report(
    machine: dict[str, Any],
    states: Sequence[str],
    outcomes: Sequence[Outcome],
    rows: list[Row],
    measured: dict[str, Any] | None,
) -> Iterator[str]:
    """The lines of README.md."""
    yield f"# The ops on {machine['device']}"
    yield ""
    yield (
        f"{time.strftime('%Y-%m-%d')}, torch {machine['torch']}, triton {machine['triton']}, "
        f"Python {machine['python']}, revision {machine['revision']}"
        + (" (with changes)" if machine["dirty"] else "")
        + ". Repeat with `make gpu`."
    )
    yield ""
    yield "Before and after (name, driver, clocks, power, temperature, throttling): "
    yield from (f"`{state}`" for state in states)
    yield ""
    yield "| part | result | seconds |"
    yield "| --- | --- | --- |"
    for outcome in outcomes:
        yield f"| {outcome.name} | {outcome.verdict} | {outcome.seconds:.0f} |"
    if measured is not None:
        yield ""
        yield "## Speed"
        yield from summary(rows_of_json(measured), measured["machine_info"], markdown=True)
    yield ""
    yield "## Correctness"
    yield ""
    yield "```text"
    yield from table(rows)
    yield "```"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all passed, 1 something failed or was cut off, 2 it cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"limit (default {MINUTES})")
    parser.add_argument(
        "--data-root", default="data", metavar="DIR", help="of mnist-5k.npz (default: data)"
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench.gpu: error: no CUDA device is here", file=sys.stderr)
        return 2
    out: Path = options.out.resolve()
    try:
        prepare_files(out, "tests.txt", "comparison.json", "README.md")
        return _run_all(out, options.data_root, 60 * options.minutes, print)
    except OutputError as error:
        print(f"bench.gpu: error: {printable(error)}", file=sys.stderr)
        return 1


def _run_all(out: Path, data_root: str, seconds: float, say: Callable[[str], None]) -> int:
    begin = time.monotonic()
    machine, states = environment("cuda"), [gpu_state()]
    outcomes, rows = check(out, begin + seconds / 2)
    log = "\n".join(f"===== {o.name}: {o.verdict}\n{o.output}" for o in outcomes)
    write_atomically(out / "tests.txt", log.encode())
    comparison = record(rows, machine)
    comparison["missing"] = [op for op in OPS if op not in {row.op for row in rows}]
    comparison["passed"] &= not comparison["missing"]
    content = json.dumps(comparison, indent=1, allow_nan=False) + "\n"
    write_atomically(out / "comparison.json", content.encode())
    for outcome in outcomes:
        say(f"{outcome.name}: {outcome.verdict}")
        if outcome.status != 0:
            say(outcome.output[-3000:])
    outcomes.append(measure(out, data_root, begin + seconds - GRACE_SECONDS))
    say(outcomes[-1].output)
    states.append(gpu_state())
    measured = _measured(out / "bench.json")
    text = "\n".join(report(machine, states, outcomes, rows, measured)) + "\n"
    write_atomically(out / "README.md", text.encode())
    say(f"wrote {out}: README.md, comparison.json, tests.txt, bench.json")
    failed = any(outcome.status != 0 for outcome in outcomes)
    return int(failed or not comparison["passed"])


def _measured(file: Path) -> dict[str, Any] | None:
    # None where the benchmarks were cut off before they could write, or while they did
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content


if __name__ == "__main__":
    sys.exit(main())
