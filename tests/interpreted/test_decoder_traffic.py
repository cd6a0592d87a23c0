"""Addresses of the decoder's kernel beyond 32 bits, without the memory behind them.

tests/kernels/test_interpreter.py runs this in a separate process.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreted.watch import addresses, far_launch, tensors, touched
from vaez_kernels import interpreting, noise_key
from vaez_kernels.importance import kernel as decoder_kernel

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

# The last of 2²⁸ + 5 images of 16 latents and 16 pixels, and the tenth of many tiles of samples.
IMAGES, TILE = 2**28 + 5, 9
LAST = range(IMAGES - 1, IMAGES)


def test_images_beyond_2_to_the_31_elements_are_read_at_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mu, logvar, *layers = tensors(8)
    x = torch.zeros(1, dtype=torch.uint8)
    sums = tensors(3)
    seen = far_launch(
        monkeypatch,
        decoder_kernel.decoder_kernel,
        (IMAGES - 1, TILE, 0),
        *(mu, logvar, noise_key(1, "evaluate"), x, *layers, *sums),
        *(IMAGES, 2**28, 2**40, 0),
        **dict.fromkeys(("D", "H1", "H2", "P", "WIDTH_D", "WIDTH_H2"), 16),
        **{f"BLOCK_{name}": 16 for name in "SHP"},
        STAGES=1,
        X_STRIDE=24,
        TANH=False,
        BFLOAT16=False,
        PRECISION="ieee",
    )
    assert touched(seen, "load", 4)[:2] == [addresses(t, LAST, 16, 16, 0) for t in (mu, logvar)]
    assert touched(seen, "load", 1) == [addresses(x, LAST, 16, 24, 0)]
    wanted = [addresses(t, LAST, 1, 1, TILE * IMAGES) for t in sums]
    assert touched(seen, "store", 4) == wanted
