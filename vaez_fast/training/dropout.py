"""Dropout that draws from the noise stream, so that a resumed run repeats it bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vaez_kernels import uniform

# z takes the samples 0, 1, … of a training step's noise; each call of dropout takes MOST_SAMPLES
# from FIRST on.
FIRST, MOST_SAMPLES = 2**31, 2**16

# The function, and how many dimensions of its input each drawn number decides: those behind the
# channels, which are dropped as a whole.
DROPOUTS: dict[Callable[..., Tensor], int] = {
    F.dropout: 0,
    F.dropout1d: 1,
    F.dropout2d: 2,
    F.dropout3d: 3,
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
        self, shared: int, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0.0:
            return x
        batch = len(self.rows)
        if x.dim() == 0 or x.shape[0] % batch:
            raise ValueError(
                f"dropout in a training step needs an input whose first dimension is the batch "
                f"({batch} rows, or that times the samples of z), got shape {tuple(x.shape)}"
            )
        kept = x.shape[: x.dim() - shared]
        samples, columns = x.shape[0] // batch, math.prod(kept[1:])
        u = uniform(
            *(self.noise, samples, batch, columns),
            row_offset=self.rows.start,
            sample_offset=FIRST + MOST_SAMPLES * self.calls,
        )
        self.calls += 1
        mask = (u >= p).view(*kept, *[1] * shared).to(x.dtype)
        scaled = x * mask if p == 1.0 else x * mask * (1.0 / (1.0 - p))
        return x.copy_(scaled) if inplace else scaled


def check_draws(graph: GraphModule) -> None:
    """Check that a traced step draws no number from PyTorch's generator.

    Raises:
        ValueError: it does; a resumed run would draw others.
    """
    for node in graph.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and not _drops_nothing(node):
            raise ValueError(
                f"this model draws from PyTorch's generator ({node.target}), so that a resumed run "
                "would not repeat it: draw with vaez_fast.ops.normal or uniform, or drop out with "
                "torch.nn.Dropout, which take the noise stream"
            )


def _drops_nothing(node: Node) -> bool:
    # Attention is among the operators that draw, although it only does so for its own dropout.
    assert isinstance(node.target, torch._ops.OpOverload)
    for at, argument in enumerate(node.target._schema.arguments):
        if argument.name == "dropout_p":
            given = node.args[at] if at < len(node.args) else node.kwargs.get("dropout_p")
            return bool((argument.default_value if given is None else given) == 0.0)
    return False
