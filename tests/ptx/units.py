"""Selects among the results that NVIDIA's documentation allows."""

from enum import Enum


class Units(Enum):
    """Which results approximate units return within their documented error: see approximate.py."""

    NEAREST = "nearest"
    UP = "up"
    DOWN = "down"
