"""Claims about every op, by its cases: shapes without values, steps of the stream, torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, grad, jacrev, jvp, vjp, vmap

from tests.kernels.every_op import (
    CASES,
    LEAVES,
    arguments_of,
    assert_close,
    on_meta,
    outputs_and_gradients,
    outputs_of,
)
from vaez_kernels.cases import OPS

each_op = pytest.mark.parametrize("op", OPS)
each_leaf = pytest.mark.parametrize(("op", "leaf"), LEAVES)
# Ops without a gradient of their arguments mu and logvar.
WITHOUT_GRADIENT = [op for op in OPS if not OPS[op].LEAVES and "mu" in arguments_of(op)]


def kinds(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.dtype, t.stride()) for t in tensors]


@each_op
def test_meta_tensors_and_fake_ones_have_the_shapes_of_real_ones(op: str) -> None:
    real = kinds(outputs_and_gradients(op, arguments_of(op)))
    meta = outputs_and_gradients(op, on_meta(arguments_of(op)))
    assert all(t.is_meta for t in meta)
    assert kinds(meta) == real
    # The layers of a decoder stay real.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {
            name: mode.from_tensor(x) if isinstance(x, Tensor) else x
            for name, x in arguments_of(op).items()
        }
        assert kinds(outputs_and_gradients(op, fake)) == real


def function_of(op: str, leaf: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The op as a scalar function of one argument, and the argument's value."""
    arguments = arguments_of(op)

    def scalar(at: Tensor) -> Tensor:
        results = outputs_of(op, arguments | {leaf: at})
        # Weighted by position, because plain sums would not detect swapped results.
        weighted = [(torch.linspace(1, 2, r.numel()).view_as(r) * r).sum() for r in results]
        return torch.stack(weighted).sum()

    return scalar, arguments[leaf]


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient from torch.autograd, which takes the path of an ordinary call."""
    at = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at), at)
    return found


@each_leaf
def test_torch_func_differentiates_as_autograd_does(op: str, leaf: str) -> None:
    function, at = function_of(op, leaf)
    wanted = gradient(function, at)
    assert_close(op, grad(function)(at), wanted)
    value, pullback = vjp(function, at)[:2]
    assert_close(op, value, function(at))
    assert_close(op, pullback(torch.tensor(3.0))[0], 3 * wanted)


@each_leaf
def test_vmap_gives_each_slice_what_a_call_gives_it(op: str, leaf: str) -> None:
    function, at = function_of(op, leaf)
    slices = torch.stack([at, 0.5 * at, 0.0 * at])
    wanted = torch.stack([function(x) for x in slices])
    assert_close(op, vmap(function)(slices), wanted)
    assert_close(op, vmap(function, in_dims=1)(slices.movedim(0, 1)), wanted)
    wanted = torch.stack([gradient(function, x) for x in slices])
    assert_close(op, vmap(grad(function))(slices), wanted)


@each_leaf
def test_vmap_over_nothing_is_refused(op: str, leaf: str) -> None:
    function, at = function_of(op, leaf)
    with pytest.raises(ValueError, match="vmap needs at least one slice"):
        vmap(function)(at.new_zeros(0, *at.shape))


REFUSED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "no forward-mode derivative": lambda f, at: jvp(f, (at,), (at,)),
    "no second derivative": lambda f, at: grad(lambda x: grad(f)(x).sum())(at),
    "functionalize": lambda f, at: functionalize(f)(at),
}


@each_leaf
@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_ops_have_not_is_refused_in_one_line(op: str, leaf: str, reason: str) -> None:
    function, at = function_of(op, leaf)
    with pytest.raises(RuntimeError, match=rf"^vaez_kernels: [^\n]*{reason}[^\n]*$"):
        REFUSED[reason](function, at)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, at: grad(f)(at),
    "vmap": lambda f, at: vmap(f)(torch.stack([at, at])),
    "jacrev": lambda f, at: jacrev(f)(at),
    "functionalize": lambda f, at: functionalize(f)(at),
    "vmap of something else": lambda f, at: vmap(lambda s: s * f(at))(torch.ones(2)),
}


@pytest.mark.parametrize("op", WITHOUT_GRADIENT)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_is_refused_in_one_line_that_names_the_op(op: str, transform: str) -> None:
    function, at = function_of(op, "mu")
    name = op.partition("/")[0]
    with pytest.raises(RuntimeError, match=rf"^{name}: torch\.func's .* torch\.autograd\.grad"):
        TRANSFORMS[transform](function, at)


@pytest.mark.parametrize("op", [op for op in OPS if "noise" in arguments_of(op)])
@pytest.mark.parametrize("step", [-1, 2**32, 2**63 - 1])
def test_a_step_that_would_alias_another_is_refused(op: str, step: int) -> None:
    arguments = arguments_of(op)
    arguments["noise"][1] = step
    name = op.partition("/")[0]
    with pytest.raises(ValueError, match=rf"^{name}: noise must hold a step .*, got {step}$"):
        outputs_of(op, arguments)
    arguments["noise"][1] = step % 2**32 if step < 2**33 else 0
    outputs_of(op, arguments)


# What is refused of a tensor argument, by name: the value that replaces it, and the errors.
BAD: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "not a tensor": (lambda x: x.tolist(), TypeError, "must be a tensor"),
    "complex": (lambda x: x.to(torch.complex64), TypeError, r"must (be|have .* dtype)"),
    "one more dimension": (lambda x: x[None], ValueError, "must have"),
    "on another device": (lambda x: x.to("meta"), ValueError, r"must be on \w+'s? device"),
}


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, n) for op in OPS for n, x in arguments_of(op).items() if isinstance(x, Tensor)],
)
@pytest.mark.parametrize("bad", BAD)
def test_an_op_names_the_tensor_that_it_refuses(op: str, name: str, bad: str) -> None:
    arguments = arguments_of(op)
    change, error, message = BAD[bad]
    if sum(isinstance(x, Tensor) for x in arguments.values()) == 1 and "device" in bad:
        return  # the op's only tensor may be on any device
    # If one of two tensors is on another device, the error names both.
    named = rf"(?=.*\b{name}\b)\w+" if "device" in bad else name
    with pytest.raises(error, match=rf"^{op.partition('/')[0]}: {named} {message}"):
        outputs_of(op, arguments | {name: change(arguments[name])})


@each_op
def test_rows_of_another_number_are_refused(op: str) -> None:
    """In any tensor that has the rows of a batch or of components."""
    arguments = arguments_of(op)
    rows = CASES[op].shape[1]
    of_rows = [
        name for name, x in arguments.items() if isinstance(x, Tensor) and rows in x.shape[:-1]
    ]
    for name in of_rows if len(of_rows) > 1 else []:
        x = arguments[name]
        fewer = x.narrow(x.shape.index(rows), 0, rows - 1)
        with pytest.raises(ValueError, match=rf"^{op.partition('/')[0]}: \w+ must have"):
            outputs_of(op, arguments | {name: fewer})


@each_op
def test_an_op_names_the_setting_that_it_refuses(op: str) -> None:
    arguments = arguments_of(op)
    bad: dict[type, tuple[Any, str]] = {
        str: ("unknown", "must be one of .*, got 'unknown'"),
        int: (-1, "must be at least [01], got -1"),
    }
    for name, (value, message) in (
        (name, bad[type(x)]) for name, x in arguments.items() if type(x) in bad
    ):
        with pytest.raises(ValueError, match=rf"^{op.partition('/')[0]}: {name} {message}"):
            outputs_of(op, arguments | {name: value})
