"""What every rank of test_ranks.py runs: `torchrun … tests/training/rank_worker.py OUT`.

The first rank writes the ranks' common results to OUT/found.pt. OUT/study is a study that they
share. Each rank writes its threads in the group and after it to OUT/threads-RANK.json, and a
Fréchet distance of its own features to OUT/frechet-RANK.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import torch

from tests.study import fake_study
from tests.training.digits import first
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.measures.evaluate import evaluator
from vaez_fast.measures.image_metrics import frechet_distance
from vaez_fast.model import VAE
from vaez_fast.study import arrays, study
from vaez_fast.system.files import write_json
from vaez_fast.system.world import World, joined
from vaez_fast.training.batches import Batches
from vaez_fast.training.phases import phases
from vaez_fast.training.train import train

# 49 rows divide into unequal shares for 2 and for 4 ranks.
CONFIG = TrainConfig(
    model="lyeoni",
    epochs=None,
    steps=100,
    batch_size=49,
    lr=1e-3,
    precision="float32",
    seed=11,
    test_samples=8,
)


def digits() -> Dataset:
    full = load("mnist-5k")
    return Dataset("mnist-1k", *(first(s, n) for s, n in zip(
        (full.train, full.validation, full.test), (1000, 101, 101), strict=True
    )))  # fmt: skip


def found(world: World) -> dict[str, object]:
    """Losses of 100 steps, gradients of the first step, metrics before and after training."""
    dataset = digits()
    vae = VAE(CONFIG.model, CONFIG.seed)
    before = evaluator(CONFIG, dataset, "test", world)(vae, 8)
    batches = Batches(binarized(dataset, "train", "static"), CONFIG.batch_size, world)
    (phase,) = phases(
        CONFIG, vae, batches, steps=CONFIG.steps or 0, precision=torch.float32, pixel_scale=1.0
    )
    (engine,) = phase.engines
    losses, gradients = [], []
    for step in range(100):
        phase.advance(1)
        if step == 0:
            # After one step Adam's mean is 0.1 times the first gradient.
            gradients = [mean.clone() / 0.1 for mean, _ in engine.state.moments]
        losses.append(sum(engine.take_totals(1)))
    result = train(CONFIG, dataset, world=world)
    return {
        "before": before.as_dict(),
        "losses": losses,
        "gradients": gradients,
        "test": result.test.as_dict(),
        "weights": [w.detach() for w in result.vae.parameters()],
    }


class FakeMeasure:
    """A stand-in for `Measure` that records which rank made which run."""

    steps = 200
    networks = None
    rank = 0

    def __init__(self, _: object, __: object, ___: object, networks_file: Path) -> None:
        self.folder = networks_file.parent

    def run(self, config: TrainConfig, _: frozenset[int]) -> tuple[object, object]:
        name = f"{arrays.slug(config.arm)}-{config.seed}"
        write_json(self.folder / f"made-{name}.json", {"rank": self.rank})
        return fake_study.record(config), fake_study.images()

    def beside(self) -> object:
        return fake_study.beside()


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with joined() as world:
        together = found(world)
        FakeMeasure.rank = world.rank
        with patch.object(study, "Measure", FakeMeasure):
            study.run_study(fake_study.CONFIG, out / "study", world=world)
        if world.rank == 0:
            torch.save(together, out / "found.pt")
        write_json(out / f"frechet-{world.rank}.json", {"distance": frechet_of(world.rank)})
        within = threads()
    write_json(out / f"threads-{world.rank}.json", {"within": within, "after": threads()})


def frechet_of(rank: int) -> float:
    """A Fréchet distance of features that only this rank has."""
    a, b = torch.randn((2, 50, 3), generator=torch.Generator().manual_seed(rank))
    return frechet_distance(a + rank, b)


def threads() -> list[str]:
    """The names of this process's threads."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
