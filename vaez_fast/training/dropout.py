"""Dropout that draws from the noise stream, so that a resumed run repeats it bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vaez_kernels import uniform

# z takes the samples 0, 1, … of a training step's noise; each call of dropout takes MOST_SAMPLES
# from FIRST on.
FIRST, MOST_SAMPLES = 2**31, 2**16

# The functions. Those with dimensions drop whole channels: one number decides what lies behind the
# first two of their input's dimensions, of which there must be so many.
DROPOUTS: dict[Callable[..., Tensor], tuple[int, ...]] = {
    F.dropout: (),
    F.dropout1d: (3,),
    F.dropout2d: (3, 4),  # (N, C, L) as in PyTorch
    F.dropout3d: (5,),
}


class StreamDropout(TorchFunctionMode):
    """A block in which the dropout of `torch.nn.functional` takes its numbers from `noise`.

    Args:
        noise: (2,) int64, that of the training step.
        rows: this rank's rows of the batch: an element's number depends on its row in the whole
            batch, and not on the number of ranks.
    """

    def __init__(self, noise: Tensor, rows: range) -> None:
        super().__init__()
        self.noise, self.rows, self.calls = noise, rows, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in DROPOUTS:
            return self._dropout(DROPOUTS[func], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self,
        dims: tuple[int, ...],
        x: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0.0:
            return x
        batch = len(self.rows)
        if x.dim() == 0 or x.shape[0] % batch:
            raise ValueError(
                f"dropout in a training step needs an input whose first dimension is the batch "
                f"({batch} rows, or that times the samples of z), got shape {tuple(x.shape)}"
            )
        if dims and x.dim() not in dims:
            raise ValueError(
                f"dropout of channels in a training step needs an input of "
                f"{' or '.join(map(str, dims))} dimensions, got shape {tuple(x.shape)}"
            )
        kept = x.shape[:2] if dims else x.shape
        samples, columns = x.shape[0] // batch, math.prod(kept[1:])
        u = uniform(
            *(self.noise, samples, batch, columns),
            row_offset=self.rows.start,
            sample_offset=FIRST + MOST_SAMPLES * self.calls,
        )
        self.calls += 1
        mask = (u >= p).view(*kept, *[1] * (x.dim() - len(kept))).to(x.dtype)
        scaled = x * mask if p == 1.0 else x * mask * (1.0 / (1.0 - p))
        return x.copy_(scaled) if inplace else scaled


class RefusedDraws(TorchDispatchMode):
    """A block in which drawing from PyTorch's generator raises ValueError."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        _check_draw(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def check_draws(graph: GraphModule) -> None:
    """Check that a traced step draws no number from PyTorch's generator.

    Raises:
        ValueError: it does; a resumed run would draw others.
    """
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            _check_draw(node.target, node.args, node.kwargs)


def _check_draw(op: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return
    # Attention is among the operators that draw, although it only does so for its own dropout.
    for at, argument in enumerate(op._schema.arguments):
        if argument.name == "dropout_p":
            given = args[at] if at < len(args) else kwargs.get("dropout_p", argument.default_value)
            if given == 0.0:
                return
    raise ValueError(
        f"this model draws from PyTorch's generator ({op}), so that a resumed run would not repeat "
        "it; a posterior draws z from the noise stream, and so does torch.nn.Dropout in forward"
    )
