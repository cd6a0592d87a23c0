"""What every rank of bench.scaling runs: `torchrun … -m bench.scaling.worker FOLDER NAME`.

FOLDER/plan.json says what to do. The first rank writes FOLDER/NAME.json; the worker that is told
`--reference` also FOLDER/reference.pt, which all those with `--check` are held to.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.model import VAE
from vaez_fast.system.environment import expect_no_gpu
from vaez_fast.system.files import read_json, write_json
from vaez_fast.system.world import ALONE, World, joined
from vaez_fast.training import engine
from vaez_fast.training.batches import Batches
from vaez_fast.training.loop import evaluator
from vaez_fast.training.phases import Phase, phases
from vaez_fast.training.train import train

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What every layout of processes is put through; batches are of all ranks together."""

    data: str = "mnist-5k"
    data_root: str = "data"
    processes: tuple[int, ...] = (1, 2, 4)
    strong: tuple[int, ...] = (128, 512, 2048)
    weak: int = 512  # rows of each rank
    steps: int = 300  # of the short training; no more are timed at a batch
    checked_steps: int = 100
    rounds: int = 12
    calls: int = 3  # of a step, in a round
    evaluations: int = 3
    samples: int = 16  # importance samples of an evaluation

    @classmethod
    def of(cls, record: Record) -> Plan:
        """From what `asdict` gave, by way of JSON."""
        values: Record = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)

    def batches(self, *processes: int) -> list[int]:
        """The global batches that so many processes are timed at."""
        return sorted({*self.strong, *(self.weak * count for count in processes)})

    def config(self, batch_size: int) -> TrainConfig:
        return TrainConfig(
            data=self.data,
            data_root=self.data_root,
            epochs=None,
            steps=self.steps,
            batch_size=batch_size,
            precision="float32",
            device="cpu",
            test_samples=self.samples,
        )


class Rank:
    """One of the ranks that are measured together.

    Args:
        plan: what is measured.
        world: who shares the batches and the images to evaluate.
    """

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world = plan, world
        self.imported_bytes = memory("VmRSS")
        self.dataset: Dataset = load(plan.data, plan.data_root)
        self.images = binarized(self.dataset, "train", "static")

    def phase(self, batch_size: int, world: World, vae: VAE | None = None) -> Phase:
        """The ordinary VAE's training, from the same weights each time, or from those of `vae`."""
        config = self.plan.config(batch_size)
        (phase,) = phases(
            config,
            VAE(config.model, config.seed) if vae is None else vae,
            Batches(self.images, batch_size, world),
            steps=self.plan.steps,
            precision=torch.float32,
            pixel_scale=1.0,
        )
        return phase

    def slowest(self, values: list[float]) -> list[float]:
        """For each of the values the largest of any rank."""
        columns = torch.tensor(values, dtype=torch.float64)[:, None]
        everyone: list[float] = self.world.gather(columns, self.world.size).amax(1).tolist()
        return everyone

    def compile(self, *, anew: bool) -> float:
        """Seconds to the first compiled step, where every rank compiles its own.

        Args:
            anew: as on a machine whose cache is empty; else as the cache is.
        """
        from torch._inductor.utils import fresh_cache

        with fresh_cache() if anew else nullcontext():
            clock = time.perf_counter()
            self.phase(self.plan.strong[0], self.world)
            taken = time.perf_counter() - clock
        if anew:  # and once more, into the cache of this machine
            engine._graphs.clear()
            self.phase(self.plan.strong[0], self.world)
        return self.slowest([taken])[0]

    def short_training(self) -> Record:
        """Test ELBO of the short training, and what a rank that trains holds at most, in bytes."""
        config = self.plan.config(self.plan.strong[0])
        test = train(config, self.dataset, look_every=self.plan.steps, world=self.world).test
        held = self.slowest([self.imported_bytes, memory("VmHWM"), memory("RssAnon")])
        names = ("imported", "peak", "own")
        return {"elbo": test.elbo, "bytes": dict(zip(names, held, strict=True))}

    def first_steps(self, batch_size: int, vae: VAE | None = None) -> tuple[Tensor, list[Tensor]]:
        """Losses of the first steps, (T,) float64 nats, and the gradients of the first one."""
        phase = self.phase(batch_size, self.world, vae)
        (ours,) = phase.engines
        losses, gradients = [], []
        for step in range(self.plan.checked_steps):
            phase.advance(1)
            if step == 0:
                # Adam's mean gradient after one step: 0.1 times the first.
                gradients = [mean.clone() / 0.1 for mean, _ in ours.state.moments]
            losses.append(sum(ours.take_totals(1)))
        return torch.tensor(losses, dtype=torch.float64), gradients

    def seconds(self) -> Record:
        """Seconds of the slowest rank in each round.

        By batch: a step. "apart": one of each rank on a whole batch of its own, of all ranks at
        once and without a word between them. "all_reduce": a bare one, as large as a step's.
        "evaluation": of the test split.
        """
        from torch.distributed import _functional_collectives as collectives

        calls = self.plan.calls
        works = {str(b): self._step(b, self.world) for b in self.plan.batches(self.world.size)}
        if self.world.size > 1:
            works["apart"] = self._step(self.plan.strong[0], ALONE)
            (ours,) = self.phase(self.plan.strong[0], self.world).engines
            flat = torch.zeros(2 + sum(w.numel() for w in ours.state.weights))
            works["all_reduce"] = lambda: collectives.wait_tensor(self.world.sum(flat))
        found: Record = self._in_turn(works, self.plan.rounds, calls)
        config = self.plan.config(self.plan.strong[0])
        evaluate, vae = evaluator(config, self.dataset, "test", self.world), VAE(config.model)
        evaluation = {"evaluation": lambda: evaluate(vae, self.plan.samples)}
        found |= self._in_turn(evaluation, self.plan.evaluations, 1)
        return found

    def _step(self, batch_size: int, world: World) -> Callable[[], object]:
        phase = self.phase(batch_size, world)
        return lambda: phase.advance(1)

    def _in_turn(
        self, works: Mapping[str, Callable[[], object]], rounds: int, calls: int
    ) -> dict[str, list[float]]:
        # Every round starts with another work, and every work when all ranks are there.
        names = list(works)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(-1, rounds):  # the first one warms up
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                self.world.wait()
                clock = time.perf_counter()
                for _ in range(calls):
                    works[name]()
                taken = (time.perf_counter() - clock) / calls
                if i >= 0:
                    seconds[name].append(taken)
        return {name: self.slowest(taken) for name, taken in seconds.items()}


def memory(field: str) -> float:
    """Bytes of this process on Linux: VmRSS, what is resident; VmHWM, the most that ever was;
    RssAnon, what is resident and no file's, which no other process shares.

    Not getrusage's maximum, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:"))
    return 1024.0 * int(kib)


@torch.no_grad()
def rounded_otherwise(vae: VAE) -> VAE:
    """The same model with every weight moved by at most half a unit in its last place."""
    generator = torch.Generator().manual_seed(0)
    for weight in vae.parameters():
        shift = torch.rand(weight.shape, generator=generator) - 0.5
        weight.mul_(1 + shift * torch.finfo(weight.dtype).eps)
    return vae


def rounding(rank: Rank, losses: Mapping[int, Tensor]) -> dict[str, float | None]:
    """By batch, how far such weights take the losses of one process, in nats, over as many steps.

    What the training itself makes of rounding, and no order of summation can be expected to beat.
    """
    found = {}
    for batch, ours in losses.items():
        config = rank.plan.config(batch)
        moved, _ = rank.first_steps(batch, rounded_otherwise(VAE(config.model, config.seed)))
        found[str(batch)] = _largest((moved - ours).abs().tolist())
    return found


def found_by(rank: Rank, batches: Sequence[int]) -> Record:
    """What is compared between layouts, as tensors and numbers."""
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
    """How far a layout is from the reference: at each batch that both have, and as a whole.

    Gradients: the largest norm of a tensor's difference over the tensor's norm. Losses, ELBO and
    log p(x): nats. None where it is not finite.
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
    # max() would pass over a NaN
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
        record: Record = {"compile_seconds": rank.compile(anew=options.check)}
        if options.check:
            # Other layouts have batches that the reference is not timed at.
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
