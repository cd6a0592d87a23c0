"""Which models an engine trains by their own graph, which share a graph, which it refuses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaez_fast.model import VAE
from vaez_fast.objective import Distortion, ImportanceWeightedBound, NegativeElbo, Objective, Rate
from vaez_fast.training import engine as engines
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.graph import compile_graph
from vaez_fast.training.optimizer import Adam, CenteredRMSprop, Optimizer, constant
from vaez_kernels import noise_key

BATCH, STEPS, SEED = 8, 3, 5
HIDDEN = 200  # of "burda", whose encoder[1] is an activation


@pytest.fixture(autouse=True)
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each graph that would be compiled; graphs run uncompiled here."""
    count: list[None] = []

    def run_as_it_is(graph: Any, *_: Any, **__: Any) -> Any:
        count.append(None)
        return graph

    monkeypatch.setattr(engines, "compiled_graphs", {})
    monkeypatch.setattr(engines, "compile_graph", run_as_it_is)
    return count


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(STEPS * BATCH, 784, generator=generator) < 0.2).to(torch.uint8)


def make(
    edit: Callable[[VAE], Any] = lambda vae: None,
    *,
    objective: Callable[[VAE], Objective] = lambda vae: NegativeElbo(vae, "analytic"),
    model: str = "burda",
    optimizer: Optimizer | None = None,
    batch: int = BATCH,
    seed: int = SEED,
    precision: torch.dtype = torch.float32,
    pixel_scale: float = 1.0,
    steps: int = STEPS,
    pixels: Tensor | None = None,
) -> Engine:
    vae = VAE(model, seed)
    edit(vae)
    return Engine(
        objective(vae),
        Batches(images() if pixels is None else pixels, batch),
        optimizer or Adam(),
        constant(1e-3, steps),
        seed=seed,
        precision=precision,
        pixel_scale=pixel_scale,
    )


def with_layer(layer: nn.Module, at: int = 1) -> Callable[[VAE], None]:
    def edit(vae: VAE) -> None:
        vae.encoder[at] = layer

    return edit


def first_loss(engine: Engine) -> float:
    engine.step()
    return sum(engine.take_totals(1))


def own_loss(edit: Callable[[VAE], Any]) -> float:
    """The loss of the first batch by the model's own code, without an engine."""
    vae = VAE("burda", SEED)
    edit(vae)
    with torch.no_grad():
        x = images()[:BATCH].float()
        rate, distortion = NegativeElbo(vae, "analytic")(x, noise_key(SEED, "train"))
    return float((rate + distortion).mean())


class Shifted(nn.Module):
    """An activation with a tensor that is neither a parameter nor a buffer."""

    def __init__(self, by: float, size: int = HIDDEN) -> None:
        super().__init__()
        self.by = torch.full((size,), by)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + self.by)


class Scaled(nn.Module):
    """An activation that reads the first of its two tensors again after the second."""

    def __init__(self, by: float, plus: float) -> None:
        super().__init__()
        self.by, self.plus = torch.full((HIDDEN,), by), torch.full((HIDDEN,), plus)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.by + self.plus) * self.by


class Literal(nn.Module):
    """An activation that makes a tensor of a number in its code."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + torch.tensor(self.by))


def two_sigmoids(vae: VAE) -> None:
    vae.encoder[1], vae.encoder[3] = nn.Sigmoid(), nn.Sigmoid()


# Models with the same names, class of VAE, parameters and sizes.
ALIKE: dict[str, Callable[[VAE], Any]] = {
    "plain": lambda vae: None,
    "sigmoid": two_sigmoids,
    "leaky 0.01": lambda vae: with_layer(nn.LeakyReLU(0.01))(vae),
    "leaky 0.4": lambda vae: with_layer(nn.LeakyReLU(0.4))(vae),
    "elu 1": lambda vae: with_layer(nn.ELU(1.0))(vae),
    "elu 2": lambda vae: with_layer(nn.ELU(2.0))(vae),
    "shifted by 1": lambda vae: with_layer(Shifted(1.0))(vae),
    "shifted by -1": lambda vae: with_layer(Shifted(-1.0))(vae),
    "shifted alike": lambda vae: with_layer(Shifted(1.0, 1))(vae),
    "scaled": lambda vae: with_layer(Scaled(2.0, 0.7))(vae),
    "literal 0.5": lambda vae: with_layer(Literal(0.5))(vae),
    "literal -2": lambda vae: with_layer(Literal(-2.0))(vae),
}


def test_models_that_look_alike_are_each_trained_by_their_own_code() -> None:
    # All in one process, so that the graph of one model could be used for another.
    losses = {name: (first_loss(make(edit)), own_loss(edit)) for name, edit in ALIKE.items()}
    for name, (ours, own) in losses.items():
        # float32 rounds 540 nats to 3e-5, and the sum over 784 pixels rounds a few times.
        assert abs(ours - own) < 1e-3, (name, ours, own)
    # All but one pair differ by more than that, so a wrong graph would show.
    distinct = sorted(own for name, (_, own) in losses.items() if name != "shifted alike")
    assert min(b - a for a, b in pairwise(distinct)) > 5e-3


def test_the_same_arm_is_compiled_once_whatever_its_seed(compilations: list[None]) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"precision": torch.bfloat16},
        {"objective": lambda vae: ImportanceWeightedBound(vae, "total-derivative", 2)},
        {"objective": lambda vae: Distortion(vae, "encoder")},
        {"edit": with_layer(Shifted(1.0))},
        {"edit": with_layer(nn.Dropout(0.25))},
    ]
    for number, kind in enumerate(kinds):
        first, second = make(**kind), make(**kind, seed=SEED + 1)
        assert len(compilations) == number + 1, kind
        assert first_loss(first) != first_loss(second)


def test_whatever_a_step_depends_on_makes_it_another_graph(compilations: list[None]) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"edit": with_layer(nn.Dropout(0.25))},
        {"edit": with_layer(nn.Dropout(0.75))},
        {"optimizer": Adam(beta1=0.8)},
        {"optimizer": Adam(epsilon=1e-7)},
        {"optimizer": CenteredRMSprop()},
        {"batch": BATCH // 2},
        {"pixel_scale": 0.5},
        {"steps": STEPS + 1},
        {"pixels": images().t().contiguous().t()},
        {"precision": torch.bfloat16},
        {"model": "lyeoni"},
        {"objective": lambda vae: NegativeElbo(vae, "total-derivative")},
        {"objective": lambda vae: NegativeElbo(vae, "analytic", num_samples=2)},
        {"objective": lambda vae: Rate(vae, "analytic")},
        {"objective": lambda vae: Rate(vae, "as-published")},
        {"objective": lambda vae: Distortion(vae, "randn")},
    ]
    for number, kind in enumerate(kinds):
        make(**kind)
        assert len(compilations) == number + 1, kind


def test_the_weight_of_the_rate_and_the_learning_rates_make_no_other_graph(
    compilations: list[None],
) -> None:
    make()
    make(objective=lambda vae: NegativeElbo(vae, "analytic", beta=2.0))
    assert len(compilations) == 1


def test_a_tensor_that_a_model_holds_is_read_at_each_step() -> None:
    def losses(changed: bool) -> list[float]:
        layer = Shifted(0.0)
        engine = make(with_layer(layer))
        first = first_loss(engine)
        if changed:
            layer.by.fill_(3.0)
        return [first, first_loss(engine)]

    same, other = losses(False), losses(True)
    assert same[0] == other[0]
    assert abs(same[1] - other[1]) > 0.1


def test_compiled_too_the_tensors_are_those_of_the_engine_that_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "compile_graph", compile_graph)
    for by in (1.0, -1.0):
        edit = with_layer(nn.Sequential(Shifted(by), Literal(0.5)))
        assert abs(first_loss(make(edit)) - own_loss(edit)) < 1e-3
    assert len(engines.compiled_graphs) == 1


# Refusals.


class Keeps(nn.Module):
    """An activation that keeps something from call to call, in one of several ways."""

    buffer: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.buffer: Tensor
        self.register_buffer("buffer", torch.zeros(HIDDEN))
        self.tensor = torch.zeros(HIDDEN)
        self.listed = [torch.zeros(HIDDEN)]
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "a buffer in place":
                self.buffer.add_(1)
            case "a buffer that is found equal":
                self.buffer.mul_(1)
            case "a new buffer":
                self.buffer = 0.9 * self.buffer + x.mean(0).detach()
            case "a tensor in place":
                self.tensor.add_(1)
            case "a tensor in a list":
                self.listed[0].add_(1)
            case "a listed tensor that is found equal":
                self.listed[0].mul_(1)
            case "a number":
                self.count += 1
            case "a new attribute":
                self.last = x
        return torch.tanh(x + self.buffer + self.tensor + self.listed[0])


KEPT = {
    "a tensor in place": r"vae\.encoder\.1\.tensor",
    "a tensor in a list": r"a tensor of shape \(200,\)",
    "a listed tensor that is found equal": r"a tensor of shape \(200,\)",
    "a number": r"vae\.encoder\.1\.count",
    "a new attribute": r"vae\.encoder\.1\.last",
}
BUFFERS = ("a buffer in place", "a buffer that is found equal", "a new buffer")


def held_by(layer: nn.Module) -> dict[str, Any]:
    plain = {n: v for n, v in vars(layer).items() if n in ("tensor", "count", "last")}
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in (plain | layer.state_dict()).items()
    }


@pytest.mark.parametrize("how", KEPT)
def test_a_model_that_remembers_is_refused_and_left_as_it_was(
    how: str, compilations: list[None]
) -> None:
    layer = Keeps(how)
    before = held_by(layer)
    with pytest.raises(ValueError, match=f"Engine (trains|keeps) .*{KEPT[how]}"):
        make(with_layer(layer))
    assert held_by(layer) == before
    assert not compilations


def test_a_model_that_remembers_nothing_is_trained() -> None:
    layer = Keeps("nothing")
    layer.buffer.fill_(0.5)
    ours = first_loss(make(with_layer(layer)))
    assert abs(ours - own_loss(with_layer(layer))) < 1e-3


@pytest.mark.parametrize("how", BUFFERS)
def test_a_step_advances_a_buffer_as_the_models_own_code_does(how: str) -> None:
    layer, twin = Keeps(how), Keeps(how)
    engine = make(with_layer(layer))
    losses = [first_loss(engine), first_loss(engine)]
    vae = VAE("burda", SEED)
    with_layer(twin)(vae)
    expected = []
    for step in range(2):
        key = noise_key(SEED, "train", step)
        with torch.no_grad():
            x = images()[step * BATCH : (step + 1) * BATCH].float()
            rate, distortion = NegativeElbo(vae, "analytic")(x, key)
            expected.append(float((rate + distortion).mean()))
        if step == 0:  # the second loss is of weights that moved once
            first = twin.buffer.clone()
    assert abs(losses[0] - expected[0]) < 1e-3
    written: Any = VAE("burda", SEED)
    with_layer(Keeps("nothing"))(written)
    engine.write_to(written)
    if how == "a new buffer":
        assert not torch.equal(written.encoder[1].buffer, torch.zeros(HIDDEN))
    else:
        torch.testing.assert_close(written.encoder[1].buffer, twin.buffer)
    assert torch.equal(layer.buffer, torch.zeros(HIDDEN))  # the given model stays as it was
    assert how != "a buffer in place" or torch.equal(first, torch.ones(HIDDEN))


def test_buffers_of_a_checkpoint_go_on(compilations: list[None]) -> None:
    first = make(with_layer(Keeps("a buffer in place")))
    first_loss(first)
    saved = first.state_dict()
    second = make(with_layer(Keeps("a buffer in place")))
    second.load_state_dict(saved, 1)
    assert float(second.named_tensors()["vae.encoder.1.buffer"][0]) == 1.0
    assert first_loss(first) == first_loss(second)


NORMS = {
    "batch normalisation": lambda vae: with_layer(nn.BatchNorm1d(HIDDEN))(vae),
    "without a counter": lambda vae: with_layer(_uncounted(nn.BatchNorm1d(HIDDEN)))(vae),
    "spectral normalisation": lambda vae: nn.utils.parametrizations.spectral_norm(vae.encoder[0]),
}


def _uncounted(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    norm.num_batches_tracked = None
    return norm


@pytest.mark.parametrize("name", NORMS)
def test_statistics_of_a_normalisation_move_with_the_steps_and_not_with_compiling(
    name: str,
) -> None:
    def vae() -> VAE:
        made = VAE("burda", SEED)
        torch.manual_seed(0)  # spectral normalisation starts with random vectors
        NORMS[name](made)
        return made

    given, own = vae(), vae()
    before = {n: b.clone() for n, b in given.named_buffers()}
    assert before
    engine = make(lambda made: made.__dict__.update(given.__dict__))
    for buffer_name, buffer in given.named_buffers():
        assert torch.equal(buffer, before[buffer_name]), buffer_name
    assert abs(first_loss(engine) - _loss_of(own)) < 1e-3
    for buffer_name, buffer in own.named_buffers():
        ours = engine.named_tensors()[f"vae.{buffer_name}"]
        torch.testing.assert_close(ours, buffer, rtol=1e-5, atol=1e-6)


def test_running_statistics_that_no_checkpoint_holds_are_refused(
    compilations: list[None],
) -> None:
    def edit(vae: VAE) -> None:
        norm = nn.BatchNorm1d(HIDDEN)
        norm.num_batches_tracked = None
        for name, buffer in list(norm.named_buffers()):
            norm.register_buffer(name, buffer, persistent=False)
        with_layer(norm)(vae)

    with pytest.raises(ValueError, match=r"Engine keeps .*vae\.encoder\.1\.running_mean"):
        make(edit)
    assert not compilations


def _loss_of(vae: VAE) -> float:
    x = images()[:BATCH].float()
    rate, distortion = NegativeElbo(vae, "analytic")(x, noise_key(SEED, "train"))
    return float((rate + distortion).mean().detach())


def test_batch_normalisation_that_stands_still_is_trained() -> None:
    def edit(vae: VAE) -> None:
        norm = nn.BatchNorm1d(HIDDEN)
        norm.running_mean = torch.full((HIDDEN,), 0.3)
        with_layer(norm.eval())(vae)

    assert abs(first_loss(make(edit)) - own_loss(edit)) < 1e-3


def test_a_parameter_outside_the_usual_parts_is_trained() -> None:
    class Shifts(VAE):
        def decode(self, z: Tensor) -> Tensor:
            return self.decoder(z) + self.extra

    vae = Shifts("burda", SEED)
    vae.extra = nn.Parameter(torch.zeros(784))
    engine = Engine(
        NegativeElbo(vae, "analytic"),
        Batches(images(), BATCH),
        Adam(),
        constant(1e-3, STEPS),
        seed=SEED,
        precision=torch.float32,
        pixel_scale=1.0,
    )
    engine.step()
    engine.write_to(vae)
    assert float(vae.extra.detach().abs().min()) > 0


def test_a_frozen_parameter_is_not_trained() -> None:
    engine = make(lambda vae: vae.encoder[0].bias.requires_grad_(False))
    assert "vae.encoder.0.bias" not in engine.names
    first_loss(engine)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="none that is not frozen"):
        make(lambda vae: vae.requires_grad_(False))


def test_weights_in_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vae\.encoder\.0\.weight is torch\.bfloat16"):
        make(lambda vae: vae.bfloat16())


def test_bfloat16_works_with_layers_that_do_not_convert_what_they_get() -> None:
    plain = with_layer(nn.Linear(784, HIDDEN), at=0)
    exact = first_loss(make(plain))
    ours = first_loss(make(plain, precision=torch.bfloat16))
    # bfloat16 has 8 bits: 540 nats of 784 pixels whose logits differ by some 1e-3 of themselves.
    assert 0 < abs(ours - exact) < 5.0
    first_loss(make(with_layer(nn.PReLU()), precision=torch.bfloat16))


class Halved(VAE):
    """A model whose logits are not the output of its decoder's last layer."""

    def decode(self, z: Tensor) -> Tensor:
        return 0.5 * self.decoder(z)


def test_a_decoder_of_ones_own_is_followed_however_large_the_logits_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, key = images()[:2].float(), noise_key(SEED, "train")

    def bound(make_vae: Callable[[], VAE]) -> Tensor:
        rate, distortion = ImportanceWeightedBound(make_vae(), "total-derivative", 3)(x, key)
        return (rate + distortion).detach()

    def unlike() -> VAE:
        vae = VAE("burda", SEED)
        vae.decoder.append(nn.Hardtanh(-0.01, 0.01))
        return vae

    for make_vae in (lambda: Halved("burda", SEED), unlike, lambda: VAE("burda", SEED)):
        small = bound(make_vae)
        with monkeypatch.context() as patch:
            patch.setattr("vaez_fast.objective.LARGE", 0)
            # Sums over 784 pixels in another order, 540 nats in total.
            torch.testing.assert_close(bound(make_vae), small, rtol=0, atol=2e-3)
