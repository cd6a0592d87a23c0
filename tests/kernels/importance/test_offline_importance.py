"""Importance sampling in one kernel, compiled for GPUs without a GPU; see offline.py.

The decoder of each preset stays on the chip: nothing spills, all products are on tensor cores, and
the other data of a program fits in shared memory.
"""

from __future__ import annotations

import pytest
import torch

from bench.bounds import builds
from bench.bounds.builds import Binary
from tests.kernels.offline import assert_in_registers, built
from vaez_fast.model import MODELS, VAE
from vaez_kernels import interpreting
from vaez_kernels.backend import TRITON_VERSION, triton
from vaez_kernels.importance import kernel as decoder_kernel
from vaez_kernels.importance.perceptron import taken_apart
from vaez_kernels.importance.twin import Samples

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels"),
]

IMAGES, SAMPLES = 1001, 5000
NVIDIA = [gpu for gpu in builds.TARGETS if gpu.startswith("sm_")]
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
PRODUCTS = {
    "sm_80": "HMMA",
    "sm_90": "HGMMA|HMMA",
    "sm_100": "UTCHMMA|HMMA",
    "gfx942": r"v_mfma_f32_\d+x\d+x\d+_(bf16|xf32)",
}


def binary(model: str, precision: str, gpu: str, monkeypatch: pytest.MonkeyPatch) -> Binary:
    monkeypatch.setattr(decoder_kernel, "architecture", lambda _: gpu)
    vae = VAE(model)
    layers = taken_apart(vae.decoder)
    assert layers is not None
    latents = torch.zeros(IMAGES, vae.architecture.latent)
    x, noise = torch.zeros(IMAGES, 784, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    of = Samples(latents, latents, x, noise, SAMPLES, 0, 0)
    args = (of, layers, precision)
    return built(decoder_kernel.launch_decoder, decoder_kernel.decoder_kernel, args, gpu)


def assert_stays_on_chip(compiled: Binary, gpu: str) -> None:
    assert_in_registers(compiled)
    assert compiled.shared <= SHARED[gpu]
    assert compiled.count(PRODUCTS[gpu]) > 0
    # No library sine or logarithm: the noise is computed with polynomials.
    assert compiled.count(r"MUFU\.(SIN|COS|LG2)|v_(sin|cos|log)_") == 0
    # The layers of a next step are copied to shared memory while this one is computed.
    if gpu.startswith("sm_") and (gpu != "sm_100" or TRITON_VERSION >= (3, 8)):
        assert compiled.count("LDGSTS") > 0


def test_a_tile_takes_one_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread has 32 pixels of a tile of 128 × 64. With a polynomial of degree nine for each of
    # them, 994 FFMA were counted. One logarithm for all needs 7.4 fewer a pixel.
    compiled = binary("altosaar", "bfloat16", "sm_90", monkeypatch)
    assert compiled.count("FFMA") <= 994 - 6 * 32


@pytest.mark.parametrize("gpu", list(builds.TARGETS))
@pytest.mark.parametrize("model", list(MODELS))
def test_bfloat16_decoders_stay_on_the_chip(
    model: str, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = binary(model, "bfloat16", gpu, monkeypatch)
    assert_stays_on_chip(compiled, gpu)
    if gpu == "sm_90":
        assert compiled.count("HGMMA") > 0  # products of a warp group, not of a warp


@pytest.mark.parametrize(
    ("model", "gpu"),
    [("altosaar", gpu) for gpu in NVIDIA] + [("burda", "sm_90"), ("lyeoni", "sm_90")],
)
def test_tf32_decoders_stay_on_the_chip(
    model: str, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_stays_on_chip(binary(model, "tf32", gpu, monkeypatch), gpu)
