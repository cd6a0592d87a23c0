"""README.md of the scaling benchmark, from its results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from bench.scaling.model import Model, fitted, layout_of, median
from bench.scaling.reasoning import reasoning
from vaez_fast.data import PIXELS
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text

Record = dict[str, Any]

FAILED = "failed its check"


def page(results: Record) -> list[Block]:
    """The blocks of README.md."""
    model = fitted(results)
    blocks = [*_opening(results), *_checks(results)]
    if model is None:
        return [*blocks, Text("Too few times of one process passed their check to say more.")]
    blocks += [*_strong(results, model), *_weak(results), *_evaluation(results)]
    return [*blocks, *_memory(results), *reasoning(results, model)]


def _opening(results: Record) -> Iterator[Block]:
    machine, plan, images = results["environment"], results["plan"], results["images"]
    cores = machine["cores"]
    yield Heading(1, "Training on several processes: what scales, and what does not")
    yield Text(
        f"altosaar's VAE, {results['parameters']:,} parameters, float32, on {plan['data']} "
        f"({images['train']:,} training and {images['test']:,} test images, static). {cores} cores "
        f"of {machine['device']}, torch {machine['torch']}, Python {machine['python']}, gloo, "
        f"{results['date']}. One thread a process, unless two are named"
        + (
            f"; more than {cores} processes take turns on the cores."
            if cores and max(plan["processes"]) > cores
            else "."
        )
    )
    yield Text(f"python -m bench scaling --data {plan['data']} --data-root DIR --out DIR", True)
    yield Text(
        "Every time is that of the slowest rank: the median over all rounds, ± half the distance "
        "of the quartiles. There are two passes through all layouts, the second in reverse order. "
        "In a round all ranks start together, and everything that is timed takes its turn."
    )


def _checks(results: Record) -> Iterator[Block]:
    limits = results["limits"]
    yield Heading(2, "The same numbers")
    rows = []
    for layout in results["layouts"]:
        difference = layout["difference"]
        batches = difference["batches"].values()
        worst = {name: _worst([b[name] for b in batches]) for name in ("gradient", "loss")}
        whole = _name(layout)
        if (layout["processes"], layout["threads"]) == (1, 1):
            rows.append((f"{whole}: the reference", "", "", f"{layout['elbo']:.4f}", ""))
            continue
        rows.append(
            (
                whole,
                _small(worst["gradient"]),
                _small(worst["loss"]),
                f"{layout['elbo']:.4f} ({_small(difference['elbo'])})",
                f"failed: {', '.join(layout['failed'])}" if layout["failed"] else "passed",
            )
        )
    yield Table(
        (
            "processes",
            f"gradients of the first step (limit {limits['gradient']:g})",
            f"losses of {results['plan']['checked_steps']} steps (limit {limits['loss']:g})",
            f"test ELBO, difference (limit {limits['elbo']:g})",
            "verdict",
        ),
        rows,
    )
    yield Text(
        "Differences from one process, the worst of all batches that are timed below. A gradient's "
        "is the largest over all tensors, in units of the tensor's norm; those of losses and ELBO "
        f"are in nats. The ELBO is that after {results['plan']['steps']} steps of batch "
        f"{results['plan']['strong'][0]}. Times are given only for what passed."
    )
    yield Table(
        ("losses, by batch", *(f"{int(batch):,}" for batch in results["rounding"])),
        [
            *(
                (
                    _name(layout),
                    *(
                        _small(found[batch]["loss"]) if batch in found else ""
                        for batch in results["rounding"]
                    ),
                )
                for layout in results["layouts"]
                if (found := layout["difference"]["batches"])
                and (layout["processes"], layout["threads"]) != (1, 1)
            ),
            ("1, weights rounded otherwise", *map(_small, results["rounding"].values())),
        ],
    )
    yield Text(
        "The last row compares one process with itself, after its initial weights were moved by at "
        "most half a unit in their last place. It shows how far training amplifies rounding alone. "
        f"{_beyond_the_limit(results)}"
    )


def _beyond_the_limit(results: Record) -> str:
    """At which batches losses are beyond their limit, and whether rounding alone explains it."""
    limit, control = results["limits"]["loss"], results["rounding"]
    worst: dict[str, float] = {}
    for layout in results["layouts"]:
        for batch, found in layout["difference"]["batches"].items():
            loss = math.inf if found["loss"] is None else found["loss"]
            worst[batch] = max(worst.get(batch, 0.0), loss)
    beyond = sorted((batch for batch, loss in worst.items() if loss > limit), key=int)
    if not beyond:
        return "No layout is beyond the limit."
    names = ", ".join(f"{int(batch):,}" for batch in beyond)
    explained = [batch for batch in beyond if worst[batch] <= (control[batch] or 0.0)]
    if explained == beyond:
        return (
            f"At batch {names} the ranks are beyond {limit:g} nats and below the last row: "
            "training amplifies any rounding that far, with or without ranks. There the last row "
            "is the limit."
        )
    return (
        f"At batch {names} ranks are beyond {limit:g} nats. There the last row is the limit. It is "
        "one draw of the effect of rounding, and draws differ by more than tenfold. So ranks may "
        "be beyond this limit, too; then they have no time."
    )


def _strong(results: Record, model: Model) -> Iterator[Block]:
    yield Heading(2, "A step, the batch fixed")
    rows = []
    for batch in results["plan"]["strong"]:
        one = median(layout_of(results, 1), batch)
        for layout in results["layouts"]:
            name, processes = _name(layout), layout["processes"]
            step, bare = median(layout, batch), median(layout, "all_reduce")
            if step is None:
                rows.append((f"{batch:,}", name, FAILED, "", "", "", ""))
                continue
            modelled = None
            if layout["threads"] == 1 and processes in model.slowdown:
                modelled = model.seconds(batch, processes)
            rows.append(
                (
                    f"{batch:,}",
                    name,
                    _milliseconds(layout["seconds"][str(batch)]),
                    f"{one / step:.2f}" if one is not None else "",
                    f"{1e3 * bare:.2f} ms" if bare is not None else "",
                    f"{bare / step:.0%}" if bare is not None else "",
                    f"{1e3 * modelled:.2f} ms ({modelled / step - 1:+z.0%})" if modelled else "",
                )
            )
    yield Table(
        ("batch", "processes", "step", "speed-up", "bare all-reduce", "of the step", "model"), rows
    )
    yield Text(_verdict(results))
    yield Figure(
        "scaling.png",
        "Left: time of a step against the number of processes; dashed lines: the model below; "
        "crosses: one process with two threads. Right: images a second with "
        f"{results['plan']['weak']} rows a process",
    )


def _verdict(results: Record) -> str:
    """Which layout is the fastest at each batch, and two processes against two threads."""
    said = []
    for batch in results["plan"]["strong"]:
        times = {_name(of): median(of, batch) for of in results["layouts"]}
        times = {name: t for name, t in times.items() if t is not None}
        one = times.get("1")
        if one is None:
            continue
        best = min(times, key=lambda name: times[name] or 0.0)
        gain = "nothing beats it" if best == "1" else f"{one / (times[best] or one):.2f} times it"
        fastest = "one process of one thread" if best == "1" else _spelt(best)
        sentence = f"At batch {batch:,} the fastest is {fastest}: {gain}"
        two, threads = times.get("2"), times.get("1, two threads")
        if two is not None and threads is not None:
            word = "faster" if two < threads else "slower"
            ratio = max(two, threads) / min(two, threads)
            sentence += f"; two processes are {ratio:.2f} times {word} than two threads"
        said.append(sentence + ".")
    return " ".join(said)


def _weak(results: Record) -> Iterator[Block]:
    weak = results["plan"]["weak"]
    one = median(layout_of(results, 1), weak)
    yield Heading(2, f"A step, {weak} rows a process")
    rows = []
    for layout in results["layouts"]:
        batch = weak * layout["processes"]
        step = median(layout, batch)
        if step is None:
            rows.append((_name(layout), f"{batch:,}", FAILED, "", ""))
            continue
        time = _milliseconds(layout["seconds"][str(batch)])
        kept = f"{one / step:.0%}" if one is not None else ""
        rows.append((_name(layout), f"{batch:,}", time, f"{batch / step:,.0f}", kept))
    yield Table(("processes", "batch", "step", "images/s", "time of one process / time"), rows)


def _evaluation(results: Record) -> Iterator[Block]:
    images, samples = results["images"]["test"], results["plan"]["samples"]
    one = median(layout_of(results, 1), "evaluation")
    yield Heading(2, f"log p(x) of {images:,} images, {samples} samples each")
    rows = []
    for layout in results["layouts"]:
        seconds = median(layout, "evaluation")
        if seconds is None:
            rows.append((_name(layout), FAILED, "", ""))
            continue
        time = _milliseconds(layout["seconds"]["evaluation"])
        speedup = f"{one / seconds:.2f}" if one is not None else ""
        off = _small(layout["difference"]["log_px"])
        rows.append((_name(layout), time, speedup, off))
    yield Table(("processes", "time", "speed-up", "off by, nats"), rows)


def _memory(results: Record) -> Iterator[Block]:
    yield Heading(2, "Memory and start, a rank")
    rows = []
    for layout in results["layouts"]:
        held, (cold, warm) = layout["bytes"], layout["compile_seconds"]
        sizes = [f"{held[name] / 2**20:,.0f} MiB" for name in ("imported", "peak", "own")]
        rows.append((_name(layout), *sizes, f"{cold:.1f} s", f"{warm:.1f} s"))
    yield Table(
        (
            "processes",
            "resident before any image",
            "peak resident",
            "of that its own",
            "compiling, empty cache",
            "full cache",
        ),
        rows,
    )
    images = sum(results["images"].values())
    parameters = results["parameters"]
    yield Text(
        "Each number is the largest over the ranks, up to the end of a whole training. Most of the "
        "memory is Python, PyTorch and its compiler. Part of it are files, which the ranks of one "
        "machine share; the rest is a rank's own. The run itself needs little: weights and two "
        "moments "
        f"{12 * parameters / 2**20:.1f} MiB, all splits as bytes {images * PIXELS / 2**20:.0f} MiB "
        "and once more binarised."
    )


def _name(layout: Record) -> str:
    return "1, two threads" if layout["threads"] == 2 else str(layout["processes"])


def _spelt(name: str) -> str:
    return "one process with two threads" if name == "1, two threads" else f"{name} processes"


def _milliseconds(quartiles: list[float]) -> str:
    low, middle, high = (1e3 * seconds for seconds in quartiles)
    return f"{middle:.2f} ± {(high - low) / 2:.2f} ms"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}" if value else "0"


def _worst(values: list[float | None]) -> float | None:
    finite = [v for v in values if v is not None]
    return max(finite) if len(finite) == len(values) else None
