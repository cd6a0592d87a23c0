"""What bounds each kernel on a GPU, without one: `python -m bench bounds --out DIR`.

Compiles the kernels of the timed elementwise ops for an H100 (or an H200), reads their machine code
and compares three bounds of their time: bytes at the speed of a copy, instructions, and latency.
Writes README.md and bounds.json. With --measured FILE, a --benchmark-json file of that GPU, every
estimate stands beside the measured time of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from bench.bounds.bound import Bound, bound
from bench.bounds.builds import Binary, Launched, build, launches, reason_to_skip
from bench.bounds.gpus import GPUS, Gpu
from bench.command import Parser
from bench.records.records import Record, RecordError, read
from bench.records.summary import size_text, time_text
from bench.timing.rivals import title_of
from vaez_fast.drawing.page import Block, Heading, Table, Text, markdown
from vaez_fast.system.environment import environment
from vaez_fast.system.files import OutputError, prepare_files, write_atomically, write_json
from vaez_kernels import launch, noise_key, normal, rsample_kl
from vaez_kernels.cases import TIMED
from vaez_kernels.latent.case import rsample_kl_floor
from vaez_kernels.testing import Shape, Timed

# Ops that are multiplications of matrices read operands from caches many times, so bytes do not
# say how often their loops run.
ELEMENTWISE = [op for op in TIMED.values() if not op.tiled and op.kernel_bytes is None]
NORMALS, COLUMNS = 1 << 26, 128  # as in bench/ops/bench_noise.py
SAMPLES, ROWS = 8, 65536


class Call(NamedTuple):
    """A call whose kernels are bounded, each with the bytes that it moves."""

    title: str  # of its group in the suite, or of its own
    run: Callable[[], object]  # on CPU tensors; the kernels are recorded and do not run
    moved: tuple[int, ...]  # by each kernel, forward first


class Row(NamedTuple):
    title: str
    kernel: str
    programs: int
    num_warps: int
    moved: int
    registers: int
    bound: Bound

    def as_json(self) -> dict[str, Any]:
        own = self._asdict() | {"bound": self.bound._asdict()}
        return own | {"by": self.bound.by, "seconds": self.bound.seconds}


def calls() -> Iterator[Call]:
    """All calls: those of the suite at its sizes for a GPU, the noise, and eight samples."""
    for op in ELEMENTWISE:
        for shape in (*op.launch_bound, *op.large["cuda"]):
            for dtype in op.dtypes:
                forward, both = (op.least_bytes(shape, dtype.itemsize, b) for b in (False, True))
                title = title_of(op, shape, dtype, "forward+backward")
                yield Call(title, partial(_both, op, shape, dtype), (forward, both - forward))
    drawn = partial(normal, noise_key(0, "train"), 1, NORMALS // COLUMNS, COLUMNS)
    yield Call(f"noise, {NORMALS:,} normals, float32", drawn, (4 * NORMALS,))
    for dtype in (torch.float32, torch.bfloat16):
        shape = (SAMPLES, ROWS, COLUMNS)
        forward = rsample_kl_floor(shape, dtype.itemsize, False)
        title = f"latent op, forward, {SAMPLES} samples, {ROWS:,} × {COLUMNS}, {_name(dtype)}"
        yield Call(title, partial(_samples, dtype), (forward,))


def _both(op: Timed, shape: Shape, dtype: torch.dtype) -> None:
    case = op.case(shape, dtype, torch.device("cpu"))
    case.run(op.ours(case), True)


def _samples(dtype: torch.dtype) -> None:
    mu = torch.zeros(ROWS, COLUMNS, dtype=dtype)
    rsample_kl(mu, mu, noise_key(0, "train"), SAMPLES)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows_of(call: Call, gpu: Gpu) -> Iterator[Row]:
    """The bounds of a call's kernels."""
    with patch.object(launch, "multiprocessors", lambda _: gpu.multiprocessors):
        found = launches(call.run)
    for (name, launched), moved in zip(found.items(), call.moved, strict=True):
        binary, num_warps = _built(launched, gpu)
        of = bound(binary, gpu, launched.programs, num_warps, moved)
        row = (call.title, name, launched.programs, num_warps, moved, binary.registers, of)
        yield Row(*row)


def _built(launched: Launched, gpu: Gpu) -> tuple[Binary, int]:
    return build(launched.what, gpu.target), dict(launched.what.options).get("num_warps", 4)


def page(rows: Sequence[Row], gpu: Gpu, record: Record | None) -> list[Block]:
    """The blocks of README.md."""
    blocks: list[Block] = [
        Heading(1, f"What bounds the kernels on an {gpu.name}"),
        Text(
            f"Estimated from machine code that Triton makes for {gpu.target}, without a GPU. "
            "**bandwidth**: the least bytes of the kernel at the speed of a copy, "
            f"{gpu.bytes_per_second / 1e12:.1f} TB/s read plus written. **issue**: the time in "
            "which the busiest multiprocessor issues its instructions, or its busiest unit "
            "executes them. **latency**: programs that do not fit at once run in waves, and each "
            "wave waits for memory once. The largest of the three is the kernel's **bound**, and "
            "TB/s are its least bytes over that time. What fits in the L2 cache, 50 MB, can be "
            "faster than a copy. A launch itself takes some microseconds, which are not counted."
        ),
        Text(
            "The ops with matrix products are left out: their loops read operands from caches, so "
            "bytes do not say how often they run."
        ),
    ]
    head = (
        *("call", "kernel", "registers", "warps", "instructions", "bytes"),
        *("bandwidth", "issue", "of", "latency", "bound", "TB/s"),
    )
    cells = []
    for row in rows:
        of = row.bound
        times = [time_text(of.bandwidth), time_text(of.issue), of.unit, time_text(of.latency)]
        speed = f"{row.moved / of.seconds / 1e12:.2f}"
        own = [row.kernel.removesuffix("_kernel"), str(row.registers), str(of.resident)]
        own += [f"{of.instructions:.0f}", size_text(row.moved)]
        cells.append((row.title, *own, *times, of.by, speed))
    blocks.append(Table(head, cells))
    return [*blocks, *_measured(rows, record)] if record else blocks


def _measured(rows: Sequence[Row], record: Record) -> Iterator[Block]:
    """The estimates beside the kernels' times in a record of the suite."""
    estimates: dict[str, float] = {}
    for row in rows:
        estimates[row.title] = estimates.get(row.title, 0.0) + row.bound.seconds
    cells = [
        (title, time_text(seconds), time_text(found.own_time), f"{found.own_time / seconds:.2f}")
        for title, seconds in estimates.items()
        for provider in ("triton", "normal")
        if (found := record.groups.get(title, {}).get(provider))
    ]
    yield Heading(2, f"Measured on {record.machine['device']}, {record.date[:10]}")
    yield Text(
        "All kernels of a call, device time. A ratio below 1 says that the estimate is wrong for "
        "the call: its data may stay in the L2 cache, or a kernel that mostly reads may be faster "
        "than a copy."
    )
    yield Table(("call", "bound", "measured", "ratio"), cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the output failed, 2 an argument or a file is bad."""
    parser = Parser("bounds", __doc__)
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="the GPU (default: h100)")
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="a --benchmark-json file of that GPU"
    )
    parser.add_out_folder()
    options = parser.parse_args(argv)
    gpu = GPUS[options.gpu]
    try:
        record = read(options.measured) if options.measured else None
        if reason := reason_to_skip(gpu.target):
            return parser.failed(reason)
        prepare_files(options.out, "README.md", "bounds.json")
        rows = [row for call in calls() for row in rows_of(call, gpu)]
        blocks = page(rows, gpu, record)
        write_atomically(options.out / "README.md", markdown(blocks).encode())
        content = {"gpu": gpu._asdict(), "environment": environment()}
        write_json(options.out / "bounds.json", content | {"rows": [row.as_json() for row in rows]})
    except (RecordError, OutputError) as error:
        return parser.failed(error, 2 if isinstance(error, RecordError) else 1)
    print(f"wrote {options.out / 'README.md'} and bounds.json")
    return 0
