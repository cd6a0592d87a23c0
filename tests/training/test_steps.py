"""The pieces of an uncompiled training step: gradients, update rules, ranks, phases, state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from vaez_fast.config import TrainConfig
from vaez_fast.model import VAE
from vaez_fast.objective import Distortion, ImportanceWeightedBound, NegativeElbo, Objective, Rate
from vaez_fast.system.world import ALONE, World
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import Adam, CenteredRMSprop, Optimizer, constant
from vaez_fast.training.phases import Phase, phases
from vaez_kernels import noise_key

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

BATCH, STEPS, SEED = 6, 4, 5


@dataclass(frozen=True)
class PlainDescent:
    """w ← w − g, so that the change of a weight is its gradient."""

    def moments_of(self, weight: Tensor) -> list[Tensor]:
        return []

    def table(self, rates: Tensor) -> Tensor:
        return torch.empty(len(rates), 0)

    def update(self, weight: Tensor, gradient: Tensor, moments: Any, row: Any) -> None:
        weight.sub_(gradient)


@dataclass(frozen=True)
class Half(World):
    """One of two ranks, without the sum over the other."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (STEPS * BATCH, 784), generator=generator, dtype=torch.uint8)


def make(
    objective: Callable[[VAE], Objective] = lambda vae: NegativeElbo(vae, "total-derivative"),
    *,
    vae: VAE | None = None,
    world: World = ALONE,
    optimizer: Any = None,
    precision: torch.dtype = torch.float32,
    rates: Tensor | None = None,
    **options: Any,
) -> Engine:
    return Engine(
        objective(vae or VAE("burda", SEED)),
        Batches(images(), BATCH, world),
        cast(Optimizer, optimizer or PlainDescent()),
        constant(1e-3, STEPS) if rates is None else rates,
        seed=SEED,
        precision=precision,
        pixel_scale=1 / 255,
        **options,
    )


def descent(engine: Engine) -> list[Tensor]:
    """What a step subtracts from each weight."""
    before = [w.clone() for w in engine.state.weights]
    engine.step()
    return [a - b for a, b in zip(before, engine.state.weights, strict=True)]


def assert_gradients(actual: list[Tensor], wanted: Any, relative: float = 1e-3) -> None:
    # w − (w − g) rounds g like w: 1e-8 for a weight of 0.1, a hundred thousandth of a large
    # gradient.
    for a, b in zip(actual, wanted, strict=True):
        assert float((a - b).norm()) <= relative * float(b.norm())


def test_a_step_descends_the_gradient_of_the_weighted_objective() -> None:
    weights = torch.tensor((2.0, 0.5, 1.0, 1.0), dtype=torch.float64)
    engine = make(kl_weights=weights)
    order = torch.randperm(STEPS * BATCH, generator=torch.Generator().manual_seed(1))
    engine.batches.begin_epoch(order)
    for step in range(2):
        vae = VAE("burda", SEED)
        engine.write_to(vae)
        x = images()[order[step * BATCH : (step + 1) * BATCH]] / 255
        rate, distortion = NegativeElbo(vae, "total-derivative")(x, noise_key(SEED, "train", step))
        loss = (float(weights[step]) * rate + distortion).mean()
        assert_gradients(descent(engine), torch.autograd.grad(loss, list(vae.parameters())))
        # The totals are not weighted. A Monte Carlo rate of some hundredths is a sum of 50 terms of
        # some tenths, each rounded.
        rate_of, distortion_of = engine.take_totals(1)
        assert rate_of == pytest.approx(rate.mean().item(), rel=1e-5, abs=50 * 0.3 * 2.0**-24)
        assert distortion_of == pytest.approx(distortion.mean().item(), rel=1e-5)


def test_ranks_descend_parts_of_one_gradient() -> None:
    whole = descent(make())
    halves = [descent(make(world=Half(rank, 2))) for rank in (0, 1)]
    assert_gradients([a + b for a, b in zip(*halves, strict=True)], whole)


EACH_OBJECTIVE: dict[str, Callable[[VAE], Objective]] = {
    "elbo": lambda vae: NegativeElbo(vae, "analytic"),
    "elbo, Monte Carlo": lambda vae: NegativeElbo(vae, "total-derivative", num_samples=2),
    "iwae": lambda vae: ImportanceWeightedBound(vae, "doubly-reparameterised", 3),
    "kl": lambda vae: Rate(vae, "sticking-the-landing"),
    "decoder": lambda vae: Distortion(vae, "encoder"),
    "randn": lambda vae: Distortion(vae, "randn"),
}


@pytest.mark.parametrize("name", EACH_OBJECTIVE)
def test_rows_that_a_rank_has_are_the_rows_of_the_whole(name: str) -> None:
    objective = EACH_OBJECTIVE[name](VAE("burda", SEED))
    x, key = images() / 255, noise_key(SEED, "train")
    whole, part = objective(x, key), objective(x[5:], key, 5)
    for a, b in zip(whole, part, strict=True):
        # Products of other sizes sum in another order: float32 rounding of 540 nats.
        torch.testing.assert_close(a[5:], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam(), torch.optim.Adam),
        (Adam(0.5, 0.9, 1e-3), lambda p, lr: torch.optim.Adam(p, lr, (0.5, 0.9), 1e-3)),
        (CenteredRMSprop(), lambda p, lr: torch.optim.RMSprop(p, lr, centered=True)),
        (
            CenteredRMSprop(0.5, 1e-2),
            lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.5, eps=1e-2, centered=True),
        ),
    ],
    ids=["adam", "adam with others", "rmsprop", "rmsprop with others"],
)
def test_update_rules_are_pytorchs(ours: Optimizer, theirs: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    rates = torch.tensor([1e-2, 3e-2, 1e-3] * 5, dtype=torch.float64)
    weight = torch.randn(50, generator=generator)
    wanted = weight.double().requires_grad_()
    optimizer = theirs([wanted], lr=1.0)
    moments = ours.moments_of(weight)
    for rate, row in zip(rates, ours.table(rates), strict=True):
        # The offset and the varied sizes keep gradients away from zero.
        gradient = torch.randn(50, generator=generator) * torch.logspace(-4, 1, 50) + 1e-3
        ours.update(weight, gradient, moments, list(row.unbind()))
        wanted.grad = gradient.double()
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
    # The float32 error is up to 5e-7 here; RMSprop without centring ends 0.03 and 0.08 away.
    torch.testing.assert_close(weight.double(), wanted.detach(), rtol=0, atol=1e-5)


def test_steps_are_counted_up_to_the_first_loss_that_is_not_finite() -> None:
    rates = torch.tensor((0.0, 1e30, 0.0, 0.0), dtype=torch.float64)
    engine = make(optimizer=Adam(), rates=rates)
    counts = []
    for _ in range(STEPS):
        engine.step()
        counts.append(engine.finite_steps())
    assert counts == [1, 2, 2, 2]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_engine_that_was_given_another_ones_state_goes_on_as_that_one(
    precision: torch.dtype,
) -> None:
    one = make(optimizer=Adam(), precision=precision)
    other = make(vae=VAE("burda", SEED + 1), optimizer=Adam(), precision=precision)
    for _ in range(2):
        one.step()
    other.load_state_dict(one.state_dict(), 2)
    one.step()
    other.step()
    for a, b in zip(one.state.tensors(), other.state.tensors(), strict=True):
        assert torch.equal(a, b)


def test_a_decoder_in_tandem_learns_from_the_encoder_as_the_same_batch_left_it() -> None:
    config = TrainConfig(model="burda", objective="kl", decoder="simultaneous", seed=SEED)
    options: dict[str, Any] = {"steps": STEPS, "precision": torch.float32, "pixel_scale": 1 / 255}
    (phase,) = phases(config, VAE("burda", SEED), Batches(images(), BATCH), **options)
    encoder, decoder = phase.engines
    assert phase.advance(1) == 1
    vae = VAE("burda", SEED)
    encoder.write_to(vae)
    x, key = images()[:BATCH] / 255, noise_key(SEED, "train")
    distortion = Distortion(vae, "encoder")(x, key)[1].mean()
    start = Distortion(VAE("burda", SEED), "encoder")(x, key)[1].mean()
    assert decoder.take_totals(1)[1] == pytest.approx(distortion.item(), rel=1e-6)
    assert abs(start - distortion) > 1e-5 * distortion


class Broken(Exception):
    pass


class Stepped:
    """A stand-in for an engine that raises an error at one of its steps."""

    batches = Batches(torch.zeros(2, 784, dtype=torch.uint8), 1)

    def __init__(self, breaks_at: int = -1) -> None:
        self.steps, self.breaks_at = 0, breaks_at

    def step(self) -> None:
        if self.steps == self.breaks_at:
            raise Broken
        self.steps += 1


@pytest.mark.parametrize(("first", "second", "torn"), [(2, -1, False), (-1, 2, True)])
def test_a_phase_knows_when_a_batch_reached_one_engine_and_not_the_next(
    first: int, second: int, torn: bool
) -> None:
    phase = Phase("both", cast(list[Engine], [Stepped(first), Stepped(second)]))
    with pytest.raises(Broken):
        phase.advance(4)
    assert (phase.done, phase.torn) == (2, torn)


def test_a_phase_stops_before_the_step_at_which_it_is_told_to() -> None:
    engine = Stepped()
    phase = Phase("one", cast(list[Engine], [engine]))
    assert phase.advance(5, lambda: engine.steps == 3) == 3
    assert phase.advance(2) == 2
    assert phase.done == engine.steps == 5
