"""Importance-sampled log p(x) on the CPU against float64; decoders.py derives the bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import vaez_fast.model
from bench.timing.clock import peak_memory
from tests.kernels.helpers import assert_within
from tests.kernels.importance.decoders import Given, given, perceptron, truth
from vaez_fast.model import VAE
from vaez_kernels import (
    importance,
    importance_estimates,
    importance_log_likelihood,
    noise_key,
    rsample,
)
from vaez_kernels.backend import has_fast_bfloat16
from vaez_kernels.compiler import has_cpu_compiler
from vaez_kernels.importance.kernel import tile_for
from vaez_kernels.importance.perceptron import taken_apart

KEY = noise_key(3, "evaluate", 2)
CPU = torch.device("cpu")
WIDTHS = (5, 19, 23, 84)


@pytest.fixture(autouse=True)
def any_size_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance.twin, "COMPILE_FROM", 1)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance.twin, "has_cpu_compiler", lambda: False)


def called(decoder: nn.Module) -> Any:
    """The decoder as a function that cannot be taken apart."""
    return lambda z: decoder(z)


def check(of: Given, samples: int, precision: str = "float32", decoder: Any = None) -> None:
    args = (decoder or of.decoder, of.mu, of.logvar, of.x, KEY, samples, precision)
    estimates = importance_estimates(*args, row_offset=7, sample_offset=3)
    want = truth(of, KEY, samples, precision, row_offset=7, sample_offset=3)
    assert_within("log_likelihood", estimates.log_likelihood, want.log_likelihood, want.bound)
    assert_within("log_prob", estimates.log_prob, want.log_prob, want.bound)


@pytest.mark.parametrize("widths", [(1, 3, 1), (5, 84), WIDTHS, (16, 20, 20, 20, 33)])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(("images", "samples"), [(1, 1), (3, 40), (70, 3)])
@pytest.mark.usefixtures("eager")
def test_a_perceptron_is_the_references(
    widths: tuple[int, ...], activation: type[nn.Module], images: int, samples: int
) -> None:
    of = given(images, *widths, activation=activation)
    assert (taken_apart(of.decoder) is None) == (len(widths) == 2)  # one layer has no activation
    check(of, samples)
    check(of, samples, "bfloat16")
    check(of, samples, decoder=called(of.decoder))


def test_few_logits_are_not_worth_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance.twin, "COMPILE_FROM", 9 * 5 * 84 + 1)
    importance.twin.compiled_tile.kept.clear()
    check(given(5, *WIDTHS), 9)
    assert len(importance.twin.compiled_tile.kept) == 0


@pytest.mark.skipif(not has_cpu_compiler(), reason="no C++ compiler here")
def test_a_compiled_tile_takes_float32_whatever_the_default_is() -> None:
    importance.twin.compiled_tile.kept.clear()
    of = given(5, 4, 7, 85)
    torch.set_default_dtype(torch.float64)
    try:
        found = importance_log_likelihood(*of, KEY, 9, "float32")
    finally:
        torch.set_default_dtype(torch.float32)
    want = truth(of, KEY, 9)
    assert_within("log_likelihood", found, want.log_likelihood, want.bound)


@pytest.mark.skipif(not has_cpu_compiler(), reason="no C++ compiler here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_compiled_tile_serves_any_number_of_samples_and_images(precision: str) -> None:
    importance.twin.compiled_tile.kept.clear()
    # One image, one sample; tiles of one image and of many; partial tiles of both.
    for images, samples in ((3, 40), (1, 1), (1, 2100), (1100, 1), (41, 23), (23, 41), (70, 65)):
        check(given(images, *WIDTHS), samples, precision)
    assert len(importance.twin.compiled_tile.kept) == 1


@pytest.mark.parametrize("targets", [torch.uint8, torch.bool, torch.float32, torch.float16])
@pytest.mark.usefixtures("eager")
def test_every_kind_of_target_is_the_references(targets: torch.dtype) -> None:
    of = given(5, *WIDTHS, targets=targets)
    check(of, 9)
    check(of, 9, decoder=called(of.decoder))


@pytest.mark.parametrize("decode", [lambda decoder: decoder, called])
@pytest.mark.usefixtures("eager")
def test_the_first_samples_of_many_are_the_few(decode: Any) -> None:
    of = given(5, *WIDTHS)
    decoder = decode(of.decoder)

    def estimate(count: int, first: int) -> Tensor:
        args = (decoder, of.mu, of.logvar, of.x, KEY, count, "float32")
        return importance_log_likelihood(*args, sample_offset=first).double() + math.log(count)

    parts = torch.logaddexp(estimate(64, 0), estimate(100, 64))
    # Sums of a few dozen nats, with a relative error of 1e-6.
    torch.testing.assert_close(estimate(164, 0), parts, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decode", [lambda decoder: decoder, called])
@pytest.mark.usefixtures("eager")
def test_a_row_does_not_depend_on_its_batch(decode: Any) -> None:
    of = given(90, *WIDTHS)
    decoder = decode(of.decoder)
    whole = importance_log_likelihood(decoder, *of[1:], KEY, 40, "float32")
    mu, logvar, x = (t[60:63] for t in of[1:])
    part = importance_log_likelihood(decoder, mu, logvar, x, KEY, 40, "float32", row_offset=60)
    torch.testing.assert_close(part, whole[60:63], rtol=1e-6, atol=0)


@pytest.mark.parametrize("decode", [lambda decoder: decoder, called])
@pytest.mark.parametrize("rows", [10, 100])  # 7 × 7 tiles of an image; 3 × 3 of three images
@pytest.mark.usefixtures("eager")
def test_tiles_of_images_and_samples_are_the_whole(
    rows: int, decode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(importance.twin.LOGITS, "cpu", rows * WIDTHS[-1])
    of = given(7, *WIDTHS)
    check(of, 70, decoder=decode(of.decoder))


def test_its_samples_are_those_of_rsample() -> None:
    of = given(4, *WIDTHS)
    seen = []

    def decoder(z: Tensor) -> Tensor:
        seen.append(z)
        return of.decoder(z)

    importance_log_likelihood(decoder, *of[1:], KEY, 5, row_offset=7, sample_offset=3)
    wanted = rsample(of.mu, of.logvar, KEY, 5, row_offset=7, sample_offset=3)
    torch.testing.assert_close(torch.cat(seen), wanted, rtol=0, atol=1e-6)


def test_where_q_is_the_prior_and_x_ignores_z_every_sample_tells_all() -> None:
    decoder = perceptron(*WIDTHS)
    last = decoder[4]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    zeros = torch.zeros(3, WIDTHS[0])
    x = given(3, *WIDTHS).x
    wanted = torch.distributions.Bernoulli(logits=last.bias).log_prob(x.float()).sum(1)
    for samples in (1, 50):
        found = importance_log_likelihood(decoder, zeros, zeros, x, KEY, samples, "float32")
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("model", ["altosaar", "burda", "lyeoni"])
def test_the_presets_decoders_are_taken_apart(model: str) -> None:
    vae = VAE(model)
    layers = taken_apart(vae.decoder)
    assert layers is not None
    z = torch.randn(2, 3, vae.architecture.latent)
    a = z
    for weight, bias in zip(layers.weights[:-1], layers.biases[:-1], strict=True):
        a = {"relu": torch.relu, "tanh": torch.tanh}[layers.activation](a @ weight.t() + bias)
    torch.testing.assert_close(a @ layers.weights[-1].t() + layers.biases[-1], vae.decode(z))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class Derived(vaez_fast.model.Linear):
    """A subclass of a class with `is_affine = True`, not affine itself."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)

    @classmethod
    def decoder(cls) -> nn.Sequential:
        return nn.Sequential(cls(5, 19), nn.ReLU(), nn.Linear(19, 84))


def _hooked(position: int) -> nn.Sequential:
    decoder = perceptron(*WIDTHS)
    decoder[position].register_forward_hook(lambda module, args, output: 2 * output)
    return decoder


def _hooked_before(decoder: nn.Sequential) -> nn.Sequential:
    decoder[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return decoder


def _hooked_as_a_whole(decoder: nn.Sequential) -> nn.Sequential:
    decoder.register_forward_hook(lambda module, args, output: 2 * output)
    return decoder


def _with_a_forward_of_its_own(decoder: nn.Sequential) -> nn.Sequential:
    plain = decoder[2].forward
    decoder[2].forward = lambda x: 2.0 * plain(x)
    return decoder


@pytest.mark.parametrize(
    "decoder",
    [
        nn.Sequential(Scaled(5, 19), nn.ReLU(), nn.Linear(19, 84)),
        nn.Sequential(nn.Linear(5, 19), nn.ReLU(), nn.Linear(19, 19), nn.Tanh(), nn.Linear(19, 84)),
        nn.Sequential(nn.Linear(5, 19), nn.GELU(), nn.Linear(19, 84)),
        nn.Sequential(nn.Linear(5, 19), nn.Linear(19, 19), nn.Linear(19, 84)),
        nn.Sequential(nn.Linear(5, 19), nn.ReLU()),
        nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 19)), nn.ReLU(), nn.Linear(19, 84)),
        _hooked(0),
        _hooked(1),
        _hooked_before(perceptron(*WIDTHS)),
        _hooked_as_a_whole(perceptron(*WIDTHS)),
        _with_a_forward_of_its_own(perceptron(*WIDTHS)),
        Derived.decoder(),
        perceptron(*WIDTHS).double(),
    ],
)
def test_what_computes_something_else_is_not_taken_apart(decoder: nn.Module) -> None:
    assert taken_apart(decoder) is None


def test_layers_without_bias_are_taken_apart() -> None:
    decoder = nn.Sequential(nn.Linear(5, 19, bias=False), nn.ReLU(), nn.Linear(19, 84))
    layers = taken_apart(decoder)
    assert layers is not None
    assert not layers.biases[0].any()


def test_weights_are_rounded_to_what_is_multiplied_and_biases_are_not() -> None:
    layers = taken_apart(perceptron(*WIDTHS))
    assert layers is not None
    tensors = layers.tensors(torch.bfloat16)
    assert [t.dtype for t in tensors] == [torch.bfloat16, torch.float32] * 3
    assert all(torch.equal(b, c) for b, c in zip(tensors[1::2], layers.biases, strict=True))


@pytest.mark.parametrize(
    ("widths", "taken"),
    [
        ((128, 300, 256, 784), True),
        ((129, 300, 256, 784), False),
        ((16, 300, 512, 784), True),
        ((17, 300, 512, 784), False),
        ((16, 300, 513, 784), False),
        ((16, 256, 784), False),
        ((16, 256, 256, 256, 784), False),
    ],
)
def test_the_kernel_takes_the_decoders_that_the_docstring_names(
    widths: tuple[int, ...], taken: bool
) -> None:
    layers = taken_apart(perceptron(*widths))
    assert layers is not None
    for precision in ("bfloat16", "tf32"):
        assert (tile_for(layers, CPU, precision) is not None) == taken
    assert tile_for(layers, CPU, "float32") is None


def test_auto_takes_bfloat16_only_for_layers_it_knows() -> None:
    of = given(5, *WIDTHS)
    args = (*of[1:], KEY, 9)
    known = "bfloat16" if has_fast_bfloat16(CPU) else "float32"
    for decoder, precision in ((of.decoder, known), (called(of.decoder), "float32")):
        one, two = (importance_log_likelihood(decoder, *args, p) for p in ("auto", precision))
        assert torch.equal(one, two)


def test_bfloat16_runs_other_decoders_under_autocast() -> None:
    of = given(5, *WIDTHS)
    check(of, 9, "bfloat16", called(of.decoder))


def test_float64_stays_float64() -> None:
    of = given(5, *WIDTHS)
    decoder = perceptron(*WIDTHS).double()
    found = importance_log_likelihood(decoder, of.mu.double(), of.logvar.double(), of.x, KEY, 9)
    assert found.dtype == torch.float64
    # eps comes from the stream's float32 numbers, which are within 1e-6 of the definition.
    torch.testing.assert_close(found, truth(of, KEY, 9).log_likelihood, rtol=1e-5, atol=0)


def test_memory_does_not_grow_with_the_samples() -> None:
    of = given(64, 32, 64, 64, 784)
    for decoder in (of.decoder, called(of.decoder)):

        def peak(samples: int) -> int:
            found = peak_memory(
                lambda: importance_log_likelihood(decoder, *of[1:], KEY, samples),  # noqa: B023
                CPU,
            )
            assert found is not None
            return found

        peak(2)  # compiles
        few, many = peak(64), peak(2048)
        assert many <= 1.1 * few
        assert many < 64 << 20  # 2,048 × 64 × 784 logits are 392 MiB


def test_a_decoder_that_is_called_runs_under_the_callers_autocast() -> None:
    of = given(5, *WIDTHS)
    args = (*of[1:], KEY, 9)
    rounded = importance_log_likelihood(called(of.decoder), *args, "bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(importance_log_likelihood(called(of.decoder), *args), rounded)


def test_autocast_and_the_call_leave_known_layers_and_the_inputs_alone() -> None:
    of = given(5, *WIDTHS)
    before = [t.clone() for t in of[1:]]
    plain = importance_log_likelihood(of.decoder, *of[1:], KEY, 9, "float32")
    with torch.autocast("cpu", torch.bfloat16):
        cast = importance_log_likelihood(of.decoder, *of[1:], KEY, 9, "float32")
    assert torch.equal(plain, cast)
    assert all(torch.equal(a, b) for a, b in zip(of[1:], before, strict=True))


@pytest.mark.parametrize("decode", [lambda decoder: decoder, called])
@pytest.mark.usefixtures("eager")
def test_a_nan_stays_in_its_row(decode: Any) -> None:
    of = given(5, *WIDTHS)
    decoder = decode(of.decoder)
    clean = importance_log_likelihood(decoder, *of[1:], KEY, 40, "float32")
    of.mu[2, 1] = torch.nan
    dirty = importance_log_likelihood(decoder, *of[1:], KEY, 40, "float32")
    assert dirty.isnan().tolist() == [False, False, True, False, False]
    assert torch.equal(dirty[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.usefixtures("eager")
def test_weights_that_are_all_zero_give_minus_infinity() -> None:
    of = given(2, *WIDTHS)
    last = of.decoder[4]
    assert isinstance(last, nn.Linear)
    last.bias.fill_(-torch.inf)
    decoder, mu, logvar, x = of
    lit = torch.ones_like(x)  # impossible with this decoder
    found = importance_log_likelihood(decoder, mu, logvar, lit, KEY, 40, "float32")
    assert found.tolist() == [-torch.inf, -torch.inf]


@pytest.mark.parametrize("decode", [lambda decoder: decoder, called])
def test_no_images_give_an_empty_result(decode: Any) -> None:
    of = given(0, *WIDTHS)
    assert importance_log_likelihood(decode(of.decoder), *of[1:], KEY, 9).shape == (0,)


def test_a_backward_through_it_is_refused_and_not_taken_for_zero() -> None:
    of = given(3, *WIDTHS)
    constant = importance_log_likelihood(of.decoder, *of[1:], KEY, 9)
    assert not constant.requires_grad
    of.mu.requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient flows through it"):
        importance_log_likelihood(of.decoder, *of[1:], KEY, 9).sum().backward()
    with pytest.raises(RuntimeError, match="no gradient flows through it"):
        importance_estimates(of.decoder, *of[1:], KEY, 9).log_prob.sum().backward()
    with torch.no_grad():
        assert not importance_log_likelihood(of.decoder, *of[1:], KEY, 9).requires_grad


GIVEN = given(3, *WIDTHS)
M, V, X = GIVEN.mu, GIVEN.logvar, GIVEN.x


@pytest.mark.parametrize(
    ("args", "error", "names"),
    [
        ((None, M, V, X, KEY, 5), TypeError, "decoder must be callable, .*, got NoneType"),
        (
            (GIVEN.decoder, M[:, :4], V[:, :4], X, KEY, 5),
            ValueError,
            "decoder must take z of 4 lat",
        ),
        (
            (lambda z: z, M, V, X, KEY, 5),
            ValueError,
            r"decoder must return logits of shape \(S, B, ",
        ),
        (
            (lambda z: None, M, V, X, KEY, 5),
            ValueError,
            "decoder must return logits.* got NoneType",
        ),
        ((GIVEN.decoder, M[0], V[0], X, KEY, 5), ValueError, r"mu must have shape \(B, D\)"),
        ((GIVEN.decoder, M, V[:2], X, KEY, 5), ValueError, "logvar must have mu's shape"),
        ((GIVEN.decoder, M, V, [1], KEY, 5), TypeError, "x must be a tensor, got list"),
        ((GIVEN.decoder, M, V, X.int(), KEY, 5), TypeError, "x must be uint8, bool"),
        (
            (GIVEN.decoder, M, V, X[:2], KEY, 5),
            ValueError,
            r"x must have shape \(B, P\) with B = 3",
        ),
        (
            (GIVEN.decoder, M, V, X[:, :80], KEY, 5),
            ValueError,
            "decoder must take .* 80 pixels, but its last",
        ),
        (
            (GIVEN.decoder, M, V, X.to("meta"), KEY, 5),
            ValueError,
            "x must be on mu's device cpu, got meta",
        ),
        (
            (GIVEN.decoder, M, V, X, KEY.to("meta"), 5),
            ValueError,
            "noise must be on mu's device cpu, got meta",
        ),
        (
            (perceptron(*WIDTHS).to("meta"), M, V, X, KEY, 5),
            ValueError,
            "decoder must be on mu's device cpu, got a layer on meta",
        ),
        ((GIVEN.decoder, M, V, X, 7, 5), TypeError, "noise must be a tensor made by noise_key"),
        ((GIVEN.decoder, M, V, X, KEY, 0), ValueError, "num_samples must be at least 1"),
        ((GIVEN.decoder, M, V, X, KEY, 5, "half"), ValueError, "precision must be one of auto"),
    ],
)
def test_the_argument_that_is_refused_is_named(
    args: tuple[Any, ...], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=f"importance_log_likelihood: {names}"):
        importance_log_likelihood(*args)
