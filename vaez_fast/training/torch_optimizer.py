"""Optimisers of torch.optim as part of a compiled step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .optimizer import Adam, Optimizer

Make = Callable[..., torch.optim.Optimizer]


def optimizer_of(make: Make) -> Optimizer | TorchOptimizer:
    """The update rule of a class of torch.optim, or of a `functools.partial` of one.

    Adam and AdamW become our own `Adam`, whose numbers are the same up to rounding; its bias
    corrections are not computed again for each weight.

    Raises:
        TypeError, ValueError: it makes no optimiser of torch.optim, or one that a compiled step
            cannot contain.
    """
    if "lr" in getattr(make, "keywords", {}):
        raise ValueError("optimizer: leave out lr; the learning rate is an argument of its own")
    made = _made(make, torch.zeros(2, 2, requires_grad=True))
    group = made.param_groups[0]
    ours = type(made) in (torch.optim.Adam, torch.optim.AdamW) and not (
        group["amsgrad"] or group["maximize"] or group["differentiable"]
    )
    decoupled = isinstance(made, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
    if ours and (decoupled or group["weight_decay"] == 0):
        beta1, beta2 = group["betas"]
        return Adam(beta1, beta2, group["eps"], group["weight_decay"])
    return TorchOptimizer(make)


class TorchOptimizer:
    """Any optimiser of torch.optim that treats each weight on its own and has no closure.

    Args:
        make: a class of torch.optim, or a `functools.partial` of one. The learning rate comes from
            the engine's schedule.

    Raises:
        TypeError, ValueError: see `optimizer_of`.
    """

    def __init__(self, make: Make) -> None:
        self.make = make
        made = _made(make, torch.zeros(2, 2, requires_grad=True))
        if not hasattr(made, "_init_group") or isinstance(made, torch.optim.LBFGS):
            raise ValueError(f"optimizer {type(made).__name__} cannot be part of a compiled step")
        group = made.param_groups[0]
        if group.get("momentum") and group.get("dampening"):
            raise ValueError("optimizer: SGD with dampening treats its first step differently")
        weight = torch.zeros(2, 2)
        starts = [self._state(weight, lr) for lr in (1e-3, 1e-2)]
        if any(not torch.equal(starts[0][name], starts[1][name]) for name in starts[0]):
            raise ValueError(
                f"optimizer {type(made).__name__} cannot be part of a compiled step: its initial "
                "state depends on the learning rate, which follows a schedule here"
            )

    def __repr__(self) -> str:
        group = _made(self.make, torch.zeros(2, 2)).param_groups[0]
        of = {name: value for name, value in group.items() if name not in ("params", "lr")}
        return f"{type(_made(self.make, torch.zeros(2, 2))).__name__}({of})"

    def table(self, rates: Tensor) -> Tensor:
        """(T,) rates → (T, 1) float32, the same."""
        return rates[:, None].float()

    def moments_of(self, weight: Tensor) -> list[Tensor]:
        """The state that the optimiser keeps for a weight at the start."""
        return list(self._state(weight).values())

    def update(
        self, weight: Tensor, gradient: Tensor, moments: list[Tensor], row: list[Tensor]
    ) -> None:
        """One step in place; gradient float32, `row` the step's learning rate."""
        names = list(self._state(torch.zeros(weight.shape, device="cpu")))
        parameter = weight.detach()
        made = _made(self.make, parameter)
        # Where lr requires a gradient, torch.optim multiplies by it; elsewhere SGD reads its value.
        made.param_groups[0]["lr"] = row[0].detach().requires_grad_()
        made.state[parameter] = state = dict(zip(names, moments, strict=True))
        parameter.grad = gradient
        with torch.no_grad(), _as_if_compiling(), TensorFactors():
            made.step()
        parameter.grad = None
        for name, moment in zip(names, moments, strict=True):
            if state[name] is not moment:
                moment.copy_(state[name])

    def _state(self, weight: Tensor, lr: float = 1e-3) -> dict[str, Tensor]:
        parameter = weight.detach().clone()
        made = _made(self.make, parameter, lr)
        parameter.grad = torch.zeros_like(parameter)
        init: Any = made._init_group  # type: ignore[attr-defined]
        lists = len(inspect.signature(init).parameters) - 1
        init(made.param_groups[0], *[[] for _ in range(lists)])
        state = dict(made.state[parameter])
        if made.param_groups[0].get("momentum") and isinstance(made, torch.optim.SGD):
            # SGD starts it as a copy of the first gradient, which momentum · 0 + gradient equals.
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}


class TensorFactors(TorchFunctionMode):
    """A block in which `alpha` and `value` of in-place updates may be tensors.

    PyTorch takes numbers there, and would read the tensor's value.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        factor = given.get("alpha", given.get("value"))
        if isinstance(factor, Tensor):
            if func in (Tensor.add_, Tensor.add):
                return func(args[0], factor * args[1])
            if func in (Tensor.addcdiv_, Tensor.addcdiv):
                return (Tensor.add_ if func is Tensor.addcdiv_ else Tensor.add)(
                    args[0], factor * args[1] / args[2]
                )
            if func in (Tensor.addcmul_, Tensor.addcmul):
                return (Tensor.add_ if func is Tensor.addcmul_ else Tensor.add)(
                    args[0], factor * args[1] * args[2]
                )
        return func(*args, **given)


def _made(make: Make, parameter: Tensor, lr: float = 1e-3) -> torch.optim.Optimizer:
    made = make([parameter], lr=lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must be a class of torch.optim or a functools.partial of one, got "
            f"{type(made).__name__}"
        )
    # One loop for each weight, which inductor fuses; rates and counts stay tensors.
    for setting, value in {"foreach": False, "fused": False, "capturable": True}.items():
        if setting in made.param_groups[0]:
            made.param_groups[0][setting] = value
    return made


@contextmanager
def _as_if_compiling() -> Iterator[None]:
    # torch.optim then reads no tensor's value, and lets "capturable" pass on a CPU.
    before = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_compiling = before
