"""Importance sampling in one kernel, interpreted on the CPU, against the reference.

tests/kernels/test_interpreter.py runs this in a separate process; decoders.py derives the bounds.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.interpreted.watch import accesses, watch
from tests.kernels.helpers import assert_within, strided_keys
from tests.kernels.importance.decoders import Given, given, truth
from vaez_fast.model import VAE
from vaez_kernels import (
    importance,
    importance_estimates,
    importance_log_likelihood,
    interpreting,
    launch,
    noise_key,
)

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

KEY = noise_key(3, "evaluate", 2)
WIDTHS = (5, 19, 23, 84)  # neither powers of two nor multiples of 16


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launched kernels. Fresh memory is filled with NaN, so unwritten outputs are found."""
    return watch(monkeypatch, (importance.kernel, "launch_decoder"))


def check(of: Given, samples: int, precision: str, **offsets: int) -> None:
    decoder, mu, logvar, x = of
    found = importance_estimates(decoder, mu, logvar, x, KEY, samples, precision, **offsets)
    want = truth(of, KEY, samples, precision, **offsets)
    # The interpreter truncates float32 to bfloat16, while a GPU rounds: see decoders.py.
    bound = 4.0 * want.bound if precision == "bfloat16" else want.bound
    assert_within("log_likelihood", found.log_likelihood, want.log_likelihood, bound)
    assert_within("log_prob", found.log_prob, want.log_prob, bound)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(("images", "samples"), [(1, 1), (3, 40), (2, 70)])
def test_two_hidden_layers_are_the_references(
    images: int, samples: int, activation: type[nn.Module], precision: str, launches: list[str]
) -> None:
    of = given(images, *WIDTHS, activation=activation)
    check(of, samples, precision, row_offset=2**33 + 7, sample_offset=3)
    assert launches == ["launch_decoder"]


@pytest.mark.parametrize("targets", [torch.bool, torch.float32, torch.float16])
def test_every_kind_of_target_is_the_references(targets: torch.dtype) -> None:
    check(given(2, *WIDTHS, targets=targets), 5, "tf32")


@pytest.mark.parametrize("model", ["altosaar", "burda", "lyeoni"])
def test_the_presets_decoders_run_in_it(model: str, launches: list[str]) -> None:
    vae = VAE(model).requires_grad_(False)
    plain = given(2, vae.architecture.latent, 3, 784)
    estimates = [
        importance_estimates(vae.decoder, *plain[1:], KEY, 5, precision)
        for precision in ("tf32", "float32")
    ]
    assert launches == ["launch_decoder"]
    # The estimates are about 550 nats; TF32 rounds its operands to ten bits.
    for one, two in zip(*estimates, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("widths", "precision"),
    [(WIDTHS, "float32"), ((5, 19, 84), "tf32"), ((5, 9, 9, 9, 84), "bfloat16")],
)
def test_what_it_does_not_take_runs_layer_by_layer(
    widths: tuple[int, ...], precision: str, launches: list[str]
) -> None:
    check(given(2, *widths), 5, precision)
    assert launches == []


def test_more_samples_than_a_launch_takes_are_several(
    launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = given(2, *WIDTHS)
    whole = importance_log_likelihood(*of, KEY, 100, "tf32")
    monkeypatch.setattr(importance.kernel, "SAMPLES_PER_LAUNCH", 40)
    parts = importance_log_likelihood(*of, KEY, 100, "tf32")
    assert len(launches) == 1 + 3
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)


def test_a_key_in_awkward_memory_draws_what_it_would_elsewhere(launches: list[str]) -> None:
    of = given(2, *WIDTHS)
    for key in strided_keys():
        wanted = importance_log_likelihood(*of, key.clone().contiguous(), 5, "tf32")
        assert torch.equal(importance_log_likelihood(*of, key, 5, "tf32"), wanted)
    assert set(launches) == {"launch_decoder"}


def test_a_nan_stays_in_its_row() -> None:
    of = given(3, *WIDTHS)
    clean = importance_log_likelihood(*of, KEY, 5, "tf32")
    of.mu[1, 2] = torch.nan
    dirty = importance_log_likelihood(*of, KEY, 5, "tf32")
    assert dirty.isnan().tolist() == [False, True, False]
    assert torch.equal(dirty[::2], clean[::2])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_nan_among_the_layers_is_not_lost(layer: int, activation: type[nn.Module]) -> None:
    of = given(2, *WIDTHS, activation=activation)
    linear = of.decoder[layer]
    assert isinstance(linear, nn.Linear)
    linear.bias[3] = torch.nan
    for precision in ("tf32", "bfloat16"):
        assert importance_log_likelihood(*of, KEY, 5, precision).isnan().all()


def test_weights_that_are_all_zero_give_minus_infinity() -> None:
    of = given(2, *WIDTHS)
    last = of.decoder[4]
    assert isinstance(last, nn.Linear)
    last.bias.fill_(-torch.inf)
    decoder, mu, logvar, x = of
    lit = torch.ones_like(x)  # the decoder gives these pixels probability 0
    found = importance_log_likelihood(decoder, mu, logvar, lit, KEY, 40, "tf32")
    assert found.tolist() == [-torch.inf, -torch.inf]


def test_no_images_launch_nothing() -> None:
    decoder, mu, logvar, x = given(0, *WIDTHS)
    with accesses() as seen:
        assert importance_log_likelihood(decoder, mu, logvar, x, KEY, 5, "tf32").shape == (0,)
    assert not seen


def test_three_numbers_a_tile_are_all_that_it_stores() -> None:
    decoder, mu, logvar, x = given(3, *WIDTHS)
    tile = launch.DECODER_TILES["sm_80"]["tf32", False]
    with accesses() as seen:
        importance_log_likelihood(decoder, mu, logvar, x, KEY, 2 * tile.rows + 1, "tf32")
    stored = sum(access.addresses.size for access in seen if access.kind == "store")
    assert stored == 3 * 3 * 3
