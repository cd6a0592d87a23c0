"""Batches of a data set with several entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..sources import Entry, SparseRows
from ..system.world import ALONE, World


class Rows:
    """Batches of B rows of every entry, gathered on the device by the step's number.

    Args:
        data: the entries, all of N rows, on the device.
        batch_size: B ≤ N, of all ranks together.
        bare: whether the model gets the only entry itself instead of a dict.
        world: the ranks that share each batch; this rank takes its share of the rows.
    """

    def __init__(
        self, data: Mapping[str, Entry], batch_size: int, *, bare: bool, world: World = ALONE
    ) -> None:
        self.data, self.batch_size, self.bare, self.world = dict(data), batch_size, bare, world
        self.share = world.share(batch_size)
        self.size = len(next(iter(data.values())))
        self.order = torch.arange(self.size, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        first = next(iter(self.data.values()))
        return (first.tensors()[0] if isinstance(first, SparseRows) else first).device

    def entries(self) -> Mapping[str, Entry]:
        """All data by name."""
        return self.data

    @property
    def per_epoch(self) -> int:
        """Whole batches in an epoch; the remaining rows are left out until another epoch."""
        return self.size // self.batch_size

    def begin_epoch(self, order: Tensor) -> None:
        """Use the rows in `order`, a permutation (N,) int64."""
        self.order.copy_(order)

    def next(self) -> None:
        """The step's number selects the batch; nothing is to be done."""

    def inputs(self) -> list[Tensor]:
        """The tensors that a step's batch is taken from."""
        tensors = [self.order]
        for entry in self.data.values():
            tensors += entry.tensors() if isinstance(entry, SparseRows) else [entry]
        return tensors

    def rows(self, *inputs_and_step: Tensor) -> Any:
        """This rank's rows of a step's batch, a dict or the only entry."""
        order, *tensors, step = inputs_and_step
        first = step % self.per_epoch * self.batch_size
        chosen = first + torch.arange(self.share.start, self.share.stop, device=order.device)
        return self._gathered(tensors, order.index_select(0, chosen))

    def _gathered(self, tensors: list[Tensor], index: Tensor) -> Any:
        rest = iter(tensors)
        batch = {}
        for name, entry in self.data.items():
            if isinstance(entry, SparseRows):
                batch[name] = entry.gather([next(rest) for _ in entry.tensors()], index)
            else:
                batch[name] = next(rest).index_select(0, index)
        return next(iter(batch.values())) if self.bare else batch

    def at(self, index: Tensor) -> Any:
        """Some rows, in the form in which a model gets them: index (B,) int64."""
        return self._gathered(self.inputs()[1:], index)


class Loaded:
    """Batches that a `torch.utils.data.DataLoader`, or another iterable of batches, gives.

    Each batch is copied into the same tensors on the device. The loader decides how fast that goes,
    and in which order the data come: a resumed run starts it anew.

    Args:
        loader: gives dicts of tensors, or tensors; all batches have the shapes and dtypes of the
            first.
        device: where the model is.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(
                "data must be a tensor (N, …), a dict of tensors with N rows, or a DataLoader, got "
                f"{type(loader).__name__}"
            )
        self.loader, self.world = loader, ALONE
        first = next(iter(loader), None)
        if first is None:
            raise ValueError("data: the loader gave no batch")
        self.bare = isinstance(first, Tensor)
        self.held = {name: t.to(device, copy=True) for name, t in self._named(first).items()}
        self.batch_size = len(next(iter(self.held.values())))
        self.share = range(self.batch_size)
        self.per_epoch = self._count()
        self._batches: Iterator[Any] = iter(())

    def _count(self) -> int:
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError(
                "data: a loader must have a length, the number of its batches in an epoch"
            ) from None

    def _named(self, batch: Any) -> dict[str, Tensor]:
        if isinstance(batch, Tensor):
            return {"x": batch}
        if isinstance(batch, Mapping) and all(isinstance(t, Tensor) for t in batch.values()):
            return dict(batch)
        raise TypeError(
            "data: a loader must give tensors or dicts of tensors, got "
            f"{type(batch).__name__}; a collate_fn can make them"
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.held.values())).device

    def entries(self) -> Mapping[str, Tensor]:
        """The batch that is held, by name."""
        return self.held

    def begin_epoch(self) -> None:
        """Start the loader anew."""
        self._batches = iter(self.loader)

    def next(self) -> None:
        """Copy the loader's next batch to the device.

        Raises:
            ValueError: it has other entries, shapes or dtypes than the first.
        """
        named = self._named(next(self._batches))
        found, expected = _kinds(named), _kinds(self.held)
        if found != expected:
            raise ValueError(
                f"data: every batch must have the shapes of the first, {expected}, got {found}; "
                "drop_last=True leaves out a smaller last batch"
            )
        for name, t in named.items():
            self.held[name].copy_(t)

    def inputs(self) -> list[Tensor]:
        """The tensors that hold a batch."""
        return list(self.held.values())

    def rows(self, *inputs_and_step: Tensor) -> Any:
        """The batch, a dict or its only tensor."""
        batch = dict(zip(self.held, inputs_and_step[:-1], strict=True))
        return next(iter(batch.values())) if self.bare else batch


def _kinds(batch: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tuple(t.shape)} {t.dtype}" for name, t in batch.items()}
