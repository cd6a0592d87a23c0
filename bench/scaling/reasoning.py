"""The reasoned half of bench.scaling's page: what grows with what, and what lies beyond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.scaling.model import Cluster, Model, median
from vaez_fast.drawing.page import Block, Heading, Table, Text
from vaez_fast.model import VAE

Record = dict[str, Any]

# Not measured. NVLink: 900 GB/s an H100, both ways together (its data sheet). A GPU's products are
# set at a twentieth of its dense bfloat16 peak, for layers as narrow as these; a step's launches
# and update at what a captured graph of some 40 small kernels takes.
GPU_OPERATIONS, GPU_FIXED = 50e12, 100e-6


def growth(results: Record, model: Model) -> Iterator[Block]:
    """What grows with what, and how well the model of a step fits."""
    parameters, images = results["parameters"], results["images"]
    size = 4 * (parameters + 2)
    compute, fixed = f"a = {1e6 * model.row:.1f} µs a row", f"b = {1e3 * model.fixed:.2f} ms"
    bare = ", ".join(f"c({n}) = {1e3 * c:.2f} ms" for n, c in model.all_reduce.items() if n > 1)
    evaluation = 3 * 8 * images["test"]
    yield Heading(2, "What grows with what")
    yield Table(
        ("what", "grows with", "here"),
        [
            ("products and likelihood of a step", "rows of the rank, B/N", compute),
            ("update, launch: the same in every rank", "parameters", fixed),
            (
                "all-reduce, one a step",
                f"parameters: 4·(P + 2) = {size:,} bytes, whatever B and N; on a ring every rank "
                "sends 2(N − 1)/N of it",
                bare,
            ),
            (
                "evaluation",
                "images of the rank, N_test/N, times samples; one sum of 3·N_test float64",
                f"{evaluation:,} bytes",
            ),
            (
                "compiling",
                "not with N: each rank compiles its own step, with its own first row, at the same "
                "time; but they share the cores",
                "table above",
            ),
            (
                "memory of a rank",
                "weights, two moments, the copies in bfloat16 if any; all images as bytes (every "
                "rank holds all of them); rows of the rank",
                "table above",
            ),
            (
                "`article`",
                "arms times seeds, a run being one rank's; nothing is exchanged",
                _apart(model),
            ),
        ],
    )
    yield Text(
        "Together a step takes t(N) = s(N)·(a·B/N + b) + c(N). a and b are fitted to the one "
        "process's times; c(N) is the bare all-reduce; s(N) says how much N processes slow each "
        "other down, taken from steps on whole batches of their own with nothing exchanged: "
        + ", ".join(f"s({n}) = {s:.2f}" for n, s in model.slowdown.items() if n > 1)
        + f". {_accuracy(results, model)} The model leaves out that gradients are copied into one "
        "flat tensor and that a step waits for its slowest rank."
    )


def _apart(model: Model) -> str:
    gains = [f"{n} processes {n / s:.2f} times" for n, s in model.slowdown.items() if n > 1]
    return f"steps a second of one: {', '.join(gains)}"


def _accuracy(results: Record, model: Model) -> str:
    errors = {}
    for batch in results["plan"]["strong"]:
        for layout in results["layouts"]:
            n, step = layout["processes"], median(layout, batch)
            if step is not None and layout["threads"] == 1 and n in model.slowdown:
                errors[batch, n] = model.seconds(batch, n) / step - 1
    (batch, n), error = max(errors.items(), key=lambda item: abs(item[1]))
    typical = sorted(abs(e) for e in errors.values())[len(errors) // 2]
    return (
        f"Against the {len(errors)} measured points it is off by {typical:.0%} in the middle and "
        f"by {error:+z.0%} at worst (batch {batch:,}, {n} processes)."
    )


def clusters(model: Model) -> list[Cluster]:
    """Machines that were not at hand: the first two of cores such as these, the others of GPUs."""
    matrices = [p for p in VAE("altosaar").parameters() if p.dim() == 2]
    # Forward and both gradients, but for the images'.
    operations = 2 * (3 * sum(p.numel() for p in matrices) - matrices[0].numel())
    gpu = (operations / GPU_OPERATIONS, GPU_FIXED)
    here = (model.row, model.fixed)
    return [
        Cluster("such cores, 10 Gbit/s Ethernet", 8, *here, 1.25e9, 50e-6),
        Cluster("such cores, 100 Gbit/s InfiniBand", 64, *here, 12.5e9, 5e-6),
        Cluster("GPUs of one machine, NVLink", 8, *gpu, 450e9, 3e-6),
        Cluster("GPUs of four machines, 400 Gbit/s each", 32, *gpu, 50e9, 5e-6),
    ]


def beyond(results: Record, model: Model) -> Iterator[Block]:
    """What the model says of more ranks than were at hand, and what to do instead."""
    size, first = 4 * (results["parameters"] + 2), results["plan"]["strong"][0]
    batches = (first, 2048, 16384)
    reasoned = clusters(model)
    yield Heading(2, "Beyond this machine: reasoned, not measured")
    yield Table(
        (
            "N ranks",
            "N",
            "all-reduce",
            *(f"speed-up, batch {b:,}" for b in batches),
            "pays from batch",
            "half of N from batch",
        ),
        [
            (
                c.name,
                str(c.ranks),
                f"{1e6 * c.all_reduce(size):,.0f} µs",
                *(f"{c.speedup(b, size):.2f}" for b in batches),
                f"{c.pays_from(size):,.0f}",
                f"{c.half_from(size):,.0f}",
            )
            for c in reasoned
        ],
    )
    yield Text(
        "A processor a rank, so s(N) = 1, and a ring: c(N) = 2(N − 1)/N · bytes/bandwidth + "
        "2(N − 1) · latency. Assumed: "
        + "; ".join(
            f"{c.name}, {c.bandwidth / 1e9:g} GB/s out of a rank, {1e6 * c.latency:g} µs a message"
            for c in reasoned
        )
        + ". Cores take a and b from above; of a GPU no step was measured: "
        f"{GPU_OPERATIONS / 1e12:g} TFLOP/s of products as narrow as these and "
        f"{1e6 * GPU_FIXED:g} µs for a step's launches and update are assumed. "
        "With other constants the formulas stay: N ranks pay from "
        "B = c(N)/(a·(1 − 1/N)) on."
    )
    yield Text(_advice(model, reasoned, first, size))


def _advice(model: Model, reasoned: list[Cluster], batch: int, size: int) -> str:
    alone = model.row * batch + model.fixed
    paid = [c for c in reasoned if c.speedup(batch, size) > 1]
    gpus = [c for c in reasoned if c.fixed == GPU_FIXED]
    said = (
        f"At batch {batch} a step has {1e3 * model.row * batch:.2f} ms to share and "
        f"{1e3 * model.fixed:.2f} ms that every rank repeats: with free communication and any "
        f"number of such cores it would be at most {alone / model.fixed:.1f} times as fast. "
        if model.fixed > 0
        else ""
    )
    gains = [f"{c.speedup(batch, size):.2f} times on {c.ranks} ({c.name})" for c in paid]
    said += f"With it: {'; '.join(gains)}. " if paid else "With it, none of these ranks pays. "
    if not any(c in paid for c in gpus):
        said += f"On GPUs batch {batch} never pays: the sum alone takes longer than the products. "
    return said + (
        "What to do instead, with a model so small: larger batches with a larger learning rate, as "
        "far as the ELBO follows (a step then has more to share, and the sum stays as it is); or, "
        "with nothing to exchange at all, seeds and arms over the ranks, as `article` does: "
        f"{_apart(model)} here. Sharding the update would divide b by N, overlapping the sum with "
        "backward hide part of c. A wider model alone changes little: products, update and sum all "
        "grow with its parameters, so ranks pay from about the same batch on where bandwidth is "
        "most of c."
    )
