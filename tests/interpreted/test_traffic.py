"""Bytes that the kernels load and store, counted in the interpreter, against the least possible.

The floor is every input element read once and every output element written once. The key and the
step, 16 bytes a program, are counted separately, because they stay in the caches of any GPU. The
same hook, used on addresses that no memory backs, also proves that offsets have 64 bits.

tests/kernels/test_interpreter.py runs this in a separate process.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.interpreted.watch import (
    Access,
    Traffic,
    accesses,
    addresses,
    far_launch,
    tensors,
    touched,
)
from tests.kernels import floors
from tests.kernels.helpers import MODES, call, latents
from vaez_kernels import interpreting, latent, launch, noise, noise_key, normal, use_backend
from vaez_kernels.latent import formulas

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

KEY = noise_key(17, "train", 9)
each_mode = pytest.mark.parametrize("mode", list(MODES))


@each_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_every_byte_moves_once(mode: str, samples: int, dtype: torch.dtype) -> None:
    rows, columns = 37, 20  # the last block is not full
    write_z, kl = MODES[mode]
    mu, logvar = latents(rows, columns, dtype)
    forward, backward = floors.latent(mode, mu, samples)
    with accesses() as seen:
        z, kl_rows = call(mode, mu, logvar, KEY, samples)
    drawing = write_z or kl in formulas.MONTE_CARLO
    programs = -(-rows // launch.USUAL.block(columns)["BLOCK_ROWS"])
    key = 16 * programs
    assert Traffic.of(seen) == Traffic(*forward, key=drawing * key)

    outputs = [x for x in (z, kl_rows) if x is not None]
    grads = [torch.ones_like(x) for x in outputs]
    with accesses() as seen:
        torch.autograd.grad(outputs, (mu, logvar), grads)
    assert Traffic.of(seen) == Traffic(*backward, key=drawing * key)


@each_mode
@pytest.mark.parametrize("wanted", ["mu", "logvar"])
def test_a_gradient_that_nobody_wants_moves_no_bytes(mode: str, wanted: str) -> None:
    rows, columns, samples = 7, 20, 3
    write_z, kl = MODES[mode]
    elements = 4 * rows * columns
    mu, logvar = latents(rows, columns)
    (logvar if wanted == "mu" else mu).requires_grad_(False)
    outputs = [x for x in call(mode, mu, logvar, KEY, samples) if x is not None]
    with accesses() as seen:
        torch.autograd.grad(
            outputs, mu if wanted == "mu" else logvar, [torch.ones_like(x) for x in outputs]
        )
    traffic = Traffic.of(seen)
    monte_carlo = kl in formulas.MONTE_CARLO
    inputs = monte_carlo + (monte_carlo or wanted == "logvar" or kl == "analytic")
    assert traffic.stored == elements
    assert traffic.loaded == (inputs + write_z * samples) * elements + (kl != "none") * 4 * rows


def test_the_stream_reads_nothing_but_its_key() -> None:
    with accesses() as seen:
        normal(KEY, 3, 37, 20)
    traffic = Traffic.of(seen)
    assert (traffic.loaded, traffic.stored) == floors.noise(3, 37, 20)


def test_more_samples_than_a_program_draws_read_the_inputs_again() -> None:
    # Samples are spread over programs, so inputs are read again for each eight samples.
    mu, logvar = latents(37, 20)
    with accesses() as seen:
        call("rsample", mu, logvar, KEY, 17)
    elements = 4 * 37 * 20
    assert Traffic.of(seen)[:2] == (3 * 2 * elements, 17 * elements)


# The last sample of the last rows, with 100 samples of 2²⁷ + 5 rows of 128 columns. The elements of
# one sample, those of all samples, the rows of all samples, and rows times quads of four each
# exceed 2³².
FAR_ROWS, FAR_SAMPLES = 2**27 + 5, 100


BLOCK = launch.Tile(1024, 4).block(128)
LAST = -(-FAR_ROWS // 8) - 1  # 8 rows a program
LAST_ROWS = range(8 * LAST, FAR_ROWS)
LAST_SAMPLE = FAR_SAMPLES - 1
# The arguments that a launch derives from these shapes, in units of four elements: lines, positions
# and quads of a row, samples, offsets, 1/S, the clamp and the free bits; then strides.
UNIT = 4
NUMBERS = (FAR_ROWS, 128 // UNIT, 32, FAR_SAMPLES, 0, 0, 1.0, -math.inf, math.inf, 0.0)
OF_MU, OF_LOGVAR, DENSE, ABSENT = (0, 256 // UNIT, 0), (0, 32, 0), (0, 32, 0), (0, 0, 0)
FLAGS = {
    "MU": 1,
    "LOGVAR": 1,
    "PRIOR_MU": 0,
    "PRIOR_LOGVAR": 0,
    "UNIT": UNIT,
    "LINE_UNIT": 1,
    "ROWS": True,
    "WHOLE": True,
    "KL": 2,
    "OVER": 0,
    "PRIOR": False,
    "CLAMP": False,
    "FREE": False,
    "ONE_COLUMN": True,
}


def _assert_stores_the_stream(seen: list[Access]) -> None:
    """The first store is eps of the last rows: key, step, mu and logvar are read as zeros."""
    key = torch.zeros(2, dtype=torch.int64)
    with use_backend("torch"):
        eps = normal(key, 1, 5, 128, row_offset=8 * LAST, sample_offset=LAST_SAMPLE)
    (first, *_) = (access for access in seen if access.kind == "store")
    assert np.array_equal(first.values, eps.numpy().ravel())


def test_forward_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    mu, logvar, z, kl = tensors(4)
    flags = FLAGS | {"Z": 1, "WRITE_Z": True, "SAMPLES": 1, "ONE_SAMPLE": False}
    args = (
        *(mu, logvar, mu, mu, KEY, z, kl, 1, *NUMBERS),
        *(*OF_MU, *OF_LOGVAR, *ABSENT, *ABSENT, *DENSE),
    )
    program = LAST * FAR_SAMPLES + LAST_SAMPLE  # samples vary fastest
    seen = far_launch(
        monkeypatch,
        latent.kernel.latent_forward_kernel,
        program,
        *args,
        **flags,
        **BLOCK,
    )
    assert touched(seen, "load", 4) == [
        addresses(mu, LAST_ROWS, 128, 256, 0),
        addresses(logvar, LAST_ROWS, 128, 128, 0),
    ]
    assert touched(seen, "store", 4) == [
        addresses(z, LAST_ROWS, 128, 128, LAST_SAMPLE * FAR_ROWS * 128),
        addresses(kl, LAST_ROWS, 1, 1, LAST_SAMPLE * FAR_ROWS),
    ]
    _assert_stores_the_stream(seen)


def test_backward_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar = tensors(6)
    needs = {"MU": True, "LOGVAR": True, "PRIOR_MU": False, "PRIOR_LOGVAR": False}
    flags = FLAGS | {"UPSTREAM": 1, "OUT": 1, "GRAD_Z": True, "ONE_SAMPLE": False}
    flags |= {f"NEED_{name}": need for name, need in needs.items()}
    args = (
        *(grad_z, grad_kl, mu, logvar, mu, mu, KEY, grad_mu, grad_logvar, mu, mu, *NUMBERS),
        *(*OF_MU, *OF_LOGVAR, *ABSENT, *ABSENT, *DENSE, *DENSE, FAR_ROWS * 128 // UNIT, 0, 1, 0),
    )
    seen = far_launch(
        monkeypatch,
        latent.kernel.latent_backward_kernel,
        LAST,
        *args,
        **flags,
        **BLOCK,
    )
    loads = [
        addresses(mu, LAST_ROWS, 128, 256, 0),
        addresses(logvar, LAST_ROWS, 128, 128, 0),
        addresses(grad_kl, LAST_ROWS, 1, 1, 0),
    ]
    loads += [
        addresses(grad_z, LAST_ROWS, 128, 128, s * FAR_ROWS * 128) for s in range(FAR_SAMPLES)
    ]
    assert touched(seen, "load", 4) == loads
    assert touched(seen, "store", 4) == [
        addresses(out, LAST_ROWS, 128, 128, 0) for out in (grad_mu, grad_logvar)
    ]


def test_the_stream_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    (out,) = tensors(1)
    program = LAST_SAMPLE * (LAST + 1) + LAST  # samples vary slowest here
    seen = far_launch(
        monkeypatch,
        noise.kernel.noise_kernel,
        program,
        KEY,
        out,
        FAR_ROWS,
        128 // UNIT,
        0,
        0,
        UNIT=UNIT,
        NORMAL=True,
        ONE_COLUMN=True,
        **BLOCK,
    )
    at = LAST_SAMPLE * FAR_ROWS * 128
    assert touched(seen, "store", 4) == [addresses(out, LAST_ROWS, 128, 128, at)]
    _assert_stores_the_stream(seen)
