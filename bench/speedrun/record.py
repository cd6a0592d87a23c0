"""The record of a speedrun: every run, the results over all runs, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from bench.speedrun.recipe import Recipe
from vaez_fast.config import LOG_PX_SAMPLES
from vaez_fast.measures.intervals import Interval, interval, one_sided_p

SCHEMA = 1
TARGET = -97.10  # github.com/altosaar/variational-autoencoder, its README: mean field, 65,000 steps


@dataclass(frozen=True)
class Run:
    """One run: its seconds, and its log p(x) in nats an image."""

    seed: int
    steps: int
    train_seconds: float
    compile_seconds: float
    eval_seconds: float
    validation_log_px: float
    test: dict[str, float]


def record(
    recipe: Recipe,
    runs: list[Run],
    baseline: tuple[Run, bool] | None,
    machine: dict[str, Any],
    jax_runs: Sequence[Run] = (),
) -> dict[str, Any]:
    """The content of the JSON file: every run, and the results over all runs."""
    log_px = [run.test["log_px"] for run in runs]
    seconds = [run.train_seconds for run in runs]
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "target": TARGET,
        "data": f"static MNIST, test split, {LOG_PX_SAMPLES} importance samples, nats an image",
        "environment": machine,
        "recipe": asdict(recipe),
        "runs": [asdict(run) for run in runs],
        "mean_log_px": sum(log_px) / len(runs),
        "mean_train_seconds": sum(seconds) / len(runs),
    }
    if len(runs) > 1:
        content["log_px"] = asdict(interval(log_px))
        content["train_seconds"] = asdict(interval(seconds))
        content["p_below_target"] = one_sided_p(log_px, TARGET)
    if jax_runs:
        theirs = [run.train_seconds for run in jax_runs]
        content["jax"] = [asdict(run) for run in jax_runs]
        ratios = [their / our for their, our in zip(theirs, seconds, strict=True)]
        content["jax_over_ours"] = median(ratios)
    if baseline is not None:
        run, reached = baseline
        content["textbook"] = asdict(run) | {"reached": reached}
        content["textbook_over_ours"] = run.train_seconds / content["mean_train_seconds"]
    return content


def table(content: dict[str, Any]) -> str:
    """The record as a Markdown table, with a sentence on the statistical test below it."""
    lines = [
        "| recipe | steps | training | compiling | evaluating | validation | test log p(x) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    named = [(f"ours, seed {run['seed']}", run) for run in content["runs"]]
    named += [(f"JAX, seed {run['seed']}", run) for run in content.get("jax", [])]
    if "textbook" in content:
        name = "textbook" if content["textbook"]["reached"] else "textbook (target not reached)"
        named.append((name, content["textbook"]))
    for name, run in named:
        lines.append(
            f"| {name} | {run['steps']:,} | {run['train_seconds']:.2f} s "
            f"| {run['compile_seconds']:.1f} s | {run['eval_seconds']:.1f} s "
            f"| {run['validation_log_px']:.2f} | {run['test']['log_px']:.2f} |"
        )
    machine = content["environment"]
    lines += ["", f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}."]
    if "log_px" in content:
        nats, seconds = (Interval(**content[name]) for name in ("log_px", "train_seconds"))
        lines.append(
            f"Test log p(x) {nats.text()} nats over {nats.count} seeds (95 % t-interval), "
            f"against a target of {content['target']:.2f}: one-sided p = "
            f"{content['p_below_target']:.2g}. Training {seconds.text()} s."
        )
    if "jax" in content:
        lines.append(
            f"JAX takes {content['jax_over_ours']:.2f} times as long (median of the pairs)."
        )
    if "textbook" in content:
        ratio = content["textbook_over_ours"]
        more = "" if content["textbook"]["reached"] else "more than "
        lines.append(f"The textbook takes {more}{ratio:.0f} times as long.")
    return "\n".join(lines)
