"""The scalar types of PTX. Registers hold their bits as unsigned numbers, one for each lane."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Type(NamedTuple):
    """`dtype` is the numpy type of the bits: unsigned for bfloat16 and TF32, which numpy lacks."""

    name: str
    kind: str  # "u", "s", "b", "f" or "pred"
    bits: int
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return self.bits // 8

    @property
    def unsigned(self) -> np.dtype[Any]:
        return STORAGE[self.bits]


STORAGE = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)} | {1: np.dtype(bool)}
TYPES = {
    f"{kind}{bits}": Type(f"{kind}{bits}", kind, bits, np.dtype(f"{letter}{bits // 8}"))
    for kind, letter in (("u", "u"), ("b", "u"), ("s", "i"))
    for bits in (8, 16, 32, 64)
}
TYPES |= {
    f"f{bits}": Type(f"f{bits}", "f", bits, np.dtype(f"f{bits // 8}")) for bits in (16, 32, 64)
}
TYPES["bf16"] = Type("bf16", "f", 16, np.dtype("u2"))
for packed in ("f16x2", "bf16x2", "tf32"):
    TYPES[packed] = Type(packed, "f", 32, np.dtype("u4"))
TYPES["pred"] = Type("pred", "pred", 1, np.dtype(bool))

U32, U64, B32, PRED = TYPES["u32"], TYPES["u64"], TYPES["b32"], TYPES["pred"]
