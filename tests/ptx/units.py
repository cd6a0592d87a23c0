"""Selects among the results that NVIDIA's documentation allows."""

from enum import Enum


class Units(Enum):
    """Which errors approximate units make (approximate.py), and which store wins (shared.py)."""

    NEAREST = "nearest"
    UP = "up"
    DOWN = "down"
