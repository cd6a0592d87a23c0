"""The ops under torch.compile: registration, one graph for all batch sizes, fresh noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from tests.kernels.bernoulli.pixels import TARGETS, pixels
from tests.kernels.bernoulli.pixels import check as check_pixels
from tests.kernels.helpers import (
    MODES,
    assert_within,
    bounds,
    call,
    check,
    expected,
    flat,
    latents,
    upstream_of,
)
from vaez_kernels import compiler, latent, noise, noise_key, normal, rsample_kl, uniform

KEY = noise_key(13, "train", 1)
needs_compiler = pytest.mark.skipif(not compiler.has_cpu_compiler(), reason="no C++ compiler")


def split(args: tuple[object, ...]) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """The tensors of the op's arguments, and its settings."""
    return args[:5], args[5:]


@pytest.fixture
def fresh_dynamo() -> None:
    """Reset dynamo, because it counts graphs per code object, across tests."""
    torch._dynamo.reset()


class TestRegistration:
    """opcheck: schema, autograd registration, fake tensors, ahead-of-time tracing."""

    @pytest.mark.parametrize("mode", list(MODES))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_forward_op_is_sound(self, mode: str, dtype: torch.dtype) -> None:
        write_z, kl = MODES[mode]
        mu, logvar = latents(3, 5, dtype, "chunk")
        key = None if mode == "kl_standard_normal" else KEY
        torch.library.opcheck(
            torch.ops.vaez.latent_forward, flat(mu, logvar, key, 2, write_z, kl, 1, 2)
        )

    @pytest.mark.parametrize("kl", latent.twin.KLS)
    @pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
    def test_the_backward_op_is_sound(self, kl: str, needs: tuple[bool, bool]) -> None:
        mu, logvar = (x.detach() for x in latents(3, 5))
        grad_z, grad_kl = upstream_of(mu, 2)
        upstream = (grad_z, None if kl == "none" else grad_kl)
        eps = normal(KEY, 2, 3, 5)
        tensors, settings = split(flat(mu, logvar, KEY, 2, True, kl, 0, 0))
        args = (*upstream, *tensors, eps, *settings, *needs, False, False)
        torch.library.opcheck(torch.ops.vaez.latent_backward, args)

    @pytest.mark.parametrize("name", ["noise", "noise_twin"])
    @pytest.mark.parametrize("is_normal", [True, False])
    @pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 20), (2, 0, 4)])
    def test_the_noise_ops_are_sound(
        self, name: str, is_normal: bool, shape: tuple[int, int, int]
    ) -> None:
        op = getattr(torch.ops.vaez, name)
        torch.library.opcheck(op, (KEY, *shape, 7, 9, is_normal))


@needs_compiler
@pytest.mark.usefixtures("fresh_dynamo")
class TestInACompiledFunction:
    @pytest.mark.parametrize("mode", list(MODES))
    def test_one_graph_serves_every_batch_size_gradients_included(self, mode: str) -> None:
        def function(mu: Tensor, logvar: Tensor, key: Tensor) -> Any:
            return call(mode, mu, logvar, key, 3)

        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
        for rows in (5, 33, 129):
            mu, logvar = latents(rows, 20, seed=rows)
            check(mode, mu, logvar, KEY, 3, op=lambda _, m, v, key, _s: compiled(m, v, key))
        assert counter.frame_count == 1

    @pytest.mark.parametrize("draw", [normal, uniform])
    def test_the_stream_is_drawn_bit_for_bit(self, draw: Any) -> None:
        def function(key: Tensor, like: Tensor) -> Tensor:
            return draw(key, 2, like.shape[0], 19, row_offset=4, sample_offset=5)

        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
        for rows in (5, 33, 129):
            like = torch.empty(rows)
            assert torch.equal(compiled(KEY, like), function(KEY, like))
        assert counter.frame_count == 1

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_is_the_references_too(self, dtype: torch.dtype) -> None:
        mode = "rsample_kl/total-derivative"
        compiled = torch.compile(call, fullgraph=True, dynamic=True)
        check(mode, *latents(33, 20, dtype, "chunk"), KEY, 3, op=compiled)

    def test_noise_that_advances_in_place_is_fresh_without_recompiling(self) -> None:
        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(rsample_kl, backend=counter, fullgraph=True)
        key = KEY.clone()
        seen = []
        for step in range(3):
            mu, logvar = latents(7, 20)
            z, kl = compiled(mu, logvar, key, 2)
            (z.sum() + kl.sum()).backward()
            eager, _ = rsample_kl(mu, logvar, noise_key(13, "train", 1 + step), 2)
            torch.testing.assert_close(z, eager, rtol=1e-6, atol=1e-6)
            seen.append(z.detach())
            key[1] += 1
        assert counter.frame_count == 1
        assert not (seen[0] == seen[1]).any()
        assert not (seen[1] == seen[2]).any()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=needs_compiler)])
def test_backward_uses_its_own_forwards_noise(how: str) -> None:
    op = torch.compile(rsample_kl, fullgraph=True) if how == "compiled" else rsample_kl
    mode = "rsample_kl/total-derivative"
    mu, logvar = latents(33, 20)
    upstream = upstream_of(mu, 3)
    keys = [noise_key(13, "train", step) for step in (1, 2)]
    outputs = [op(mu, logvar, key, 3, "total-derivative") for key in keys]
    for key, pair in zip(keys, outputs, strict=True):
        grads = torch.autograd.grad(pair, (mu, logvar), tuple(upstream))
        eps = normal(key, 3, 33, 20)
        wanted = expected(mode, mu, logvar, eps, upstream)
        limits = bounds(mode, mu, logvar, eps, upstream)
        assert_within("grad_mu", grads[0], wanted.grad_mu, limits.grad_mu)
        assert_within("grad_logvar", grads[1], wanted.grad_logvar, limits.grad_logvar)


def test_the_fallback_hands_its_noise_to_backward() -> None:
    mode = "rsample_kl/total-derivative"
    mu, logvar = (x.detach() for x in latents(7, 20))
    eps = torch.ops.vaez.latent_forward(*flat(mu, logvar, KEY, 3, *MODES[mode], 4, 5))[2]
    assert torch.equal(eps, normal(KEY, 3, 7, 20, row_offset=4, sample_offset=5))
    # Numbers that differ from the key's: backward must use the numbers it is given.
    other = normal(noise_key(99, "train"), 3, 7, 20)
    upstream = upstream_of(mu, 3)
    tensors, settings = split(flat(mu, logvar, KEY, 3, *MODES[mode], 4, 5))
    needs = (True, True, False, False)
    grads = torch.ops.vaez.latent_backward(*upstream, *tensors, other, *settings, *needs)
    wanted = expected(mode, mu, logvar, other, upstream)
    limits = bounds(mode, mu, logvar, other, upstream)
    assert_within("grad_mu", grads[0], wanted.grad_mu, limits.grad_mu)
    assert_within("grad_logvar", grads[1], wanted.grad_logvar, limits.grad_logvar)


class TestWithoutACompiler:
    @pytest.fixture(autouse=True)
    def _no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        def missing() -> str:
            raise InvalidCxxCompiler

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("torch.compile was called where nothing can compile")

        monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
        monkeypatch.setattr(compiler, "compiled", refuse)
        monkeypatch.setattr(noise.twin, "compiled_without_guards", refuse)
        monkeypatch.setattr(noise.twin, "compiled_quads", refuse)
        compiler.finds_tools.cache_clear()
        compiler.failures.clear()
        yield
        compiler.finds_tools.cache_clear()
        compiler.failures.clear()

    @pytest.mark.parametrize("mode", list(MODES))
    @pytest.mark.filterwarnings("ignore:a C")
    def test_values_and_gradients_are_the_references(self, mode: str) -> None:
        check(mode, *latents(129, 20), KEY, 3)

    @pytest.mark.parametrize("targets", TARGETS)
    @pytest.mark.filterwarnings("ignore:a C")
    def test_the_likelihood_is_the_references(self, targets: torch.dtype) -> None:
        check_pixels(*pixels(3, 7, 784, targets=targets))

    def test_one_warning_says_so(self) -> None:
        with pytest.warns(RuntimeWarning, match=r"a C\+\+ compiler .*not found.*eager"):
            normal(KEY, 2, 3, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            normal(KEY, 2, 3, 4)
            call("rsample_kl/analytic", *latents(129, 20), KEY, 3)
