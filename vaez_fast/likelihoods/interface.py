"""What a likelihood is to the engine, and how samples of z that were rows become a dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

from vaez_kernels.checks import check_count

OP = "samples_apart"


class Likelihood(Protocol):
    """p(x|z) of a batch, as a decoder returns it: parameters with B rows, or with (S, B)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """x (B, *event) → log p(x|z) in nats, summed over the event: (B,), or (S, B).

        float32, and float64 for float64 parameters.
        """
        ...

    @property
    def mean(self) -> Tensor:
        """E[x|z], (B, *event) or (S, B, *event)."""
        ...

    def row_dims(self) -> Mapping[str, int]:
        """Fields that can have rows, each with the number of dimensions that it then has.

        The first one always has rows. `samples_apart` reads this.
        """
        ...


AnyLikelihood = TypeVar("AnyLikelihood", bound=Likelihood)


def samples_apart(likelihood: AnyLikelihood, num_samples: int) -> AnyLikelihood:
    """The likelihood of a decoder that got S·B rows of z, sample by sample, with S apart.

    Tensors (S·B, …) become views (S, B, …). A field without rows stays as it is: it is no tensor,
    it has fewer dimensions than with rows (a scale of each channel), or it has one row for all. So
    does one with B rows (library sizes of the batch), which broadcasts over samples. Where a tensor
    has rows, its dimensions say so; that a size happens to be S·B decides nothing.

    Args:
        likelihood: a dataclass whose parameters have rows (S·B) and no samples yet.
        num_samples: S.

    Raises:
        TypeError, ValueError: it is no likelihood, or its rows are not S·B.
    """
    check_count(OP, "num_samples", num_samples, least=1)
    if not (dataclasses.is_dataclass(likelihood) and hasattr(likelihood, "row_dims")):
        raise TypeError(
            f"{OP}: likelihood must be a dataclass with log_prob, mean and row_dims, "
            f"got {type(likelihood).__name__}"
        )
    dims = likelihood.row_dims()
    first = next(iter(dims))
    rows = getattr(likelihood, first).shape[0]
    if rows % num_samples != 0:
        raise ValueError(
            f"{OP}: {first} must have a multiple of num_samples = {num_samples} rows, got {rows}"
        )
    batch = rows // num_samples
    changed: dict[str, Any] = {}
    for name, with_rows in dims.items():
        value = getattr(likelihood, name)
        if not isinstance(value, Tensor) or value.dim() < with_rows:
            continue
        if value.dim() > with_rows:
            raise ValueError(
                f"{OP}: {name} must have at most {with_rows} dimensions, got {tuple(value.shape)}"
            )
        if value.shape[0] == rows:
            changed[name] = value.unflatten(0, (num_samples, batch))
        elif value.shape[0] not in (1, batch):
            raise ValueError(
                f"{OP}: {name} must have as many rows as {first}, {rows}, got {tuple(value.shape)}"
            )
    apart: AnyLikelihood = dataclasses.replace(likelihood, **changed)
    return apart
