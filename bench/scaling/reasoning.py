"""The reasoned half of the scaling page: reasoning.md, filled in with the numbers of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.scaling.model import Cluster, Model, median
from vaez_fast.drawing.page import Block, Heading, Table, Text
from vaez_fast.model import VAE

Record = dict[str, Any]

TEXT = Path(__file__).with_name("reasoning.md")
# Not measured. NVLink: 900 GB/s an H100, both directions together (its data sheet). Products on a
# GPU are set at a twentieth of its dense bfloat16 peak, for layers as narrow as these, and the
# launches and update of a step at what a captured graph of some 40 small kernels takes.
GPU_OPERATIONS, GPU_FIXED = 50e12, 100e-6


def reasoning(results: Record, model: Model) -> Iterator[Block]:
    """What grows with what, how well the model of a step fits, and what it says of more ranks."""
    size, small = 4 * (results["parameters"] + 2), results["plan"]["strong"][0]
    batches = (small, 2048, 16384)
    reasoned = clusters(model)
    text = TEXT.read_text(encoding="utf-8").format(
        row_us=1e6 * model.row,
        fixed_ms=1e3 * model.fixed,
        size=size,
        all_reduce=_by_ranks("c({}) = {:.2f} ms", model.all_reduce, 1e3),
        evaluation=3 * 8 * results["images"]["test"],
        apart=_by_ranks("{} processes {:.2f} times", {n: n / s for n, s in model.slowdown.items()}),
        slowdown=_by_ranks("s({}) = {:.2f}", model.slowdown),
        **_accuracy(results, model),
        **dict(zip(("small", "middle", "large"), batches, strict=True)),
        clusters="\n".join(_row(c, batches, size) for c in reasoned),
        networks="; ".join(
            f"{c.name}, {c.bandwidth / 1e9:g} GB/s out of a rank, {1e6 * c.latency:g} µs a message"
            for c in reasoned
        ),
        gpu_teraflops=GPU_OPERATIONS / 1e12,
        gpu_fixed_us=1e6 * GPU_FIXED,
        limits=_limits(model, reasoned, small, size),
    )
    return blocks(text)


def blocks(text: str) -> Iterator[Block]:
    """The headings of level 2, tables and paragraphs of a Markdown text."""
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.splitlines()
        if paragraph.startswith("## "):
            yield Heading(2, paragraph.removeprefix("## "))
        elif paragraph.startswith("|"):
            head, _, *rows = (tuple(line.strip("| ").split(" | ")) for line in lines)
            yield Table(head, rows)
        else:
            yield Text(" ".join(lines))


def _by_ranks(words: str, values: dict[int, float], scale: float = 1.0) -> str:
    return ", ".join(words.format(n, scale * value) for n, value in values.items() if n > 1)


def _accuracy(results: Record, model: Model) -> Record:
    errors = {}
    for batch in results["plan"]["strong"]:
        for layout in results["layouts"]:
            n, step = layout["processes"], median(layout, batch)
            if step is not None and layout["threads"] == 1 and n in model.slowdown:
                errors[batch, n] = model.seconds(batch, n) / step - 1
    (batch, n), worst = max(errors.items(), key=lambda item: abs(item[1]))
    return {
        "points": len(errors),
        "typical": sorted(abs(e) for e in errors.values())[len(errors) // 2],
        "worst": worst,
        "worst_batch": batch,
        "worst_ranks": n,
    }


def clusters(model: Model) -> list[Cluster]:
    """Machines that were not measured: two of cores such as these, two of GPUs."""
    matrices = [p for p in VAE("altosaar").parameters() if p.dim() == 2]
    # Forward and both gradients; the gradient of the images is not needed.
    operations = 2 * (3 * sum(p.numel() for p in matrices) - matrices[0].numel())
    gpu = (operations / GPU_OPERATIONS, GPU_FIXED)
    here = (model.row, model.fixed)
    return [
        Cluster("such cores, 10 Gbit/s Ethernet", 8, *here, 1.25e9, 50e-6),
        Cluster("such cores, 100 Gbit/s InfiniBand", 64, *here, 12.5e9, 5e-6),
        Cluster("GPUs of one machine, NVLink", 8, *gpu, 450e9, 3e-6),
        Cluster("GPUs of four machines, 400 Gbit/s each", 32, *gpu, 50e9, 5e-6),
    ]


def _row(cluster: Cluster, batches: tuple[int, ...], size: int) -> str:
    cells = (
        cluster.name,
        str(cluster.ranks),
        f"{1e6 * cluster.all_reduce(size):,.0f} µs",
        *(f"{cluster.speedup(batch, size):.2f}" for batch in batches),
        f"{cluster.pays_from(size):,.0f}",
        f"{cluster.half_from(size):,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _limits(model: Model, reasoned: list[Cluster], batch: int, size: int) -> str:
    """What ranks can gain at `batch`: at most, on the clusters, and on GPUs."""
    said = []
    if model.fixed > 0:
        shared = model.row * batch
        said.append(
            f"At batch {batch} a step has {1e3 * shared:.2f} ms to share and "
            f"{1e3 * model.fixed:.2f} ms that every rank repeats: with free communication, any "
            f"number of such cores would make it at most {shared / model.fixed + 1:.1f} times as "
            "fast."
        )
    paid = [c for c in reasoned if c.speedup(batch, size) > 1]
    gains = [f"{c.speedup(batch, size):.2f} times on {c.ranks} ({c.name})" for c in paid]
    if paid:
        said.append(f"With the communication assumed above: {'; '.join(gains)}.")
    else:
        said.append("With the communication assumed above, none of these ranks pays.")
    if not any(c.fixed == GPU_FIXED for c in paid):
        said.append(
            f"On GPUs batch {batch} never pays: the sum alone takes longer than the products."
        )
    return " ".join(said)
