"""Any module, prior and optimiser: a trained step is the one of the same model in eager PyTorch."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.uncompiled import uncompiled
from vaez_fast.likelihoods import Gaussian
from vaez_fast.streams import EVALUATION, TRAINING
from vaez_fast.system.errors import ConfigError
from vaez_fast.system.files import OutputError
from vaez_fast.trainer import FlowPrior, MixturePrior, StandardNormal, Trainer, cosine, warmup
from vaez_fast.trainer.elbo import Elbo
from vaez_fast.training.graph import compile_graph
from vaez_kernels import noise_key, normal, uniform

from .models import BATCH, MODELS, ROWS, Cells, Pictures, Table, counts, numbers, pictures


@pytest.fixture(autouse=True)
def traced_steps() -> Iterator[None]:
    """Steps run as they are traced, but for one test."""
    with uncompiled():
        yield


def trained(model: nn.Module, data: Any, epochs: int = 1, **settings: Any) -> Trainer:
    chosen = {"precision": "float32", "device": "cpu"} | settings
    trainer = Trainer(model, **chosen)
    trainer.train(data, epochs=epochs, batch_size=BATCH, show_progress=False)
    return trainer


def own(trainer: Trainer) -> Any:
    """The trained model, whose layers the tests know."""
    return trainer.model


def batches_of(data: Any, seed: int = 0) -> Iterator[tuple[int, Any]]:
    """The batches of the first epoch, in its order."""
    order = uniform(noise_key(seed, "permute"), 1, ROWS, 1).flatten().argsort(stable=True)
    for step in range(ROWS // BATCH):
        rows = order[step * BATCH : (step + 1) * BATCH]
        if isinstance(data, Tensor):
            yield step, data[rows]
        else:
            yield step, {name: entry[rows] for name, entry in data.items()}


def by_hand(
    model: nn.Module,
    data: Any,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    prior: nn.Module | None = None,
    clip: float | None = None,
    lr: float = 1e-3,
    **elbo: Any,
) -> Elbo:
    """One epoch in eager PyTorch with the same noise: a loop that a user would write."""
    loss = Elbo(model, prior or StandardNormal(), **elbo)
    optimizer = make(loss.parameters(), lr=lr)
    for step, batch in batches_of(data):
        optimizer.zero_grad()
        rate, distortion = loss(batch, TRAINING.key(0, step))
        (rate + distortion).mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(loss.parameters(), clip)
        optimizer.step()
    return loss


def assert_same_state(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    # Sums in another order differ by some 1e-7 of their terms; Adam divides by gradients, which
    # are near zero for few weights.
    found, expected = ours.state_dict(), theirs.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=f"{name} differs"
        )


WITHOUT_DROPOUT = [name for name in MODELS if name != "counts"]


@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_an_epoch_ends_at_the_weights_of_an_eager_loop(name: str) -> None:
    make, data = MODELS[name]
    ours = trained(make(), data())
    assert_same_state(ours.elbo, by_hand(make(), data()))


def test_a_compiled_epoch_ends_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaez_fast.training.engine.compile_graph", compile_graph)
    ours = trained(Pictures(), pictures())
    assert_same_state(ours.elbo, by_hand(Pictures(), pictures()))


@pytest.mark.parametrize("prior", [MixturePrior, FlowPrior])
def test_a_prior_is_trained_with_the_model(prior: Callable[[int], nn.Module]) -> None:
    ours = trained(Table(nn.Tanh()), numbers(), prior=prior(3))
    theirs = by_hand(Table(nn.Tanh()), numbers(), prior=prior(3))
    assert_same_state(ours.elbo, theirs)
    moved = [
        not torch.equal(p, q)
        for p, q in zip(ours.prior.parameters(), prior(3).parameters(), strict=True)
    ]
    assert any(moved)


@pytest.mark.parametrize("kl", ["total-derivative", "sticking-the-landing"])
def test_a_monte_carlo_rate_has_the_gradient_of_eager_pytorch(kl: str) -> None:
    settings: dict[str, Any] = {"kl": kl, "num_samples": 3}
    ours = trained(Table(nn.Tanh()), numbers(), **settings)
    assert_same_state(ours.elbo, by_hand(Table(nn.Tanh()), numbers(), **settings))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "AdamW with decay": functools.partial(torch.optim.AdamW, weight_decay=0.3),
    "Adam with L2": functools.partial(torch.optim.Adam, weight_decay=0.1),
    "amsgrad": functools.partial(torch.optim.Adam, amsgrad=True),
    "SGD": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "RMSprop": functools.partial(torch.optim.RMSprop, momentum=0.5, centered=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_of_pytorch_takes_the_same_steps_in_the_graph(name: str) -> None:
    make = OPTIMIZERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a step in eager PyTorch would warn
        ours = trained(Table(nn.Tanh()), numbers(), optimizer=make, lr=1e-2)
    assert_same_state(ours.elbo, by_hand(Table(nn.Tanh()), numbers(), make, lr=1e-2))


@pytest.mark.parametrize("make", [torch.optim.Rprop, torch.optim.ASGD])
def test_an_optimiser_whose_start_depends_on_the_learning_rate_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=f"optimizer {make.__name__} .*initial state depends"):
        Trainer(Table(), optimizer=make)


def test_long_gradients_are_clipped_as_pytorch_clips_them() -> None:
    sgd = torch.optim.SGD
    ours = trained(Table(nn.Tanh()), numbers(), optimizer=sgd, clip=0.5)
    assert_same_state(ours.elbo, by_hand(Table(nn.Tanh()), numbers(), sgd, clip=0.5))
    unclipped = by_hand(Table(nn.Tanh()), numbers(), sgd)
    assert not torch.allclose(own(ours).logvar, unclipped.model.logvar, atol=1e-4)  # type: ignore[arg-type]


def test_short_gradients_stay_as_they_are() -> None:
    sgd = torch.optim.SGD
    ours = trained(Table(nn.Tanh()), numbers(), optimizer=sgd, clip=1e6)
    assert_same_state(ours.elbo, by_hand(Table(nn.Tanh()), numbers(), sgd))


# Batch normalisation and dropout.


def test_running_statistics_advance_once_a_step() -> None:
    def make() -> Table:
        return Table(nn.BatchNorm1d(16), nn.Tanh())

    # Not Adam: it would divide the gradient of the bias in front, which is zero up to rounding.
    sgd = torch.optim.SGD
    ours = trained(make(), numbers(), optimizer=sgd)
    assert_same_state(ours.elbo, by_hand(make(), numbers(), sgd))
    assert int(own(ours).encoder[1].num_batches_tracked) == ROWS // BATCH


def test_an_evaluated_model_uses_its_running_statistics() -> None:
    model = Table(nn.BatchNorm1d(16), nn.Tanh())
    trainer = trained(model, numbers(), epochs=2)
    whole = trainer.evaluate(numbers(), samples=4)
    # In training mode, statistics would be those of the rows that are evaluated together.
    alone = [trainer.evaluate(numbers()[:1], samples=4), trainer.evaluate(numbers()[:2], samples=4)]
    assert math.isfinite(whole.elbo)
    # By hand, in evaluation mode; statistics of the batch would differ between one row and two.
    model.eval()
    x, key = numbers()[:2], EVALUATION["test"].key(0)
    z, log_q = trainer.elbo.draw(trainer.elbo.encode(x), key, 4)
    log_weight = trainer.elbo.log_likelihood(z, x) + trainer.elbo.log_prior(z) - log_q
    expected = (torch.logsumexp(log_weight, 0) - math.log(4)).tolist()
    assert alone[0].log_px == pytest.approx(expected[0], abs=1e-3)
    assert alone[1].log_px == pytest.approx(sum(expected) / 2, abs=1e-3)


def test_an_evaluation_leaves_every_module_in_its_mode() -> None:
    model = Table(nn.BatchNorm1d(16), nn.Tanh())
    trainer = Trainer(model, device="cpu")
    model.encoder[1].eval()
    modes = [module.training for module in model.modules()]
    trainer.evaluate(numbers(), samples=2)
    assert [module.training for module in model.modules()] == modes
    trainer.train(numbers(), epochs=1, batch_size=BATCH, show_progress=False)
    assert [module.training for module in model.modules()] == modes


def test_dropout_draws_from_the_noise_stream() -> None:
    class Reference(nn.Module):
        """Dropout as its definition, with the numbers of the stream."""

        def forward(self, x: Tensor) -> Tensor:
            noise: Any = self.noise
            u = uniform(noise, 1, len(x), x.shape[1], sample_offset=2**31)[0]
            return torch.where(u >= 0.4, x / 0.6, 0.0)

    ours = trained(Table(nn.Dropout(0.4)), numbers())
    model = Table(Reference())
    loss = Elbo(model, StandardNormal())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for step, batch in batches_of(numbers()):
        model.encoder[1].noise = TRAINING.key(0, step)
        optimizer.zero_grad()
        rate, distortion = loss(batch, TRAINING.key(0, step))
        (rate + distortion).mean().backward()
        optimizer.step()
    assert_same_state(ours.elbo, loss)


def test_two_layers_of_dropout_draw_other_numbers() -> None:
    model = Table(nn.Dropout(0.5), nn.Dropout(0.5))
    seen: list[Tensor] = []
    model.encoder[2].register_forward_hook(lambda _, given, found: None)
    from vaez_fast.training.dropout import StreamDropout

    with StreamDropout(TRAINING.key(0, 0), range(BATCH)):
        for layer in (model.encoder[1], model.encoder[2]):
            seen.append(layer(torch.ones(BATCH, 16)) > 0)
    assert 0.3 < float((seen[0] == seen[1]).float().mean()) < 0.7


def test_dropout_of_a_row_does_not_depend_on_the_rank_that_has_it() -> None:
    from vaez_fast.training.dropout import StreamDropout

    def dropped(rows: range) -> Tensor:
        with StreamDropout(TRAINING.key(0, 0), rows):
            return nn.Dropout(0.5)(torch.ones(len(rows), 16))

    whole = dropped(range(BATCH))
    assert torch.equal(dropped(range(4, BATCH)), whole[4:])


@pytest.mark.parametrize("size", [(3,), (3, 3)])
def test_dropout_of_channels_drops_whole_channels(size: tuple[int, ...]) -> None:
    from vaez_fast.training.dropout import StreamDropout

    with StreamDropout(TRAINING.key(0, 0), range(BATCH)):
        dropped = nn.Dropout2d(0.5)(torch.ones(BATCH, 8, *size))
    per_channel = dropped.flatten(2)
    assert bool((per_channel == per_channel[:, :, :1]).all())
    of_rows = per_channel[:, :, 0]
    assert bool((of_rows.min(1).values < of_rows.max(1).values).any())  # not rows as a whole
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_a_model_that_draws_from_pytorchs_generator_is_refused() -> None:
    class Noisy(Table):
        def decode(self, z: Tensor) -> Gaussian:
            return Gaussian(self.decoder(z + torch.randn_like(z)), self.logvar)

    class NoisyBranch(Noisy):
        """Runs in eager PyTorch."""

        def decode(self, z: Tensor) -> Gaussian:
            return super().decode(z if bool(z.sum() > 0) else z + 1.0)

    with pytest.raises(ValueError, match=r"draws from PyTorch's generator .*noise stream"):
        trained(Noisy(nn.Tanh()), numbers())
    with (
        pytest.warns(RuntimeWarning, match="runs in eager"),
        pytest.raises(ValueError, match=r"draws from PyTorch's generator .*noise stream"),
    ):
        trained(NoisyBranch(nn.Tanh()), numbers())


# What is trained.


def test_a_frozen_parameter_stays() -> None:
    model: Any = Table(nn.Tanh())
    model.logvar.requires_grad_(False)
    before = model.decoder[0].weight.clone()
    trained(model, numbers())
    assert torch.equal(model.logvar, torch.zeros(12))
    assert not torch.equal(model.decoder[0].weight, before)


def test_a_parameter_that_the_loss_does_not_read_stays() -> None:
    model = Table(nn.Tanh())
    model.unused = nn.Parameter(torch.ones(3))
    decays = functools.partial(torch.optim.AdamW, weight_decay=1.0)
    trained(model, numbers(), optimizer=decays, lr=1e-2, clip=1.0)
    assert torch.equal(model.unused, torch.ones(3))


def test_models_of_one_class_are_each_trained_by_their_own_code() -> None:
    found = [trained(Table(act), numbers()) for act in (nn.Tanh(), nn.ReLU(), nn.ELU(2.0))]
    for ours, act in zip(found, (nn.Tanh(), nn.ReLU(), nn.ELU(2.0)), strict=True):
        assert_same_state(ours.elbo, by_hand(Table(act), numbers()))


def test_code_that_depends_on_values_runs_in_eager_pytorch_and_says_so() -> None:
    class Branches(Table):
        def decode(self, z: Tensor) -> Gaussian:
            mean = self.decoder(z)
            return Gaussian(mean if bool(mean.sum() > 0) else 2.0 * mean, self.logvar)

    with pytest.warns(RuntimeWarning, match="cannot become one graph, so it runs in eager"):
        ours = trained(Branches(nn.Tanh()), numbers())
    assert_same_state(ours.elbo, by_hand(Branches(nn.Tanh()), numbers()))


def test_bfloat16_products_of_pytorchs_layers_are_near_float32() -> None:
    sgd: Any = {"optimizer": torch.optim.SGD, "lr": 1e-2}
    ours = trained(Pictures(), pictures(), precision="bfloat16", **sgd)
    exact = trained(Pictures(), pictures(), **sgd)
    start = dict(Pictures().named_parameters())
    for (name, p), q in zip(own(ours).named_parameters(), own(exact).parameters(), strict=True):
        assert p.dtype == torch.float32
        moved, wanted = (p - start[name]).detach(), (q - start[name]).detach()
        assert not torch.equal(moved, wanted)
        # bfloat16 has 8 bits, and a gradient sums products of a few layers.
        assert float((moved - wanted).norm()) < 0.05 * float(wanted.norm()), name


def test_in_bfloat16_only_layers_compute_in_it() -> None:
    # A sum of 252 log variances near −3 in bfloat16 would err by up to 2 nats.
    class Wide(Table):
        def encode(self, x: Tensor) -> Gaussian:
            mu = self.encoder(x).repeat(1, 42)
            return Gaussian(mu, 0.1 * mu - 3.0)

        def decode(self, z: Tensor) -> Gaussian:
            return Gaussian(self.decoder(z[:, :3]), self.logvar)

    class Flat(nn.Module):
        def log_prob(self, z: Tensor) -> Tensor:
            return torch.zeros_like(z[..., 0])

    loss = Elbo(Wide(nn.Tanh()), Flat())
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            posterior = loss.encode(numbers())
            ours = loss(numbers(), TRAINING.key(0, 0))[0]
        exact_of_it = Gaussian(posterior.mean.double(), posterior.logvar.double())
        _, log_q = loss.draw(exact_of_it, TRAINING.key(0, 0), 1)
    assert ours.dtype == torch.float32
    # The encoder's own rounding is in both; float32 sums of 252 terms err by some 1e-5.
    torch.testing.assert_close(ours.double(), log_q[0], rtol=0, atol=1e-3)


# Schedules and averages.


def test_the_weight_of_the_rate_rises_with_the_step() -> None:
    ours = trained(Table(nn.Tanh()), numbers(), beta=warmup(8), optimizer=torch.optim.SGD)
    model = Table(nn.Tanh())
    loss = Elbo(model, StandardNormal())
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    for step, batch in batches_of(numbers()):
        optimizer.zero_grad()
        rate, distortion = loss(batch, TRAINING.key(0, step))
        (step / 8 * rate + distortion).mean().backward()
        optimizer.step()
    assert_same_state(ours.elbo, loss)


def test_the_learning_rate_follows_its_schedule() -> None:
    still = trained(Table(nn.Tanh()), numbers(), lr=lambda steps: torch.zeros(steps))
    assert torch.equal(own(still).logvar, torch.zeros(12))
    moved = trained(Table(nn.Tanh()), numbers(), lr=cosine(1e-3))
    assert not torch.equal(own(moved).logvar, torch.zeros(12))


def test_the_model_gets_the_average_of_the_weights() -> None:
    sgd = torch.optim.SGD
    seen = [Table(nn.Tanh()).logvar.detach().clone()]
    model = Table(nn.Tanh())
    loss = Elbo(model, StandardNormal())
    optimizer = sgd(loss.parameters(), lr=1e-3)
    mean = seen[0].clone()
    for step, batch in batches_of(numbers()):
        optimizer.zero_grad()
        rate, distortion = loss(batch, TRAINING.key(0, step))
        (rate + distortion).mean().backward()
        optimizer.step()
        decay = min(0.3, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * model.logvar.detach()
    ours = trained(Table(nn.Tanh()), numbers(), optimizer=sgd, average=0.3)
    torch.testing.assert_close(own(ours).logvar.detach(), mean, rtol=1e-5, atol=1e-6)


def test_free_bits_stop_the_gradient_of_a_cheap_latent() -> None:
    # A huge allowance: every latent costs λ, so the rate has no gradient.
    ours = trained(Table(nn.Tanh()), numbers(), free_bits=50.0)
    curve = trained(Table(nn.Tanh()), numbers(), free_bits=50.0).train(
        numbers(), epochs=1, batch_size=BATCH, show_progress=False
    )
    assert curve[0]["rate"] == pytest.approx(150.0)
    theirs = by_hand(Table(nn.Tanh()), numbers(), free_bits=50.0)
    assert_same_state(ours.elbo, theirs)


# Numbers.


def test_the_curve_holds_the_means_over_an_epoch() -> None:
    trainer = Trainer(Table(nn.Tanh()), lr=lambda steps: torch.zeros(steps), device="cpu")
    curve = trainer.train(numbers(), epochs=1, batch_size=BATCH, show_progress=False)
    loss = Elbo(Table(nn.Tanh()), StandardNormal())
    with torch.no_grad():
        parts = [loss(batch, TRAINING.key(0, step)) for step, batch in batches_of(numbers())]
    assert curve[0]["rate"] == pytest.approx(float(torch.cat([p[0] for p in parts]).mean()), 1e-5)
    distortion = float(torch.cat([p[1] for p in parts]).mean())
    assert curve[0]["distortion"] == pytest.approx(distortion, 1e-5)
    assert curve[0]["elbo"] == -(curve[0]["rate"] + curve[0]["distortion"])
    assert curve[0]["step"] == ROWS // BATCH


def test_log_px_approaches_the_exact_evidence_of_a_linear_model() -> None:
    class Linear(nn.Module):
        """x = W z + noise: log p(x) is a Gaussian's."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.weight = nn.Parameter(0.5 * torch.randn(4, 2))

        def encode(self, x: Tensor) -> Gaussian:
            return Gaussian(0.1 * x[:, :2], torch.zeros(len(x), 2))

        def decode(self, z: Tensor) -> Gaussian:
            return Gaussian(z @ self.weight.T, 0.0)

    model = Linear()
    x = numbers()[:5, :4]
    found = Trainer(model, device="cpu").evaluate(x, samples=20_000)
    covariance = (model.weight @ model.weight.T + torch.eye(4)).detach()
    exact = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(x).mean()
    assert found.log_px == pytest.approx(float(exact), abs=0.05)
    assert found.elbo < found.log_px
    assert found.elbo == pytest.approx(-found.rate - found.distortion)
    assert found.bits_per_dimension == pytest.approx(-found.log_px / (4 * math.log(2)))


def test_an_evaluation_does_not_depend_on_how_rows_are_grouped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trained(Cells(), counts())
    whole = trainer.evaluate(counts(), samples=20)
    monkeypatch.setattr("vaez_fast.trainer.evaluation.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("vaez_fast.trainer.evaluation.SAMPLES_AT_ONCE", 3)
    parts = trainer.evaluate(counts(), samples=20)
    assert parts.log_px == pytest.approx(whole.log_px, abs=1e-5)
    assert parts.elbo == pytest.approx(whole.elbo, abs=1e-5)


# Stop and go on.


class Interrupted(Exception):
    pass


def run_until(out: Path, make: Callable[[], Any], stop: int | None) -> Trainer:
    """Train in `out`; with `stop`, end by an exception at the end of that epoch."""

    def log(step: int, numbers: Any) -> None:
        if stop is not None and step == stop * ROWS // BATCH:
            raise Interrupted

    trainer: Trainer = make()
    trainer.log = log
    data = counts() if isinstance(trainer.model, Cells) else numbers()
    settings: Any = {"held_out": data, "patience": 2, "show_progress": False}
    trainer.train(data, epochs=4, batch_size=BATCH, out=out, **settings)
    return trainer


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam])
def test_a_run_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(
    tmp_path: Path, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Trainer:
        return Trainer(
            Cells(),
            optimizer=optimizer,
            lr=cosine(1e-2),
            beta=warmup(6),
            average=0.8,
            clip=1.0,
            precision="float32",
            device="cpu",
        )

    # A state is kept after each step but the last of an epoch, so the run resumes within one.
    monkeypatch.setattr("vaez_fast.trainer.trainer.KEEP_SECONDS", 0.0)
    monkeypatch.setattr("vaez_fast.trainer.trainer.AT_ONCE", 1)
    whole = run_until(tmp_path / "whole", make, None)
    with pytest.raises(Interrupted):
        run_until(tmp_path / "parts", make, 3)
    resumed = run_until(tmp_path / "parts", make, None)
    for name, tensor in whole.elbo.state_dict().items():
        assert torch.equal(resumed.elbo.state_dict()[name], tensor), name


def test_a_folder_of_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    trained(Table(nn.Tanh()), numbers())
    trainer = Trainer(Table(nn.Tanh()), device="cpu")
    trainer.train(numbers(), epochs=1, batch_size=BATCH, out=tmp_path, show_progress=False)
    with pytest.raises(
        OutputError, match=r"of a run with another epochs, another lr, another beta;"
    ):
        trainer.train(numbers(), epochs=2, batch_size=BATCH, out=tmp_path, show_progress=False)
    other = numbers().clone()
    other[0, 0] += 1
    with pytest.raises(OutputError, match="of a run with another data"):
        trainer.train(other, epochs=1, batch_size=BATCH, out=tmp_path, show_progress=False)


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    trainer = Trainer(
        Table(nn.Tanh()), lr=lambda steps: torch.linspace(1e-2, 3.0, steps), device="cpu"
    )
    curve = trainer.train(
        numbers(),
        epochs=30,
        batch_size=BATCH,
        held_out=numbers()[:20],
        patience=2,
        show_progress=False,
    )
    bounds = [point["held_out_elbo"] for point in curve]
    best = bounds.index(max(bounds))
    assert len(curve) == best + 3 < 30
    again = trainer._evaluate(numbers()[:20], 1, "validation").elbo
    assert again == pytest.approx(max(bounds), abs=1e-4)


# Loaders.


def test_a_loader_gives_the_batches() -> None:
    batches = [batch for _, batch in batches_of(numbers())]
    given = [batch.clone() for batch in batches]
    trainer = Trainer(Table(nn.Tanh()), precision="float32", device="cpu")
    trainer.train(batches, epochs=1, show_progress=False)
    assert_same_state(trainer.elbo, by_hand(Table(nn.Tanh()), numbers()))
    still = Trainer(Table(nn.Tanh()), lr=0.0, kl="analytic", device="cpu")
    first, second = still.train(batches, epochs=2, show_progress=False)
    # The same rows twice; only the distortion depends on the noise.
    assert first["rate"] == pytest.approx(second["rate"], rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(batches, given, strict=True))


def test_a_loader_whose_batches_change_shape_is_refused() -> None:
    trainer = Trainer(Table(nn.Tanh()), device="cpu")
    with pytest.raises(ValueError, match=r"shapes of the first.*drop_last"):
        trainer.train([numbers()[:8], numbers()[:7]], epochs=1, show_progress=False)


# Bad input, one clear line each.


def test_wrong_arguments_are_named() -> None:
    x = numbers()
    cases: list[tuple[str, type[Exception], Callable[[], Any]]] = [
        ("model must have a method encode", ConfigError, lambda: Trainer(nn.Linear(2, 2))),
        ("kl must be one of", ConfigError, lambda: Trainer(Table(), kl="exact")),
        (
            "prior must have a method log_prob",
            ConfigError,
            lambda: Trainer(Table(), prior=nn.ReLU()),
        ),
        ("batch_size must be at most 64", ConfigError, lambda: fit(x, batch_size=65)),
        ("batch_size must be given", ConfigError, lambda: fit(x)),
        ("optimizer must be", TypeError, lambda: Trainer(Table(), optimizer=no_optimizer)),
        ("LBFGS cannot", ValueError, lambda: Trainer(Table(), optimizer=torch.optim.LBFGS)),
        ("lr must give", ValueError, lambda: fit(x, batch_size=8, lr=-1.0)),
        ("leave out lr", ValueError, lambda: Trainer(Table(), optimizer=with_rate)),
        ("epochs must", ValueError, lambda: Trainer(Table()).train(x, epochs=0, batch_size=8)),
        ("samples must", ValueError, lambda: Trainer(Table()).evaluate(x, samples=0)),
        ("batch_size must", ValueError, lambda: fit(x, batch_size=0)),
        ("num_samples must", ValueError, lambda: Trainer(Table(), num_samples=0)),
        ("clip must be a number, above 0", ConfigError, lambda: Trainer(Table(), clip=0.0)),
        ("average must be", ConfigError, lambda: Trainer(Table(), average=1.5)),
        ("free_bits must be", ConfigError, lambda: Trainer(Table(), free_bits=-1.0)),
        ("data must be a tensor", TypeError, lambda: Trainer(Table()).train(3, epochs=1)),  # type: ignore[arg-type]
        ("target must be given", ConfigError, lambda: Trainer(Cells()).evaluate(counts())),
        ("patience needs held_out", ConfigError, lambda: fit(x, batch_size=8, patience=2)),
        ("data must be a tensor", TypeError, lambda: Trainer(Table()).evaluate(3)),  # type: ignore[arg-type]
        (
            "target must name an entry",
            ConfigError,
            lambda: fit(counts(), model=Cells(), target="y", batch_size=8),
        ),
        ("must return a likelihood", TypeError, lambda: fit(x, batch_size=8, model=Plain())),
        ("must return a posterior", TypeError, lambda: fit(x, batch_size=8, model=Pair())),
        (
            "kl 'analytic' exists for",
            ConfigError,
            lambda: fit(x, batch_size=8, kl="analytic", prior=MixturePrior(3)),
        ),
        ("free_bits needs", ConfigError, lambda: fit(x, batch_size=8, free_bits=1.0, kl=KLS[1])),
    ]
    for message, kind, wrong in cases:
        with pytest.raises(kind, match=message):
            wrong()


KLS = ("analytic", "total-derivative")


with_rate = functools.partial(torch.optim.Adam, lr=0.5)


def no_optimizer(parameters: Any, lr: float) -> Any:
    return 3


class Plain(Table):
    def decode(self, z: Tensor) -> Any:
        return self.decoder(z)


class Pair(Table):
    def encode(self, x: Any) -> Any:
        return self.encoder(x).chunk(2, -1)


def fit(data: Any, model: nn.Module | None = None, **settings: Any) -> None:
    named = {n: settings.pop(n) for n in ("batch_size", "patience") if n in settings}
    Trainer(model or Table(nn.Tanh()), device="cpu", **settings).train(
        data, epochs=1, show_progress=False, **named
    )


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step() -> None:
    from vaez_fast.training.state import TrainingError

    with pytest.raises(TrainingError, match=r"not finite at step [2-4] "):
        fit(numbers(), batch_size=BATCH, optimizer=torch.optim.SGD, lr=1e25)


def test_several_samples_share_the_batch() -> None:
    # decode gets the rows of all samples, and each entry repeated for them.
    model = Cells()
    loss = Elbo(model.eval(), StandardNormal(), num_samples=3)
    batch = counts()
    z = normal(noise_key(0, "train"), 3, ROWS, 3)
    together = loss.log_likelihood(z, batch)
    apart = torch.stack([model.decode(of_one, batch).log_prob(batch["counts"]) for of_one in z])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)


def test_attention_without_dropout_is_trained_and_with_it_refused() -> None:
    class Attends(Table):
        def __init__(self, dropout: float) -> None:
            super().__init__(nn.Tanh())
            self.dropout = dropout

        def encode(self, x: Tensor) -> Gaussian:
            rows = x.view(len(x), 1, 3, 4)
            dropped = self.dropout
            mixed = nn.functional.scaled_dot_product_attention(rows, rows, rows, dropout_p=dropped)
            return Gaussian(*self.encoder(mixed.flatten(1)).chunk(2, -1))

    ours = trained(Attends(0.0), numbers())
    assert_same_state(ours.elbo, by_hand(Attends(0.0), numbers()))
    with pytest.raises(ValueError, match="draws from PyTorch's generator"):
        trained(Attends(0.5), numbers())
