"""The published code keeps the worst state; a decoder is then trained on that state's z."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.training.baselines import TextbookVAE
from tests.training.digits import first
from tests.training.uncompiled import uncompiled
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, Pixels, epoch_order, load
from vaez_fast.measures.evaluate import evaluator
from vaez_fast.model import VAE
from vaez_fast.objective import NegativeElbo, Rate
from vaez_fast.study import published_code
from vaez_fast.study.published_code import kept_and_decoded, worst
from vaez_fast.training.batches import Batches
from vaez_kernels import noise_key, reference

BATCH, SEED, STEPS = 20, 3, 60
CONFIG = TrainConfig(
    model="lyeoni", objective="kl", kl="as-published", decoder="separate", batch_size=BATCH,
    epochs=None, steps=STEPS, precision="float32", device="cpu", seed=SEED,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    full = load("mnist-5k")
    return Dataset("few", *(first(s, 200) for s in (full.train, full.validation, full.test)))


def published_loss(vae: TextbookVAE, x: Tensor, noise: Tensor, joint: bool) -> Tensor:
    """The loss of the published code by image, from torch.distributions and float64 noise."""
    q = vae.posterior(x)
    if not joint:
        return (0.5 * (q.scale - 1 + q.loc**2 - q.scale.log())).sum(1)
    z = q.loc + q.scale * reference.normal(noise, 1, *q.loc.shape)[0]
    log_ratio = q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)
    logits = vae.decoder(z)
    log_px = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return log_ratio.sum(1) - log_px.sum(1)


@pytest.mark.parametrize("joint", [False, True])
def test_the_state_with_the_highest_test_loss_is_kept(dataset: Dataset, joint: bool) -> None:
    start = VAE("lyeoni", SEED)
    pixels = Pixels(dataset, "static", SEED)
    textbook = TextbookVAE("lyeoni")
    textbook.load_state_dict(start.state_dict())
    textbook.double()
    half = textbook if joint else textbook.encoder
    optimizer = torch.optim.RMSprop(half.parameters(), lr=1e-3, centered=True)
    order = epoch_order(SEED, 0, 200, "cpu")
    x_train, x_test = pixels.x("train").double()[order], pixels.x("test").double()
    losses, states = [], []
    for step in range(12):
        x = x_train.roll(-BATCH * step, 0)[:BATCH]
        optimizer.zero_grad()
        published_loss(textbook, x, noise_key(SEED, "train", step), joint).sum().backward()
        optimizer.step()
        with torch.no_grad():
            noise = noise_key(SEED, "evaluate", 60 + step)
            losses.append(float(published_loss(textbook, x_test, noise, joint).mean()))
        states.append(copy.deepcopy(textbook.state_dict()))
    highest = max(range(12), key=losses.__getitem__)
    assert min(losses) < 0.9 * losses[highest]

    vae = copy.deepcopy(start)
    objective = NegativeElbo(vae, "total-derivative") if joint else Rate(vae, "as-published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published_code, "WATCHED", 12)
        kept = worst(objective, Batches(pixels.train(), BATCH), pixels, SEED)
    assert kept.step == highest + 1
    # Rounding errors of float32 weights and sums, a few 1e-6 of each, grow over the steps.
    assert kept.loss == pytest.approx(losses[highest], rel=1e-4)
    assert kept.last_loss == pytest.approx(losses[-1], rel=1e-3)
    for name, weight in kept.vae.state_dict().items():
        # RMSprop divides by the gradient's size, so a gradient near zero may change its sign; that
        # moves a weight by up to 0.02 and happens to few.
        off = (weight.double() - states[highest][name]).abs()
        assert float(off.mean()) < 1e-4, name
    before, after = start.state_dict(), kept.vae.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("decoder" in name for name in moved) == joint


def test_the_decoder_is_retrained_on_z_of_the_encoder_that_was_kept(dataset: Dataset) -> None:
    with uncompiled():
        found = kept_and_decoded(CONFIG, dataset, STEPS)
        longer = kept_and_decoded(replace(CONFIG, steps=4 * STEPS), dataset, 4 * STEPS)
    test = evaluator(CONFIG, dataset, "test")
    pixels = Pixels(dataset, "static", SEED)
    for name, objective in (
        ("encoder", Rate(VAE("lyeoni", SEED), "as-published")),
        ("joint", NegativeElbo(VAE("lyeoni", SEED), "total-derivative")),
    ):
        kept = worst(objective, Batches(pixels.train(), BATCH), pixels, SEED)
        metrics = test(kept.vae, 1)
        part = found[name]
        assert (part["step"], part["loss"]) == (kept.step, kept.loss)
        assert (part["rate"], part["distortion"]) == (metrics.rate, metrics.distortion)
        assert part["decoder_retrained"] < part["distortion"] - 50
        assert longer[name]["decoder_retrained"] < part["decoder_retrained"] - 1
