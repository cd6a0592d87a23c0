"""What a rank of bench.scaling measures: works in turn, after a warm-up, by the slowest rank."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.scaling import rank as scaling_rank
from bench.scaling.rank import Plan, Rank
from bench.scaling.worker import rounded_otherwise
from vaez_fast.model import VAE
from vaez_fast.system.world import ALONE

PLAN = Plan(
    processes=(1, 2), strong=(8, 24), weak=16, steps=20, checked_steps=3, rounds=4, calls=3,
    evaluations=2, samples=5,
)  # fmt: skip
WEIGHTS = (6, 4)  # elements of each weight


class FakeTime:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class OfTwo:
    """A stand-in for a world of two ranks, in which the other rank takes twice as many seconds."""

    rank, size = 0, 2

    def __init__(self, clock: FakeTime) -> None:
        self.clock, self.log = clock, list[str]()
        self.summed: list[int] = []

    def gather(self, mine: Tensor, count: int) -> Tensor:
        assert count == 2
        return torch.cat([mine, 2 * mine], 1)

    def wait(self) -> None:
        self.clock.now += 1000.0  # until the other rank is there, too
        self.log.append("meet")

    def sum(self, flat: Tensor) -> Tensor:
        self.clock.now += 0.5
        self.summed.append(flat.numel())
        self.log.append("all_reduce")
        return flat


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(scaling_rank, "time", fake)
    return fake


@pytest.fixture
def world(clock: FakeTime) -> OfTwo:
    return OfTwo(clock)


@pytest.fixture
def rank(clock: FakeTime, world: OfTwo, monkeypatch: pytest.MonkeyPatch) -> Rank:
    """A rank whose steps take a second a row, alone half as long, and 50 s more when cold."""
    monkeypatch.setattr(scaling_rank, "load", lambda *_: None)
    monkeypatch.setattr(scaling_rank, "binarized", lambda *_: None)

    def phase(batch: int, of: Any, vae: Any = None) -> Any:
        calls = [0]

        def advance(steps: int) -> None:
            calls[0] += 1
            clock.now += steps * batch * (0.5 if of is ALONE else 1.0)
            clock.now += 50.0 if calls[0] <= PLAN.calls else 0.0
            world.log.append("apart" if of is ALONE else str(batch))

        weights = [torch.zeros(count) for count in WEIGHTS]
        return SimpleNamespace(
            advance=advance, engines=[SimpleNamespace(state=SimpleNamespace(weights=weights))]
        )

    def evaluator(*_: Any) -> Callable[[VAE, int], None]:
        def evaluate(_: VAE, samples: int) -> None:
            assert samples == 5
            clock.now += 7.0

        return evaluate

    monkeypatch.setattr(scaling_rank, "evaluator", evaluator)
    made = Rank(PLAN, world)  # type: ignore[arg-type]
    monkeypatch.setattr(made, "phase", phase)
    return made


def test_seconds_are_of_one_warm_call_and_of_the_slowest_rank(rank: Rank, world: OfTwo) -> None:
    # Two ranks of 16 rows each have a batch of 32.
    assert rank.seconds() == {
        "8": [16.0] * 4,
        "24": [48.0] * 4,
        "32": [64.0] * 4,
        "apart": [8.0] * 4,
        "all_reduce": [1.0] * 4,
        "evaluation": [14.0] * 2,
    }
    assert set(world.summed) == {2 + sum(WEIGHTS)}  # two losses and all gradients


def test_ranks_meet_before_each_work_and_every_round_starts_with_another(
    rank: Rank, world: OfTwo
) -> None:
    rank.seconds()
    turns = [turn.split() for turn in " ".join(world.log).split("meet")[1:]]
    assert all(len(turn) in (0, PLAN.calls) and len(set(turn)) <= 1 for turn in turns)
    names = [turn[0] for turn in turns if turn]
    rounds = [names[i : i + 5] for i in range(0, len(names), 5)]
    assert [of[0] for of in rounds] == ["all_reduce", "8", "24", "32", "apart"]
    assert all(set(of) == {"8", "24", "32", "apart", "all_reduce"} for of in rounds)


def test_the_slowest_rank_is_found_for_each_value_by_itself(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_both(mine: Tensor, count: int) -> Tensor:
        return torch.cat([mine, torch.tensor([[5.0], [1.0], [2.0]])], 1).double()

    monkeypatch.setattr(rank.world, "gather", of_both)
    assert rank.slowest([3.0, 4.0, 2.0]) == [5.0, 4.0, 2.0]


def test_first_steps_tell_each_loss_and_the_gradients_of_the_first(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's mean is a tenth of the gradient after the first step alone."""
    mean, step = torch.zeros(2), [0]

    def advance(steps: int) -> None:
        assert steps == 1
        step[0] += 1
        mean.copy_(torch.tensor([0.3, -0.4]) if step[0] == 1 else torch.tensor([9.0, 9.0]))

    engine = SimpleNamespace(
        state=SimpleNamespace(moments=[(mean, torch.ones(2))]),
        take_totals=lambda count: [10.0 * step[0], 0.5],
    )
    phase = SimpleNamespace(advance=advance, engines=[engine])
    monkeypatch.setattr(rank, "phase", lambda *_: phase)
    losses, (gradient,) = rank.first_steps(8)
    assert losses.tolist() == [10.5, 20.5, 30.5]
    assert gradient.tolist() == pytest.approx([3.0, -4.0])


def test_weights_rounded_otherwise_move_by_half_a_unit_at_most() -> None:
    one, moved = VAE("lyeoni", 3), rounded_otherwise(VAE("lyeoni", 3))
    changed = 0
    for before, after in zip(one.parameters(), moved.parameters(), strict=True):
        # They move by at most half of 2⁻²³ and are then rounded to a neighbour.
        assert bool(((after - before).abs() <= before.abs() * 2.0**-23).all())
        changed += int((after != before).sum())
    assert changed > 1000


def test_a_plan_comes_back_from_json_and_names_its_batches() -> None:
    written = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(PLAN).items()}
    assert Plan.of(written) == PLAN
    assert PLAN.batches(1) == [8, 16, 24]
    assert PLAN.batches(1, 2) == [8, 16, 24, 32]
