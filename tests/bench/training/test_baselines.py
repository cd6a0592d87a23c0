"""The baselines and the engine: with the same recipe they have the same learning curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.training.baselines import (
    CarefulTraining,
    TextbookTraining,
    TextbookVAE,
    compiled_training,
)
from bench.training.checks import check_first_step, check_loss
from bench.training.products import products_of
from vaez_fast.data import binarized, load
from vaez_fast.model import VAE
from vaez_fast.objective import Distortion, NegativeElbo, Rate
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import Adam, CenteredRMSprop, Optimizer, constant
from vaez_kernels import noise_key, normal

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

MODEL, BATCH, STEPS = "lyeoni", 64, 60


@pytest.fixture(scope="module")
def images() -> Tensor:
    """960 real digits: 15 batches."""
    return binarized(load("mnist-5k"), "train", "static")[: 15 * BATCH]


def engine(images: Tensor, kl: str, optimizer: Optimizer) -> Engine:
    return Engine(
        NegativeElbo(VAE(MODEL), kl),
        Batches(images, BATCH),
        optimizer,
        constant(1e-3, STEPS),
        seed=0,
        precision=torch.float32,
        pixel_scale=1.0,
    )


def curve_of_engine(engine: Engine) -> Tensor:
    losses = []
    for _ in range(STEPS):
        engine.step()
        losses.append(sum(engine.take_totals(1)))
    return torch.tensor(losses)


def curve_of_baseline(
    training: TextbookTraining | CarefulTraining, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """The losses of a baseline that draws the engine's noise instead of PyTorch's."""
    losses: list[float] = []

    def standard_normal(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        return normal(noise_key(0, "train", len(losses)), 1, *shape)[0]

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", standard_normal)
    loss = training.loss

    def recorded(x: Tensor) -> tuple[Tensor, Tensor]:
        rows, z = loss(x)
        losses.append(float(rows.detach().mean()))
        return rows, z

    training.loss = recorded
    for _ in range(STEPS):
        training.step()
    return torch.tensor(losses)


def in_order(images: Tensor) -> Any:
    """A stand-in for the shuffling DataLoader, with the batches in the engine's order."""

    def loader(dataset: Any, **_: Any) -> list[tuple[Tensor]]:
        return [(x,) for x in images.float().split(BATCH)]

    return loader


def assert_follows(ours: Tensor, theirs: Tensor) -> None:
    assert theirs[-1] < theirs[0] - 200  # both have learnt, so the curves could differ
    # Both compute in float32, which rounds a loss of 540 nats to 3e-5. Both optimisers divide tiny
    # gradients by their own size, so rounding errors become whole steps (at most 0.3 nats,
    # measured).
    assert (ours - theirs).abs().max() < 1.0


def test_the_engine_follows_the_textbooks_learning_curve(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.training.baselines.DataLoader", in_order(images))
    textbook = TextbookTraining(TextbookVAE(MODEL), images, BATCH)
    ours = curve_of_engine(engine(images, "total-derivative", CenteredRMSprop()))
    assert_follows(ours, curve_of_baseline(textbook, monkeypatch))


def test_the_engine_follows_the_careful_baselines_learning_curve(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.randperm", lambda count, device=None: torch.arange(count))
    careful = CarefulTraining(TextbookVAE(MODEL), images, BATCH)
    ours = curve_of_engine(engine(images, "analytic", Adam()))
    assert_follows(ours, curve_of_baseline(careful, monkeypatch))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("elbo", lambda vae: vae.negative_elbo),
        ("analytic elbo", lambda vae: vae.analytic_negative_elbo),
        ("kl", lambda vae: vae.monte_carlo_kl),
        ("decoder", lambda vae: vae.distortion),
    ],
)
def test_a_wrong_loss_of_a_baseline_fails_its_check(
    images: Tensor, name: str, loss: Callable[[TextbookVAE], Any]
) -> None:
    vae, x = TextbookVAE(MODEL), images[:BATCH].float()
    assert check_loss(loss(vae), vae, x, name).passed

    def wrong(x: Tensor) -> tuple[Tensor, Tensor]:
        rows, z = loss(vae)(x)
        return rows + 0.01, z

    assert not check_loss(wrong, vae, x, name).passed


def test_the_compiled_baseline_is_the_textbook_compiled(images: Tensor) -> None:
    vae = TextbookVAE(MODEL)
    training = compiled_training(vae, images, BATCH)
    assert check_loss(training.loss, vae, images[:BATCH].float(), "elbo").passed
    before = [p.detach().clone() for p in vae.parameters()]
    training.step()
    assert all(not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))


def test_the_products_of_a_step_are_those_of_its_layers(images: Tensor) -> None:
    step = engine(images, "analytic", Adam())
    products = products_of(step)
    # 784-512-256-4, 2-256-512-784: forward, gradient of the weights and gradient of the input for
    # each layer; the images need no gradient.
    layers = [(784, 512), (512, 256), (256, 4), (2, 256), (256, 512), (512, 784)]
    operations = sum(3 * 2 * BATCH * i * o for i, o in layers) - 2 * BATCH * 784 * 512
    assert sum(product.operations for product in products) == operations
    assert len(products) == 3 * 6 - 1
    assert {product.dtype for product in products} == {torch.float32}


def test_an_encoder_alone_has_no_products_of_the_decoder(images: Tensor) -> None:
    vae = VAE(MODEL)
    steps = {
        name: Engine(
            objective,
            Batches(images, BATCH),
            Adam(),
            constant(1e-3, STEPS),
            seed=0,
            precision=torch.float32,
            pixel_scale=1.0,
        )
        for name, objective in (
            ("kl", Rate(vae, "analytic")),
            ("decoder", Distortion(vae, "randn")),
        )
    }
    assert {name: len(products_of(step)) for name, step in steps.items()} == {
        "kl": 3 * 3 - 1,
        "decoder": 3 * 3 - 1,
    }
    assert check_first_step(steps["kl"], MODEL, "kl").passed
