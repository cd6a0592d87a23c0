"""A data set is a dict of entries that all have N rows: tensors, and `SparseRows`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vaez_kernels import uniform

from ..streams import HELD_OUT_ROWS
from .sparse import SparseRows

Entry = Tensor | SparseRows  # (N, ...) | (N, G)


def check_entries(data: Mapping[str, Entry], *, op: str = "check_entries") -> int:
    """N, the number of rows, of a data set whose entries fit each other.

    The values are read: on a CUDA device this waits for all earlier work.

    Args:
        data: the entries by name.
        op: who asks; the messages begin with it.

    Raises:
        TypeError: data is no dict, or an entry is neither a tensor nor `SparseRows`.
        ValueError: there is no entry, or one has no rows, no elements, another number of rows than
            the first, or a number that is not finite.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{op}: data must be a dict of tensors, got {type(data).__name__}")
    if not data:
        raise ValueError(f"{op}: data must have at least one entry")
    for name, entry in data.items():
        _check_entry(op, name, entry)
    sizes = {name: len(entry) for name, entry in data.items()}
    first = next(iter(sizes))
    for name, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(
                f"{op}: all entries must have the same number of rows, but {first} has "
                f"{sizes[first]} and {name} has {size}"
            )
    return sizes[first]


def _check_entry(op: str, name: str, entry: Entry) -> None:
    if not isinstance(entry, (Tensor, SparseRows)):
        raise TypeError(f"{op}: {name} must be a tensor or SparseRows, got {type(entry).__name__}")
    shape = tuple(entry.shape)
    if not shape or 0 in shape:
        raise ValueError(f"{op}: {name} must have shape (N, ...) without a 0, got {shape}")
    values = entry.values if isinstance(entry, SparseRows) else entry
    # An overflow of the sum is not finite either, so only then is each element looked at.
    if values.is_floating_point() and not bool(values.sum().isfinite()):
        broken = len(values) - int(values.isfinite().reshape(len(values), -1).all(1).sum())
        if broken:
            raise ValueError(f"{op}: {name} has NaN or infinity in {broken} of {len(values)} rows")


def take(data: Mapping[str, Entry], index: Tensor) -> dict[str, Entry]:
    """Some rows of every entry, in the order of index (B,) int64 on any device."""
    return {
        name: entry.take(index.to(entry.device))
        if isinstance(entry, SparseRows)
        else entry[index.to(entry.device)]
        for name, entry in data.items()
    }


def split(
    data: Mapping[str, Entry], fraction: float, seed: int = 0
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Hold out some rows, drawn without replacement: (training, held_out).

    Each row has a number of the noise stream (`HELD_OUT_ROWS`). The rows with the smallest numbers
    are held out. So a larger fraction holds out the same rows and more. Both parts keep the order
    of the rows in `data`.

    Args:
        data: the entries by name.
        fraction: the share that is held out, above 0 and below 1; the number is rounded, and each
            part has at least one row.
        seed: 0 … 2³² − 1.

    Raises:
        TypeError, ValueError: as `check_entries`; N is 1, or an argument is out of range.
    """
    N = check_entries(data, op="split")
    if not 0 < fraction < 1:
        raise ValueError(f"split: fraction must be above 0 and below 1, got {fraction}")
    if N < 2:
        raise ValueError("split: data must have at least two rows, got 1")
    held_out = min(max(round(N * fraction), 1), N - 1)
    u = uniform(HELD_OUT_ROWS.key(seed), 1, N, 1).flatten()
    # Stable, because some of many float32 numbers are equal.
    order = u.argsort(stable=True)
    return take(data, order[held_out:].sort().values), take(data, order[:held_out].sort().values)
