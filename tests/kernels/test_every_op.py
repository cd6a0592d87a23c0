"""Tests of every public op: shapes without values, steps of the stream, torch.func."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, grad, jacrev, jvp, vjp, vmap

from vaez_kernels import (
    bernoulli_log_prob,
    importance_estimates,
    importance_log_likelihood,
    kl_standard_normal,
    kl_standard_normal_mc,
    linear_bernoulli_log_prob,
    mixture_log_prob,
    noise_key,
    normal,
    rsample,
    rsample_kl,
    uniform,
)

S, B, D, P, H = 2, 40, 30, 70, 20  # large enough to compile every op except `normal`
Make = Callable[[Callable[[], Tensor]], Tensor]


class Inputs:
    """Random arguments of every op; `make` gets a function that creates a real tensor."""

    def __init__(self, make: Make) -> None:
        self.key = make(lambda: noise_key(1, "train", 2))
        self.mu, self.logvar, self.z = (make(lambda: torch.randn(B, D)) for _ in range(3))
        self.logits, self.hidden = make(lambda: torch.randn(S, B, P)), make(_hidden)
        self.weight, self.bias = make(lambda: torch.randn(P, H)), make(lambda: torch.randn(P))
        self.x, self.leave_out = make(lambda: torch.rand(B, P)), make(lambda: torch.arange(B))
        self.decoder = nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, P))
        for layer in (self.decoder[0], self.decoder[2]):
            for name, p in list(layer.named_parameters()):
                values = p.detach()
                setattr(layer, name, nn.Parameter(make(partial(torch.clone, values))))

    def called(self, z: Tensor) -> Tensor:
        """A decoder that cannot be taken apart into layers."""
        return z @ self.weight.new_ones(D, P)


def _hidden() -> Tensor:
    return torch.randn(S, B, H)


# The argument with respect to which each op is differentiated, and the op as a function of it.
OPS: dict[str, tuple[str, Callable[[Inputs, Tensor], Any]]] = {
    "normal": ("mu", lambda of, mu: normal(of.key, S, B, D)),
    "uniform": ("mu", lambda of, mu: uniform(of.key, S, B, D)),
    "rsample": ("mu", lambda of, mu: rsample(mu, of.logvar, of.key, S)),
    "kl_standard_normal": ("mu", lambda of, mu: kl_standard_normal(mu, of.logvar)),
    "kl_standard_normal_mc": (
        "logvar",
        lambda of, logvar: kl_standard_normal_mc(of.mu, logvar, of.key, S),
    ),
    "rsample_kl": ("logvar", lambda of, logvar: rsample_kl(of.mu, logvar, of.key, S)),
    "bernoulli_log_prob": ("logits", lambda of, logits: bernoulli_log_prob(logits, of.x)),
    "linear_bernoulli_log_prob": (
        "hidden",
        lambda of, hidden: linear_bernoulli_log_prob(hidden, of.weight, of.bias, of.x),
    ),
    "linear_bernoulli_log_prob/x": (
        "x",
        lambda of, x: linear_bernoulli_log_prob(of.hidden, of.weight, of.bias, x),
    ),
    "mixture_log_prob": ("z", lambda of, z: mixture_log_prob(z, of.mu, of.logvar)),
    "mixture_log_prob/leave_out": (
        "z",
        lambda of, z: mixture_log_prob(z, of.mu, of.logvar, of.leave_out),
    ),
    "importance_log_likelihood": (
        "mu",
        lambda of, mu: importance_log_likelihood(of.called, mu, of.logvar, of.x, of.key, 3),
    ),
    "importance_estimates": (
        "mu",
        lambda of, mu: importance_estimates(of.decoder, mu, of.logvar, of.x, of.key, 3),
    ),
}
WITH_NOISE = {
    "normal",
    "uniform",
    "rsample",
    "kl_standard_normal_mc",
    "rsample_kl",
    "importance_log_likelihood",
    "importance_estimates",
}
each_op = pytest.mark.parametrize("name", OPS)


def outputs_of(name: str, of: Inputs) -> list[Tensor]:
    """All results of the op, and the gradient of their sum if it has one."""
    wanted, run = OPS[name]
    given = getattr(of, wanted).detach().requires_grad_()
    results = run(of, given)
    results = list(results) if isinstance(results, tuple) else [results]
    if any(r.requires_grad for r in results) and not name.startswith("importance"):
        results += torch.autograd.grad(sum(r.sum() for r in results), given)
    return results


def kinds(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.dtype, t.stride()) for t in tensors]


@each_op
def test_meta_tensors_and_fake_ones_have_the_shapes_of_real_ones(name: str) -> None:
    real = kinds(outputs_of(name, Inputs(lambda make: make())))
    meta = outputs_of(name, Inputs(lambda make: make().to("meta")))
    assert all(t.is_meta for t in meta)
    assert kinds(meta) == real
    with FakeTensorMode():
        fake = outputs_of(name, Inputs(lambda make: make()))
    assert kinds(fake) == real


DIFFERENTIABLE = [name for name in OPS if not name.startswith(("importance", "normal", "uniform"))]
each_differentiable_op = pytest.mark.parametrize("name", DIFFERENTIABLE)


def function_of(name: str, of: Inputs) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The op as a scalar function of the argument in `OPS`, and the argument's value."""
    wanted, run = OPS[name]

    def scalar(at: Tensor) -> Tensor:
        results = run(of, at)
        of_each = results if isinstance(results, tuple) else (results,)
        # Weighted by position, because plain sums would not detect swapped results.
        return sum((torch.linspace(1, 2, r.numel()).view_as(r) * r).sum() for r in of_each)

    return scalar, getattr(of, wanted).detach()


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient from torch.autograd, which takes the path of an ordinary call."""
    at = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at), at)
    return found


@each_differentiable_op
def test_torch_func_differentiates_as_autograd_does(name: str) -> None:
    function, at = function_of(name, Inputs(lambda make: make()))
    wanted = gradient(function, at)
    # Both run the same formulas, one of them compiled, which may sum a row in another order.
    torch.testing.assert_close(grad(function)(at), wanted, rtol=2e-5, atol=2e-5)
    value, pullback = vjp(function, at)[:2]
    torch.testing.assert_close(value, function(at), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(pullback(torch.tensor(3.0))[0], 3 * wanted, rtol=2e-5, atol=6e-5)


@each_differentiable_op
def test_vmap_gives_each_slice_what_a_call_gives_it(name: str) -> None:
    function, at = function_of(name, Inputs(lambda make: make()))
    slices = torch.stack([at, 0.5 * at, 0.0 * at])
    wanted = torch.stack([function(x) for x in slices])
    torch.testing.assert_close(vmap(function)(slices), wanted, rtol=2e-5, atol=2e-5)
    moved = slices.movedim(0, 1)
    torch.testing.assert_close(vmap(function, in_dims=1)(moved), wanted, rtol=2e-5, atol=2e-5)
    wanted = torch.stack([gradient(function, x) for x in slices])
    torch.testing.assert_close(vmap(grad(function))(slices), wanted, rtol=2e-5, atol=2e-5)


def test_a_jacobian_has_a_row_for_each_result() -> None:
    of = Inputs(lambda make: make())
    found = jacrev(lambda mu: kl_standard_normal(mu, of.logvar))(of.mu)
    wanted = torch.zeros(B, B, D)
    wanted[range(B), range(B)] = of.mu
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_vmap_over_keys_draws_the_numbers_of_each(draw: Callable[..., Tensor]) -> None:
    keys = torch.stack([noise_key(1, "train", step) for step in range(4)])
    found = vmap(lambda key: draw(key, S, B, D))(keys)
    assert torch.equal(found, torch.stack([draw(key, S, B, D) for key in keys]))


REFUSED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "no forward-mode derivative": lambda f, at: jvp(f, (at,), (at,)),
    "no second derivative": lambda f, at: grad(lambda x: grad(f)(x).sum())(at),
    "functionalize": lambda f, at: functionalize(f)(at),
}


@each_differentiable_op
@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_ops_have_not_is_refused_in_one_line(name: str, reason: str) -> None:
    function, at = function_of(name, Inputs(lambda make: make()))
    with pytest.raises(RuntimeError, match=rf"^vaez_kernels: [^\n]*{reason}[^\n]*$"):
        REFUSED[reason](function, at)


def test_vmap_over_nothing_is_refused() -> None:
    of = Inputs(lambda make: make())
    with pytest.raises(ValueError, match="vmap needs at least one slice"):
        vmap(lambda mu: kl_standard_normal(mu, of.logvar))(torch.zeros(0, B, D))


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, at: grad(f)(at),
    "vmap": lambda f, at: vmap(f)(torch.stack([at, at])),
    "jacrev": lambda f, at: jacrev(f)(at),
    "functionalize": lambda f, at: functionalize(f)(at),
    "vmap of something else": lambda f, at: vmap(lambda s: s * f(at))(torch.ones(2)),
}


@pytest.mark.parametrize("name", ["importance_log_likelihood", "importance_estimates"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_is_refused_in_one_line_that_names_the_op(name: str, transform: str) -> None:
    function, at = function_of(name, Inputs(lambda make: make()))
    with pytest.raises(
        RuntimeError, match=r"^importance_log_likelihood: torch\.func's .* torch\.autograd\.grad"
    ):
        TRANSFORMS[transform](function, at)


@pytest.mark.parametrize("name", sorted(WITH_NOISE))
@pytest.mark.parametrize("step", [-1, 2**32, 2**63 - 1])
def test_a_step_that_would_alias_another_is_refused(name: str, step: int) -> None:
    of = Inputs(lambda make: make())
    wanted, run = OPS[name]
    of.key[1] = step
    op = name.replace("importance_estimates", "importance_log_likelihood")
    with pytest.raises(ValueError, match=rf"^{op}: noise must hold a step .*, got {step}$"):
        run(of, getattr(of, wanted))
    of.key[1] = step % 2**32 if step < 2**33 else 0
    run(of, getattr(of, wanted))


def test_the_last_step_is_taken_and_a_key_of_any_64_bits() -> None:
    assert normal(torch.tensor((-1, 2**32 - 1)), 1, 2, 3).isfinite().all()


def test_a_step_is_not_read_where_a_call_is_traced() -> None:
    traced = torch.compile(lambda key: normal(key, 1, 2, 3), backend="eager", fullgraph=True)
    key = noise_key(1, "train", 5)
    assert torch.equal(traced(key), normal(key, 1, 2, 3))
    meta = normal(torch.empty(2, dtype=torch.int64, device="meta"), 1, 2, 3)
    assert meta.shape == (1, 2, 3)
