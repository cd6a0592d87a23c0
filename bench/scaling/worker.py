"""What every rank of the scaling benchmark runs: `torchrun … -m bench.scaling.worker FOLDER NAME`.

FOLDER/plan.json says what to do, and the first rank writes FOLDER/NAME.json. The worker that gets
`--reference` also writes FOLDER/reference.pt, with which every worker that gets `--check` compares
itself.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.scaling.rank import Plan, Rank
from vaez_fast.measures.evaluate import evaluator
from vaez_fast.model import VAE
from vaez_fast.system.environment import expect_no_gpu
from vaez_fast.system.files import read_json, write_json
from vaez_fast.system.world import joined

Record = dict[str, Any]


@torch.no_grad()
def rounded_otherwise(vae: VAE) -> VAE:
    """The same model with every weight moved by at most half a unit in its last place."""
    generator = torch.Generator().manual_seed(0)
    for weight in vae.parameters():
        shift = torch.rand(weight.shape, generator=generator) - 0.5
        weight.mul_(1 + shift * torch.finfo(weight.dtype).eps)
    return vae


def rounding(rank: Rank, losses: Mapping[int, Tensor]) -> dict[str, float | None]:
    """For each batch, how far `rounded_otherwise` moves the losses of one process, in nats.

    This is how far training amplifies rounding alone. No order of summation can be expected to do
    better.
    """
    found = {}
    for batch, ours in losses.items():
        config = rank.plan.config(batch)
        moved, _ = rank.first_steps(batch, rounded_otherwise(VAE(config.model, config.seed)))
        found[str(batch)] = _largest((moved - ours).abs().tolist())
    return found


def found_by(rank: Rank, batches: Sequence[int]) -> Record:
    """The tensors and numbers that are compared between layouts."""
    trained = rank.short_training()
    config = rank.plan.config(rank.plan.strong[0])
    evaluate = evaluator(config, rank.dataset, "test", rank.world)
    first = {batch: rank.first_steps(batch) for batch in batches}
    return {
        **trained,
        "log_px": evaluate(VAE(config.model), rank.plan.samples).log_px,
        "losses": {batch: losses for batch, (losses, _) in first.items()},
        "gradients": {batch: gradients for batch, (_, gradients) in first.items()},
    }


def difference(ours: Record, reference: Record) -> Record:
    """How far a layout is from the reference: at each of its batches, and as a whole.

    Gradients: the largest ratio, over all tensors, of the difference's norm to the tensor's norm.
    Losses, ELBO and log p(x): nats. None if a difference is not finite.
    """
    by_batch = {}
    for batch, losses in ours["losses"].items():
        pairs = zip(ours["gradients"][batch], reference["gradients"][batch], strict=True)
        by_batch[str(batch)] = {
            "gradient": _largest([float((g - r).norm() / r.norm()) for g, r in pairs]),
            "loss": _largest((losses - reference["losses"][batch]).abs().tolist()),
        }
    return {
        "batches": by_batch,
        **{name: _largest([abs(ours[name] - reference[name])]) for name in ("elbo", "log_px")},
    }


def _largest(values: list[float]) -> float | None:
    # max() would ignore a NaN
    return max(values) if all(map(math.isfinite, values)) else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling.worker", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    expect_no_gpu()
    torch.set_num_threads(options.threads)
    with joined() as world:
        plan = Plan.of(read_json(options.folder / "plan.json"))
        rank = Rank(plan, world)
        record: Record = {"compile_seconds": rank.compile(empty_cache=options.check)}
        if options.check:
            # The reference needs the batches of all layouts, also those that it is not timed at.
            sizes = plan.processes if options.reference else (world.size,)
            ours = found_by(rank, plan.batches(*sizes))
            path = options.folder / "reference.pt"
            if options.reference:
                torch.save(ours, path)
                record["rounding"] = rounding(rank, ours["losses"])
            reference = torch.load(path, weights_only=True)
            record |= {name: ours[name] for name in ("elbo", "log_px", "bytes")}
            record["difference"] = difference(ours, reference)
        record["seconds"] = rank.seconds()
        if world.rank == 0:
            write_json(options.folder / f"{options.name}.json", record)


if __name__ == "__main__":
    main()
