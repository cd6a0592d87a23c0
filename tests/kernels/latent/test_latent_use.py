"""The latent ops with other PyTorch features: autograd, autocast, backends, refused arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.helpers import MODES, call, flat, latents, measured, upstream_of
from vaez_kernels import (
    kl_standard_normal,
    kl_standard_normal_mc,
    noise_key,
    rsample,
    rsample_kl,
    use_backend,
)

KEY = noise_key(12, "train")
each_mode = pytest.mark.parametrize("mode", list(MODES))


def _public(mode: str, mu: Tensor, logvar: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return call(mode, mu, logvar, KEY, 2)


def _dispatched(mode: str, mu: Tensor, logvar: Tensor) -> tuple[Tensor | None, Tensor | None]:
    write_z, kl = MODES[mode]
    z, rows, _ = torch.ops.vaez.latent_forward(*flat(mu, logvar, KEY, 2, write_z, kl, 0, 0))
    return z if write_z else None, rows if kl != "none" else None


@each_mode
@pytest.mark.parametrize("route", [_public, _dispatched])
@pytest.mark.parametrize("loss_of", [Tensor.sum, lambda out: out.square().sum()])
def test_a_second_derivative_is_refused_and_not_taken_for_zero(
    mode: str,
    route: Callable[..., tuple[Tensor | None, Tensor | None]],
    loss_of: Callable[[Tensor], Tensor],
) -> None:
    # The gradient of a sum is constant, so only the op itself can raise.
    mu, logvar = latents(3, 5)
    loss = sum(loss_of(out) for out in route(mode, mu, logvar) if out is not None)
    assert isinstance(loss, Tensor)
    first = torch.autograd.grad(loss, (mu, logvar), create_graph=True)
    penalised = loss + first[0].square().sum() + first[1].square().sum()
    with pytest.raises(RuntimeError, match=r"second derivative|differentiate twice"):
        penalised.backward()


@each_mode
def test_the_dispatched_op_returns_what_the_public_one_does(mode: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 2)
    direct = measured(mode, mu, logvar, KEY, 2, upstream)
    other = measured(mode, mu, logvar, KEY, 2, upstream, lambda m, *a: _dispatched(m, *a[:2]))
    for one, two in zip(direct, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@each_mode
@pytest.mark.parametrize("wanted", ["mu", "logvar"])
def test_one_input_alone_may_require_a_gradient(mode: str, wanted: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 3)
    both = measured(mode, mu, logvar, KEY, 3, upstream)
    alone, other = (mu, logvar) if wanted == "mu" else (logvar, mu)
    other.requires_grad_(False)
    z, kl = call(mode, mu, logvar, KEY, 3)
    pairs = [(o, g) for o, g in zip((z, kl), upstream, strict=True) if o is not None]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    assert alone.grad is not None
    assert torch.equal(alone.grad, both.grad_mu if wanted == "mu" else both.grad_logvar)
    assert other.grad is None


@each_mode
def test_without_gradients_the_values_are_the_same(mode: str) -> None:
    mu, logvar = latents(7, 20)
    tracked = call(mode, mu, logvar, KEY, 3)
    with torch.no_grad():
        untracked = call(mode, mu, logvar, KEY, 3)
    for one, two in zip(tracked, untracked, strict=True):
        assert (one is None) == (two is None)
        assert one is None or (two is not None and torch.equal(one, two))
        assert two is None or not two.requires_grad


@pytest.mark.parametrize("kl", ["analytic", "total-derivative", "sticking-the-landing"])
def test_an_unused_output_adds_nothing_to_the_gradient(kl: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 3)
    z, rows = rsample_kl(mu, logvar, KEY, 3, kl)
    by_z = torch.autograd.grad(z, (mu, logvar), upstream.grad_z, retain_graph=True)
    by_kl = torch.autograd.grad(rows, (mu, logvar), upstream.grad_kl)
    alone = rsample(mu, logvar, KEY, 3)
    for one, two in zip(
        by_z, torch.autograd.grad(alone, (mu, logvar), upstream.grad_z), strict=True
    ):
        assert torch.equal(one, two)
    name = "kl_standard_normal" if kl == "analytic" else f"kl_standard_normal_mc/{kl}"
    separate = measured(name, mu, logvar, KEY, 3, upstream)
    assert torch.equal(by_kl[0], separate.grad_mu)
    assert torch.equal(by_kl[1], separate.grad_logvar)


@each_mode
def test_autocast_leaves_the_inputs_alone(mode: str) -> None:
    mu, logvar = latents(7, 20)
    upstream = upstream_of(mu, 3)
    plain = measured(mode, mu, logvar, KEY, 3, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        cast = measured(mode, mu, logvar, KEY, 3, upstream)
    for one, two in zip(plain, cast, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@each_mode
def test_the_inputs_are_not_written_to(mode: str) -> None:
    mu, logvar = latents(7, 20)
    key = KEY.clone()
    before = mu.detach().clone(), logvar.detach().clone()
    measured(mode, mu, logvar, key, 3, upstream_of(mu, 3))
    assert torch.equal(mu, before[0])
    assert torch.equal(logvar, before[1])
    assert torch.equal(key, KEY)


class TestBackends:
    def test_an_unknown_name_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match=r"torch, triton, got 'cuda'"), use_backend("cuda"):
            pass
        monkeypatch.setenv("VAEZ_BACKEND", "cuda")
        with pytest.raises(ValueError, match=r"VAEZ_BACKEND must be one of torch, triton"):
            rsample(*latents(2, 3), KEY)

    @pytest.mark.parametrize("mode", list(MODES))
    def test_kernels_are_refused_where_they_cannot_run(self, mode: str) -> None:
        with use_backend("triton"), pytest.raises(RuntimeError, match="'triton' was forced"):
            call(mode, *latents(2, 3), KEY, 1)

    def test_the_environment_forces_a_backend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAEZ_BACKEND", "triton")
        with pytest.raises(RuntimeError, match="'triton' was forced"):
            rsample(*latents(2, 3), KEY)

    def test_the_innermost_block_outranks_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAEZ_BACKEND", "triton")
        with use_backend("triton"), use_backend("torch"):
            rsample(*latents(2, 3), KEY)

    def test_the_end_of_a_block_leaves_the_one_around_it_in_force(self) -> None:
        with use_backend("triton"):
            with use_backend("torch"):
                rsample(*latents(2, 3), KEY)
            with pytest.raises(RuntimeError, match="'triton' was forced"):
                rsample(*latents(2, 3), KEY)

    def test_a_block_that_fails_ends_all_the_same(self) -> None:
        with pytest.raises(KeyError), use_backend("triton"):
            raise KeyError
        rsample(*latents(2, 3), KEY)

    def test_float64_takes_the_fallback_in_any_case(self) -> None:
        with use_backend("triton"):
            assert kl_standard_normal(*latents(2, 3, torch.float64)).dtype == torch.float64


def test_a_jacobian_has_a_row_for_each_result() -> None:
    mu, logvar = torch.randn(40, 30), torch.randn(40, 30)
    found = torch.func.jacrev(lambda mu: kl_standard_normal(mu, logvar))(mu)
    wanted = torch.zeros(40, 40, 30)
    wanted[range(40), range(40)] = mu
    assert torch.equal(found, wanted)


MU = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("mu", "logvar", "error", "names"),
    [
        ([0.0], MU, TypeError, "mu must be a tensor"),
        (MU, 1.0, TypeError, "logvar must be a tensor"),
        (MU.int(), MU, TypeError, "mu must be float32"),
        (MU, MU.bool(), TypeError, "logvar must be float32"),
        (MU[0], MU, ValueError, r"mu must have shape \(B, D\)"),
        (MU, MU[None], ValueError, r"logvar must have mu's shape \(2, 3\) or broadcast to it"),
        (MU[:, :0], MU[:, :0], ValueError, "mu must have at least one column"),
        (MU, MU[:, :2], ValueError, "logvar must have mu's shape"),
        (MU, MU.double(), TypeError, "logvar must be float64 if and only if mu is"),
        (MU, MU.to("meta"), ValueError, "logvar must be on mu's device"),
    ],
)
@pytest.mark.parametrize("op", ["kl_standard_normal", "rsample"])
def test_the_op_names_the_input_it_refuses(
    op: str, mu: Any, logvar: Any, error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=f"{op}: {names}"):
        call(op, mu, logvar, KEY, 1)


@pytest.mark.parametrize(
    ("noise", "options", "error", "names"),
    [
        (None, {}, TypeError, "noise must be a tensor made by noise_key"),
        (KEY.double(), {}, TypeError, "noise must be int64"),
        (KEY[None], {}, ValueError, "noise must have shape"),
        (KEY.to("meta"), {}, ValueError, "noise must be on mu's device"),
        (KEY, {"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        (KEY, {"num_samples": 1.0}, TypeError, "num_samples must be an integer"),
        (KEY, {"num_samples": True}, TypeError, "num_samples must be an integer"),
        (KEY, {"row_offset": -1}, ValueError, "row_offset must be at least 0"),
        (KEY, {"sample_offset": 2**32}, ValueError, "sample_offset must be below"),
    ],
)
@pytest.mark.parametrize("op", [rsample, kl_standard_normal_mc, rsample_kl])
def test_sampling_ops_name_the_argument_they_refuse(
    op: Callable[..., Any], noise: Any, options: dict[str, Any], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=f"{op.__name__}: {names}"):
        op(MU, MU, noise, **options)


@pytest.mark.parametrize(
    ("op", "option", "value"),
    [
        (kl_standard_normal_mc, "estimator", "analytic"),
        (rsample_kl, "kl", "none"),
        (rsample_kl, "kl", "stl"),
    ],
)
def test_an_unknown_kl_is_refused(op: Callable[..., Any], option: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{op.__name__}: {option} must be one of .*'{value}'"):
        op(MU, MU, KEY, **{option: value})
