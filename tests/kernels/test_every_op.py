"""Tests of every op on its cases: meta and fake tensors, torch.func, refused arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jacrev, jvp, vjp, vmap

from tests.kernels.every_op import (
    CASES,
    LEAVES,
    arguments_of,
    assert_close,
    outputs_and_gradients,
    outputs_of,
    tensors_of,
)
from vaez_kernels.cases import OPS
from vaez_kernels.latent import case as latent
from vaez_kernels.testing import on_device

each_case = pytest.mark.parametrize("case", CASES)
each_leaf = pytest.mark.parametrize(("case", "leaf"), LEAVES)


def op_of(case: str) -> str:
    """The name by which errors call the op."""
    return CASES[case].op.partition("/")[0]


def kinds(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.dtype, t.stride()) for t in tensors]


@each_case
def test_meta_tensors_and_fake_ones_have_the_shapes_of_real_ones(case: str) -> None:
    real = kinds(outputs_and_gradients(case, arguments_of(case)))
    meta = outputs_and_gradients(case, on_device(torch.device("meta"), arguments_of(case)))
    assert all(t.is_meta for t in meta)
    assert kinds(meta) == real
    # The layers of a decoder stay real.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {
            name: mode.from_tensor(x) if isinstance(x, Tensor) else x
            for name, x in arguments_of(case).items()
        }
        assert kinds(outputs_and_gradients(case, fake)) == real


def function_of(case: str, leaf: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The op as a scalar function of one argument, and the argument's value."""
    arguments = arguments_of(case)

    def scalar(at: Tensor) -> Tensor:
        results = outputs_of(case, arguments | {leaf: at})
        # Weighted, because plain sums would not detect swapped results or elements.
        weighted = [
            (torch.linspace(i, i + 1, r.numel()).view_as(r) * r).sum()
            for i, r in enumerate(results, 1)
        ]
        return torch.stack(weighted).sum()

    return scalar, arguments[leaf]


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient from torch.autograd, which takes the path of an ordinary call."""
    at = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at), at)
    return found


@each_leaf
def test_torch_func_differentiates_as_autograd_does(case: str, leaf: str) -> None:
    function, at = function_of(case, leaf)
    wanted = gradient(function, at)
    assert_close(case, grad(function)(at), wanted)
    value, pullback = vjp(function, at)[:2]
    assert_close(case, value, function(at))
    assert_close(case, pullback(torch.tensor(3.0))[0], 3 * wanted)


@each_leaf
def test_vmap_gives_each_slice_what_a_call_gives_it(case: str, leaf: str) -> None:
    function, at = function_of(case, leaf)
    slices = torch.stack([at, 0.5 * at, 0.0 * at])
    wanted = torch.stack([function(x) for x in slices])
    assert_close(case, vmap(function)(slices), wanted)
    assert_close(case, vmap(function, in_dims=1)(slices.movedim(0, 1)), wanted)
    wanted = torch.stack([gradient(function, x) for x in slices])
    assert_close(case, vmap(grad(function))(slices), wanted)


@each_leaf
def test_vmap_over_nothing_is_refused(case: str, leaf: str) -> None:
    function, at = function_of(case, leaf)
    with pytest.raises(ValueError, match="vmap needs at least one slice"):
        vmap(function)(at.new_zeros(0, *at.shape))


REFUSED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "no forward-mode derivative": lambda f, at: jvp(f, (at,), (at,)),
    "no second derivative": lambda f, at: grad(lambda x: grad(f)(x).sum())(at),
    "functionalize": lambda f, at: functionalize(f)(at),
}


@each_leaf
@pytest.mark.parametrize("reason", REFUSED)
def test_unsupported_transforms_are_refused_in_one_line(case: str, leaf: str, reason: str) -> None:
    function, at = function_of(case, leaf)
    with pytest.raises(RuntimeError, match=rf"^vaez_kernels: [^\n]*{reason}[^\n]*$"):
        REFUSED[reason](function, at)


@each_leaf
@pytest.mark.parametrize("recording", [True, False])
def test_a_forward_mode_derivative_is_refused_whether_or_not_autograd_records(
    case: str, leaf: str, recording: bool
) -> None:
    function, at = function_of(case, leaf)
    with forward_ad.dual_level(), torch.set_grad_enabled(recording):
        dual = forward_ad.make_dual(at.detach(), torch.ones_like(at))
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            function(dual)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, at: grad(f)(at),
    "vmap": lambda f, at: vmap(f)(torch.stack([at, at])),
    "jacrev": lambda f, at: jacrev(f)(at),
    "functionalize": lambda f, at: functionalize(f)(at),
    "vmap of something else": lambda f, at: vmap(lambda s: s * f(at))(torch.ones(2)),
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if "mu" in tensors_of(case) and not OPS[CASES[case].op].LEAVES]
)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_is_refused_in_one_line_that_names_the_op(case: str, transform: str) -> None:
    function, at = function_of(case, "mu")
    with pytest.raises(RuntimeError, match=rf"^{op_of(case)}: torch\.func's .* it has no gradient"):
        TRANSFORMS[transform](function, at)


@pytest.mark.parametrize("case", [case for case in CASES if "noise" in tensors_of(case)])
@pytest.mark.parametrize("step", [-1, 2**32, 2**63 - 1])
def test_a_step_that_would_alias_another_is_refused(case: str, step: int) -> None:
    arguments = arguments_of(case)
    arguments["noise"][1] = step
    with pytest.raises(
        ValueError, match=rf"^{op_of(case)}: noise must hold a step .*, got {step}$"
    ):
        outputs_of(case, arguments)
    arguments["noise"][1] = step % 2**32
    outputs_of(case, arguments)


# Bad values of a tensor argument: how to make one, and the error that it must raise.
BAD: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "not a tensor": (lambda x: x.tolist(), TypeError, "must be a tensor"),
    "complex": (lambda x: x.to(torch.complex64), TypeError, r"must (be|have .* dtype)"),
    "one more dimension": (lambda x: x[None], ValueError, "must have"),
    "on another device": (lambda x: x.to("meta"), ValueError, r"must be on \w+'s? device"),
}


@pytest.mark.parametrize(
    ("case", "name", "bad"),
    [
        (case, name, bad)
        for case in CASES
        for name in tensors_of(case)
        for bad in BAD
        # The only tensor of an op may be on any device, and latents may have more dimensions.
        if len(tensors_of(case)) > 1 or bad != "on another device"
        if not (OPS[CASES[case].op] is latent and name == "mu" and bad == "one more dimension")
    ],
)
def test_an_op_names_the_tensor_that_it_refuses(case: str, name: str, bad: str) -> None:
    arguments = arguments_of(case)
    change, error, message = BAD[bad]
    # If one of two tensors is on another device, the error names both.
    named = rf"(?=.*\b{name}\b)\w+" if bad == "on another device" else name
    with pytest.raises(error, match=rf"^{op_of(case)}: {named} {message}"):
        outputs_of(case, arguments | {name: change(arguments[name])})


def sized(case: str) -> Iterator[tuple[str, int]]:
    """The dimensions of tensors whose size another tensor has, too, or is fixed by a decoder."""
    tensors = tensors_of(case)
    for name, x in tensors.items():
        others = {n for other in tensors if other != name for n in tensors[other].shape}
        for dim, size in enumerate(x.shape):
            if size in others:
                yield name, dim


@pytest.mark.parametrize(
    ("case", "name", "dim"), [(case, *where) for case in CASES for where in sized(case)]
)
def test_a_size_that_does_not_fit_is_refused(case: str, name: str, dim: int) -> None:
    arguments = arguments_of(case)
    smaller = arguments[name].narrow(dim, 0, arguments[name].shape[dim] - 1)
    with pytest.raises(ValueError, match=rf"^{op_of(case)}: \w+ must "):
        outputs_of(case, arguments | {name: smaller})


SETTINGS: dict[type, tuple[Any, str]] = {
    str: ("unknown", "must be one of .*, got 'unknown'"),
    int: (-1, "must be at least [01], got -1"),
}


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, n) for case in CASES for n, x in arguments_of(case).items() if type(x) in SETTINGS],
)
def test_an_op_names_the_setting_that_it_refuses(case: str, name: str) -> None:
    arguments = arguments_of(case)
    value, message = SETTINGS[type(arguments[name])]
    with pytest.raises(ValueError, match=rf"^{op_of(case)}: {name} {message}"):
        outputs_of(case, arguments | {name: value})


def without_gradient(case: str) -> Iterator[str]:
    """Floating-point tensors of a differentiable op to which no gradient flows."""
    leaves = OPS[CASES[case].op].LEAVES
    for name, x in tensors_of(case).items():
        if leaves and name not in leaves and x.is_floating_point():
            yield name


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in CASES for name in without_gradient(case)]
)
def test_a_gradient_that_does_not_flow_is_refused(case: str, name: str) -> None:
    arguments = arguments_of(case)
    with pytest.raises(ValueError, match=rf"^{op_of(case)}: {name} must not require a gradient"):
        outputs_of(case, arguments | {name: arguments[name].requires_grad_()})


@pytest.mark.parametrize(
    "case",
    # The rows of a mixture are its components, of which it needs one.
    [
        case
        for case in CASES
        if CASES[case].shape[1] in outputs_of(case, arguments_of(case))[0].shape
    ],
)
def test_no_rows_give_empty_results_and_gradients(case: str) -> None:
    samples, _, *rest = CASES[case].shape
    empty = replace(CASES[case], shape=(samples, 0, *rest))
    arguments = OPS[empty.op].inputs(empty)
    wanted = [
        tuple(0 if n == CASES[case].shape[1] else n for n in result.shape)
        for result in outputs_and_gradients(case, arguments_of(case))
    ]
    assert [tuple(r.shape) for r in outputs_and_gradients(case, arguments)] == wanted
