"""The latent ops on latents of any shape and memory format, with priors, clamps and free bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.latent import events
from tests.kernels.latent.events import KEY, Call
from vaez_kernels import compiler, kl_normal, kl_standard_normal, reference, rsample, rsample_kl

# The cache itself, even while a fixture counts its calls.
COMPILED = compiler.compiled
LARGE = (3, 4, 12, 10)  # large enough to be compiled


@pytest.mark.parametrize("call", list(events.calls()), ids=str)
@pytest.mark.usefixtures("eager")
def test_values_and_gradients_are_the_references(call: Call) -> None:
    events.check(call)


@pytest.mark.parametrize("layout", events.LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {"kl": "analytic", "clamp": (-1.0, 1.0)},
        {"kl": "sticking-the-landing", "prior": "channel", "reduce": "channels"},
    ],
    ids=lambda options: options["kl"],
)
def test_compiled_values_and_gradients_are_the_references(
    layout: str, options: dict[str, Any], compilations: list[Any]
) -> None:
    events.check(Call(LARGE, layout, samples=2, **options))
    assert compilations


@pytest.mark.parametrize("reduce", events.REDUCTIONS)
def test_compiled_code_reduces_as_the_reference(reduce: str, compilations: list[Any]) -> None:
    for layout in ("contiguous", "channels last"):
        events.check(Call(LARGE, layout, reduce=reduce, free_bits=0.2))
    assert compilations


def test_other_bounds_and_free_bits_are_not_compiled_again(compilations: list[Any]) -> None:
    COMPILED.kept.clear()
    for low, bits in ((-1.0, 0.1), (-0.5, 0.2), (0.0, 0.3)):
        events.check(Call(LARGE, clamp=(low, 1.0), free_bits=bits))
    assert len(COMPILED.kept) == 2  # forward and backward


def test_the_cases_meet_every_shape_layout_and_option() -> None:
    seen = [set(values) for values in zip(*events.calls(), strict=True)]
    assert seen[0] == set(events.SHAPES)
    assert seen[1] == set(events.LAYOUTS)
    assert seen[2] == set(events.KLS)
    assert seen[3] == set(events.REDUCTIONS)
    assert len(seen[5]) > 2
    assert len(seen[6]) > 1
    assert seen[7] == {"", "full", "row", "channel"}
    assert seen[8] == {"full", "scalar", "row", "channel"}


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def draw(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mu, logvar = (torch.randn(shape, generator=generator) for _ in range(2))
    return mu, logvar


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 8, 3, 4, 5), (2, 4, 24, 20)])
def test_z_keeps_the_memory_format_and_its_numbers_do_not_depend_on_it(
    shape: tuple[int, ...],
) -> None:
    mu, logvar = draw(*shape)
    z = rsample(mu, logvar, KEY, 3)
    flat = rsample(mu.flatten(1), logvar.flatten(1), KEY, 3)
    assert torch.equal(z.flatten(2), flat)
    assert z.is_contiguous()
    last = rsample(channels_last(mu), channels_last(logvar), KEY, 3)
    assert torch.equal(last, z)
    assert last.movedim(2, -1).is_contiguous()


def test_rows_of_a_split_batch_are_those_of_the_whole() -> None:
    mu, logvar = draw(7, 4, 24, 20)  # even the last row alone is compiled
    whole, _ = rsample_kl(mu, logvar, KEY, 2)
    for split in (2, 4):  # as ranks split a batch
        parts = [
            rsample_kl(m, v, KEY, 2, row_offset=first)[0]
            for m, v, first in zip(
                mu.split(split), logvar.split(split), range(0, 7, split), strict=True
            )
        ]
        assert torch.equal(torch.cat(parts, 1), whole)


def allocated(work: Callable[[], object]) -> list[int]:
    """The bytes of each allocation of more than 4 KiB."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        work()
    assert profile.profiler is not None
    found = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in found if event.name() == "[memory]"]
    return [size for size in sizes if size > 4096]


@pytest.mark.parametrize("layout", ["halves", "channels last", "channels-last halves"])
def test_nothing_is_copied(layout: str) -> None:
    given = events.inputs(Call((2, 4, 64, 32), layout))
    mu, logvar = (x.detach() for x in given.values())
    rsample_kl(mu, logvar, KEY)  # compiles
    size = 4 * mu.numel()
    assert allocated(lambda: rsample_kl(mu, logvar, KEY)) == [size, size]  # eps and z


def test_a_broadcast_logvar_or_prior_is_not_expanded_in_memory() -> None:
    mu, _ = draw(4, 4, 32, 32)
    of_channel = torch.zeros(4, 1, 1)
    size = 4 * mu.numel()
    for prior in (None, (of_channel, of_channel), (torch.zeros(()), torch.zeros(()))):
        call = lambda prior=prior: rsample_kl(mu, of_channel, KEY, prior=prior)  # noqa: E731
        call()
        assert allocated(call) == [size, size]


def test_a_standard_normal_prior_given_as_numbers_is_the_default() -> None:
    mu, logvar = draw(5, 4, 6)
    zero = torch.zeros(())
    torch.testing.assert_close(
        kl_normal(mu, logvar, zero, zero), kl_standard_normal(mu, logvar), rtol=1e-6, atol=1e-6
    )


def test_the_kl_of_q_to_itself_is_zero_to_the_last_digit() -> None:
    mu, logvar = draw(5, 4, 6)
    assert not kl_normal(mu, logvar, mu, logvar).any()


def test_free_bits_of_the_batchs_mean_are_a_clamp_of_it() -> None:
    """Kingma et al. 2016, appendix C.8: the mean over the batch, then the maximum, then the sum."""
    mu, logvar = (x.requires_grad_() for x in draw(50, 8))
    found = kl_standard_normal(mu, logvar, reduce="batch-mean").clamp(min=0.9).sum()
    terms = reference.kl_terms(mu, logvar)
    wanted = terms.mean(0).clamp(min=0.9).sum()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    assert 0 < int((terms.mean(0) < 0.9).sum()) < 8  # both sides of the maximum are met
    for one, other in zip(
        torch.autograd.grad(found, (mu, logvar)),
        torch.autograd.grad(wanted, (mu, logvar)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_clamp_passes_the_gradient_up_to_its_bounds_and_none_beyond() -> None:
    logvar = torch.tensor([[-2.0, -1.0, 0.5, 1.0, 3.0]], requires_grad=True)
    kl = kl_standard_normal(torch.zeros(1, 5), logvar, clamp=(-1.0, 1.0))
    (found,) = torch.autograd.grad(kl.sum(), logvar)
    inside = 0.5 * torch.expm1(logvar.detach())
    wanted = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]) * inside
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


MU = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "error", "names"),
    [
        ({"clamp": 1.0}, TypeError, r"clamp must be a pair \(low, high\), got 1.0"),
        ({"clamp": (1.0, -1.0)}, ValueError, "clamp must have low ≤ high"),
        ({"clamp": (float("nan"), 1.0)}, ValueError, "clamp must have low ≤ high"),
        ({"reduce": "mean"}, ValueError, "reduce must be one of sum, channels, none, batch-mean"),
        ({"free_bits": -0.1}, ValueError, "free_bits must be finite and at least 0"),
        ({"free_bits": 0.1, "kl": "total-derivative"}, ValueError, "free_bits need kl="),
        ({"prior": MU}, TypeError, r"prior must be a pair \(mu, logvar\), got Tensor"),
        ({"prior": (MU, MU[:, :2])}, ValueError, "prior's logvar must have mu's shape"),
        ({"prior": (MU.int(), MU)}, TypeError, "prior's mu must be float32"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=f"rsample_kl: {names}"):
        rsample_kl(MU, MU, KEY, **options)
