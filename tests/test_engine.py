"""A compiled step against the same step written with torch.optim and float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vaez_fast.engine import Engine, adam_schedule
from vaez_fast.model import VAE, bernoulli_log_prob
from vaez_fast.objective import NegativeElbo
from vaez_kernels import noise_key, reference

STEPS, BATCH, LR, SEED = 12, 16, 1e-3, 5


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(BATCH, 784, generator=generator) < 0.2).to(torch.uint8) for _ in range(STEPS)
    ]


def engine(precision: torch.dtype, kl: str = "analytic") -> Engine:
    return Engine(
        NegativeElbo(VAE("burda", SEED), kl),
        steps=STEPS,
        batch_size=BATCH,
        lr=LR,
        seed=SEED,
        precision=precision,
        pixel_scale=1.0,
        device=torch.device("cpu"),
    )


def losses_of(engine: Engine) -> list[float]:
    losses = []
    for pixels in batches():
        engine.step(pixels)
        losses.append(sum(engine.take_totals(1)))
    return losses


def learning_rate(step: int, steps: int) -> float:
    """Of the highest: linear over the first 5 % of the steps, times a cosine to zero."""
    return (
        min(1.0, (step + 1) / max(1.0, 0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )


def textbook_losses(kl: str) -> list[float]:
    """torch.optim.Adam with the schedule, all in float64, eps from the reference stream."""
    vae = VAE("burda", SEED).double()
    for module in vae.modules():  # our layer returns float32
        if isinstance(module, torch.nn.Linear):
            module.forward = _float64_linear.__get__(module)  # type: ignore[method-assign]
    optimizer = torch.optim.Adam(vae.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: learning_rate(t, STEPS))
    losses = []
    for step, pixels in enumerate(batches()):
        x = pixels.double()
        mu, logvar = vae.encode(x)
        eps = reference.normal(noise_key(SEED, "train", step), 1, *mu.shape)
        z = reference.rsample(mu, logvar, eps)
        if kl == "analytic":
            rate = reference.kl_standard_normal(mu, logvar)
        else:
            rate = reference.kl_standard_normal_mc(mu, logvar, eps, kl)
        loss = (rate - bernoulli_log_prob(vae.decode(z[0]), x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def _float64_linear(self: torch.nn.Linear, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("kl", ["analytic", "total-derivative", "sticking-the-landing"])
def test_steps_follow_adam_with_its_schedule(kl: str) -> None:
    ours, textbook = losses_of(engine(torch.float32, kl)), textbook_losses(kl)
    assert textbook[-1] < textbook[0] - 20  # something was learnt that could differ
    # float32 rounds a loss of 540 nats to 3e-5; Adam turns rounding of tiny gradients into steps
    for step, (a, b) in enumerate(zip(ours, textbook, strict=True)):
        assert abs(a - b) < 0.02, (step, a, b)


def test_bfloat16_products_follow_float32_and_keep_float32_weights() -> None:
    narrow = engine(torch.bfloat16)
    for a, b in zip(losses_of(narrow), textbook_losses("analytic"), strict=True):
        assert abs(a - b) < 0.01 * b  # logits move by 2⁻⁸ of their size
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
    fresh.step(batches()[0])
    assert fresh.state.noise.tolist() == noise_key(SEED, "train", 1).tolist()


def test_the_schedule_rises_and_follows_a_cosine_with_adams_bias_corrections() -> None:
    table = adam_schedule(0.5, 100).double()
    for t in (0, 3, 4, 5, 50, 99):
        rate = 0.5 * learning_rate(t, 100) / (1 - 0.9 ** (t + 1))
        assert table[t, 0] == pytest.approx(rate, rel=1e-6)
        assert table[t, 1] == pytest.approx((1 - 0.999 ** (t + 1)) ** -0.5, rel=1e-6)


def test_the_trained_weights_go_back_into_a_model() -> None:
    trained = engine(torch.float32)
    trained.step(batches()[0])
    vae = VAE("burda", SEED + 1)
    trained.write_to(vae)
    for p, w in zip(vae.parameters(), trained.state.weights, strict=True):
        assert torch.equal(p, w)
