"""A few real digits, for tests that train."""

from __future__ import annotations

from vaez_fast.data import Split


def first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])
