"""A step, compiled or not, compared with torch.optim on float64 formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.training.uncompiled import uncompiled
from vaez_fast.model import VAE
from vaez_fast.objective import Distortion, NegativeElbo, Rate
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import Adam, CenteredRMSprop, Optimizer, constant, warmup_cosine
from vaez_kernels import noise_key, reference

STEPS, BATCH, LR, SEED = 12, 16, 1e-3, 5


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(STEPS * BATCH, 784, generator=generator) < 0.2).to(torch.uint8)


def engine(
    precision: torch.dtype, kl: str = "analytic", optimizer: Optimizer | None = None
) -> Engine:
    return Engine(
        NegativeElbo(VAE("burda", SEED), kl),
        Batches(images(), BATCH),
        optimizer or Adam(),
        warmup_cosine(LR, STEPS),
        seed=SEED,
        precision=precision,
        pixel_scale=1.0,
    )


def losses_of(engine: Engine) -> list[float]:
    losses = []
    for _ in range(STEPS):
        engine.step()
        losses.append(sum(engine.take_totals(1)))
    return losses


def learning_rate(step: int, steps: int) -> float:
    """As a share of the highest: linear over the first 5 % of steps, times a cosine to zero."""
    return (
        min(1.0, (step + 1) / max(1.0, 0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )


def textbook_losses(kl: str, make: Callable[..., torch.optim.Optimizer]) -> list[float]:
    """torch.optim with the schedule, in float64, with eps from the reference stream."""
    vae = VAE("burda", SEED).double()
    for module in vae.modules():  # our layer returns float32
        if isinstance(module, torch.nn.Linear):
            module.forward = _float64_linear.__get__(module)  # type: ignore[method-assign]
    optimizer = make(vae.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: learning_rate(t, STEPS))
    losses = []
    for step, x in enumerate(images().double().split(BATCH)):
        mu, logvar = vae.encode(x)
        eps = reference.normal(noise_key(SEED, "train", step), 1, *mu.shape)
        z = reference.rsample(mu, logvar, eps)
        if kl == "analytic":
            rate = reference.kl_standard_normal(mu, logvar)
        else:
            rate = reference.kl_standard_normal_mc(mu, logvar, eps, kl)
        loss = (rate - reference.bernoulli_log_prob(vae.decode(z), x)[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def _float64_linear(self: torch.nn.Linear, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("kl", "compiled"),
    [("analytic", True), ("total-derivative", False), ("sticking-the-landing", False)],
)
def test_steps_follow_adam_with_its_schedule(kl: str, compiled: bool) -> None:
    with nullcontext() if compiled else uncompiled():
        ours = losses_of(engine(torch.float32, kl))
    textbook = textbook_losses(kl, torch.optim.Adam)
    assert textbook[-1] < textbook[0] - 20  # it has learnt, so the losses could differ
    # float32 rounds a loss of 540 nats to 3e-5; Adam turns rounding of tiny gradients into steps.
    for step, (a, b) in enumerate(zip(ours, textbook, strict=True)):
        assert abs(a - b) < 0.02, (step, a, b)


def test_steps_follow_centred_rmsprop() -> None:
    make = partial(torch.optim.RMSprop, centered=True)
    with uncompiled():
        ours = losses_of(engine(torch.float32, "total-derivative", CenteredRMSprop()))
    textbook = textbook_losses("total-derivative", make)
    assert textbook[-1] < textbook[0] - 20
    # The first steps divide by a deviation near zero, which is mostly rounding: 0.2 nats of 340.
    for step, (a, b) in enumerate(zip(ours, textbook, strict=True)):
        assert abs(a - b) < 0.5, (step, a, b)


def test_bfloat16_products_follow_float32_and_keep_float32_weights() -> None:
    narrow = engine(torch.bfloat16)
    wide = textbook_losses("analytic", torch.optim.Adam)
    for a, b in zip(losses_of(narrow), wide, strict=True):
        assert abs(a - b) < 0.01 * b  # logits change by 2⁻⁸ of their size
    state = narrow.state
    matrices = [w for w in state.weights if w.dim() == 2]
    assert all(w.dtype == torch.float32 for w in state.weights)
    assert len(state.copies) == len(matrices)
    for copy, weight in zip(state.copies, matrices, strict=True):
        assert torch.equal(copy, weight.bfloat16())
        assert not torch.equal(copy.float(), weight)


def test_compiling_does_not_advance_the_state() -> None:
    fresh = engine(torch.float32)
    start = list(VAE("burda", SEED).parameters())
    assert fresh.state.noise.tolist() == noise_key(SEED, "train").tolist()
    assert all(torch.equal(a, b) for a, b in zip(fresh.state.weights, start, strict=True))
    fresh.step()
    assert fresh.state.noise.tolist() == noise_key(SEED, "train", 1).tolist()


def test_the_schedule_rises_and_follows_a_cosine_with_adams_bias_corrections() -> None:
    table = Adam().table(warmup_cosine(0.5, 100)).double()
    for t in (0, 3, 4, 5, 50, 99):
        rate = 0.5 * learning_rate(t, 100) / (1 - 0.9 ** (t + 1))
        assert table[t, 0] == pytest.approx(rate, rel=1e-6)
        assert table[t, 1] == pytest.approx((1 - 0.999 ** (t + 1)) ** -0.5, rel=1e-6)
    assert torch.equal(constant(0.5, 3), torch.full((3,), 0.5, dtype=torch.float64))


def test_a_step_takes_the_next_images_of_the_order() -> None:
    x = images()
    batches = Batches(x, 50)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    batches.begin_epoch(order)
    assert batches.per_epoch == 3
    for step in (0, 1, 2, 3, 7):
        rows = batches.rows(batches.images, batches.order, torch.tensor([step]))
        first = step % 3 * 50
        assert torch.equal(rows, x[order[first : first + 50]])


def test_an_epoch_may_bring_other_images_to_the_same_memory() -> None:
    batches = Batches(images(), BATCH)
    images_at, order_at = batches.images.data_ptr(), batches.order.data_ptr()
    other = 1 - images()
    batches.begin_epoch(torch.arange(len(other)).flip(0), other)
    assert (batches.images.data_ptr(), batches.order.data_ptr()) == (images_at, order_at)
    assert torch.equal(
        batches.rows(batches.images, batches.order, torch.tensor([0])), other.flip(0)[:BATCH]
    )


@pytest.mark.parametrize("make", [lambda v: Rate(v, "analytic"), lambda v: Distortion(v, "randn")])
def test_each_half_is_trained_alone(make: Callable[[VAE], Rate | Distortion]) -> None:
    vae = VAE("burda", SEED)
    objective = make(vae)
    with uncompiled():
        half = Engine(
            objective,
            Batches(images(), BATCH),
            Adam(),
            constant(LR, STEPS),
            seed=SEED,
            precision=torch.float32,
            pixel_scale=1.0,
        )
    assert {name.split(".")[1] for name in half.names} == set(objective.trains or ())
    losses = losses_of(half)
    assert losses[-1] < losses[0]


def test_the_trained_weights_go_back_into_a_model() -> None:
    trained = engine(torch.float32)
    trained.step()
    vae = VAE("burda", SEED + 1)
    trained.write_to(vae)
    for p, w in zip(vae.parameters(), trained.state.weights, strict=True):
        assert torch.equal(p, w)
