"""One rank of a layout: the plan that it carries out, its steps, its times and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.measures.evaluate import evaluator
from vaez_fast.model import VAE
from vaez_fast.system.world import ALONE, World
from vaez_fast.training import engine
from vaez_fast.training.batches import Batches
from vaez_fast.training.phases import Phase, phases
from vaez_fast.training.train import train

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured in every layout of processes; a batch is that of all ranks together."""

    data: str = "mnist-5k"
    data_root: str = "data"
    processes: tuple[int, ...] = (1, 2, 4)
    strong: tuple[int, ...] = (128, 512, 2048)
    weak: int = 512  # rows of each rank
    steps: int = 300  # of the short training, and the most that are timed at a batch
    checked_steps: int = 100
    rounds: int = 12
    calls: int = 3  # steps in a round
    evaluations: int = 3
    samples: int = 16  # importance samples of an evaluation

    @classmethod
    def of(cls, record: Record) -> Plan:
        """Restore a plan from the JSON of its `asdict`."""
        values: Record = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)

    def batches(self, *processes: int) -> list[int]:
        """The global batches at which layouts of so many processes are timed."""
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
        world: the ranks that share the batches and the images to evaluate.
    """

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world = plan, world
        self.imported_bytes = memory("VmRSS")
        self.dataset: Dataset = load(plan.data, plan.data_root)
        self.images = binarized(self.dataset, "train", "static")

    def phase(self, batch_size: int, world: World, vae: VAE | None = None) -> Phase:
        """Training of the ordinary VAE, always from the same weights or from those of `vae`."""
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
        """The largest of each value over all ranks."""
        columns = torch.tensor(values, dtype=torch.float64)[:, None]
        everyone: list[float] = self.world.gather(columns, self.world.size).amax(1).tolist()
        return everyone

    def compile(self, *, empty_cache: bool) -> float:
        """Seconds to the first compiled step; every rank compiles its own.

        Args:
            empty_cache: compile with an empty cache; else with the cache of this machine.
        """
        from torch._inductor.utils import fresh_cache

        with fresh_cache() if empty_cache else nullcontext():
            clock = time.perf_counter()
            self.phase(self.plan.strong[0], self.world)
            taken = time.perf_counter() - clock
        if empty_cache:  # fill the cache of this machine, too
            engine.compiled_graphs.clear()
            self.phase(self.plan.strong[0], self.world)
        return self.slowest([taken])[0]

    def short_training(self) -> Record:
        """Test ELBO of the short training, and the largest memory of a training rank, in bytes."""
        config = self.plan.config(self.plan.strong[0])
        test = train(config, self.dataset, look_every=self.plan.steps, world=self.world).test
        held = self.slowest([self.imported_bytes, memory("VmHWM"), memory("RssAnon")])
        names = ("imported", "peak", "own")
        return {"elbo": test.elbo, "bytes": dict(zip(names, held, strict=True))}

    def first_steps(self, batch_size: int, vae: VAE | None = None) -> tuple[Tensor, list[Tensor]]:
        """Losses of the first steps, (T,) float64 nats, and the gradients of the first step."""
        phase = self.phase(batch_size, self.world, vae)
        (ours,) = phase.engines
        losses, gradients = [], []
        for step in range(self.plan.checked_steps):
            phase.advance(1)
            if step == 0:
                # Adam's mean of the gradient is 0.1 times the gradient after one step.
                gradients = [mean.clone() / 0.1 for mean, _ in ours.state.moments]
            losses.append(sum(ours.take_totals(1)))
        return torch.tensor(losses, dtype=torch.float64), gradients

    def seconds(self) -> Record:
        """Seconds of the slowest rank in each round.

        A batch: a step. "apart": all ranks at once take a step on a whole batch of their own, and
        do not communicate. "all_reduce": a bare all-reduce, as large as that of a step.
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
        # Each round starts with another work, and each work starts on all ranks together.
        names = list(works)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(-1, rounds):  # the first round warms up
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
    """Bytes of this process on Linux: VmRSS, resident; VmHWM, the peak of VmRSS; RssAnon, resident
    memory that belongs to no file, so that no other process shares it.

    getrusage is no use here: a process inherits its maximum from the process that started it.
    """
    status = Path("/proc/self/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:"))
    return 1024.0 * int(kib)
