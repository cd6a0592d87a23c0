"""What is left open: by the documentation of a unit, or by the order of stores."""

from enum import Enum


class Units(Enum):
    """Which results approximate units return within their documented error: see approximate.py."""

    NEAREST = "nearest"
    UP = "up"
    DOWN = "down"
