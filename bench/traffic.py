"""Bytes that an op must move at least: every input read once, every output written once."""

from __future__ import annotations


def rsample_kl_floor(samples: int, rows: int, columns: int, itemsize: int, backward: bool) -> int:
    """Bytes of `rsample_kl` with the analytic KL, eps drawn on the chip and drawn again backwards.

    Forward: mu and logvar in, z and a float32 KL for each row out. Backward: mu, logvar, the
    gradients of z and of the KL in, two gradients out. With float32 and S = 1: 12 and 20 bytes an
    element, and 4 a row each.
    """
    elements = rows * columns
    forward = itemsize * (2 + samples) * elements + 4 * rows
    return forward + (itemsize * (4 + samples) * elements + 4 * rows if backward else 0)
