"""Importance-sampled log p(x) of altosaar's VAE, 5,000 samples an image, against textbook code.

All providers decode as many rows at once. Times are of a few images; images/s is what scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from bench.timing.building import Maker, build
from bench.timing.clock import CLOCK, available_device
from bench.timing.rivals import NO_BFLOAT16, NO_COMPILER, NO_GPU
from bench.timing.rows import Bench, Group, Rival
from vaez_fast.model import VAE
from vaez_kernels import importance, importance_log_likelihood, noise_key, reference
from vaez_kernels.backend import has_fast_bfloat16
from vaez_kernels.compiler import has_cpu_compiler
from vaez_kernels.error_bounds import Check, worst
from vaez_kernels.importance.case import chunked_log_likelihood as textbook

SAMPLES = 5_000
IMAGES = {"cpu": 10, "cuda": 1_000}
QUICK_SAMPLES, QUICK_IMAGES = 256, 8
CHECKED = 2  # images, in float64
# What log p(x) of these images may err by, in nats, near −400. Sums in float32 of 784 terms and
# three layers of products err by 1e-4 (measured). bfloat16 errs by 0.07, with either sign;
# reports/likelihood shows how little the mean over images errs.
TOLERANCE = {"float32": 1e-3, "tf32": 0.1, "bfloat16": 0.25}

CPU_PROVIDERS = ("eager", "compiled", "float32", "bfloat16", "kernel bfloat16")
CUDA_PROVIDERS = (
    "eager",
    "compiled",
    "layers float32",
    "layers bfloat16",
    "kernel tf32",
    "kernel bfloat16",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cuda = available_device().type == "cuda"
    metafunc.parametrize("provider", CUDA_PROVIDERS if cuda else CPU_PROVIDERS)


@pytest.mark.benchmark(timer=CLOCK)
def test_importance(benchmark: Any, bench: Bench, provider: str) -> None:
    group = bench.measured("importance", partial(_group, bench), budget=10.0)
    bench.record(benchmark, group, provider)


class ImportanceContest:
    """The model, a few images, and the truth about the first of them."""

    def __init__(self, bench: Bench) -> None:
        self.device = bench.device
        self.samples = QUICK_SAMPLES if bench.quick else SAMPLES
        self.images = QUICK_IMAGES if bench.quick else IMAGES[bench.device.type]
        generator = torch.Generator().manual_seed(0)
        self.vae = VAE("altosaar").requires_grad_(False)
        for p in self.vae.decoder.parameters():  # as far from their start as training takes them
            p.mul_(1.5)
        self.noise = noise_key(0, "evaluate")
        latents = self.vae.architecture.latent
        self.mu = torch.randn(self.images, latents, generator=generator)
        self.logvar = torch.randn(self.images, latents, generator=generator) - 1.0
        u = torch.rand(self.images, 784, generator=generator)
        self.x = (u < 0.13).to(torch.uint8)
        eps = reference.normal(self.noise, self.samples, CHECKED, latents)
        wide = VAE("altosaar").requires_grad_(False).double()
        wide.load_state_dict(self.vae.state_dict())
        decoder = torch.nn.Sequential(
            *(_exact(m) if isinstance(m, torch.nn.Linear) else m for m in wide.decoder)
        )
        of_first = (self.mu[:CHECKED], self.logvar[:CHECKED], self.x[:CHECKED])
        log_weight, _ = reference.importance_log_weights(decoder, *of_first, eps)
        self.truth = torch.logsumexp(log_weight, 0) - math.log(self.samples)
        self.eps = eps.float()
        self.vae.to(self.device)
        tensors = (self.mu, self.logvar, self.x, self.noise)
        self.mu, self.logvar, self.x, self.noise = (t.to(self.device) for t in tensors)

    def ours(self, precision: str) -> Rival:
        args = (self.vae.decoder, self.mu, self.logvar, self.x, self.noise, self.samples, precision)
        return self.rival(
            partial(importance_log_likelihood, *args),
            importance_log_likelihood(*args)[:CHECKED],
            precision,
        )

    def layers(self, precision: str) -> Rival:
        """Ours without the kernel that goes from noise to weight."""
        rival = self.ours(precision)
        work = rival.work
        assert work is not None

        def by_layers() -> object:
            with patch.object(importance, "tile_for", lambda *_: None):
                return work()

        found = by_layers()
        assert isinstance(found, Tensor)
        return self.rival(by_layers, found[:CHECKED], precision)

    def theirs(self, compiled: bool) -> Rival:
        rows = importance.twin.LOGITS[self.device.type] // 784
        run = partial(textbook, self.vae.decoder, compiled=compiled)

        def drawn(first: int, count: int) -> Tensor:
            return self.eps[first : first + count].to(self.device)

        of_first = (self.mu[:CHECKED], self.logvar[:CHECKED], self.x[:CHECKED])
        found = run(*of_first, self.samples, rows, draw=drawn)
        work = partial(run, self.mu, self.logvar, self.x, self.samples, rows)
        return self.rival(work, found, "float32")

    def rival(self, work: Callable[[], object], found: Tensor, precision: str) -> Rival:
        error = (found.double().cpu() - self.truth).abs() / TOLERANCE[precision]
        check = Check(worst(error.tolist()), "float64 reference, the same eps")
        return Rival(work, check, {"images": self.images, "samples": self.samples})


def _exact(layer: torch.nn.Linear) -> torch.nn.Linear:
    plain = torch.nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    return plain.requires_grad_(False)


def _group(bench: Bench) -> Group:
    contest = ImportanceContest(bench)
    makers: dict[str, Maker | str] = {"eager": partial(contest.theirs, compiled=False)}
    cuda = bench.device.type == "cuda"
    can_compile = cuda or has_cpu_compiler()
    makers["compiled"] = partial(contest.theirs, compiled=True) if can_compile else NO_COMPILER
    if cuda:
        makers |= {f"layers {p}": partial(contest.layers, p) for p in ("float32", "bfloat16")}
        makers |= {f"kernel {p}": partial(contest.ours, p) for p in ("tf32", "bfloat16")}
    else:
        fast = has_fast_bfloat16(bench.device)
        makers["float32"] = partial(contest.ours, "float32")
        makers["bfloat16"] = partial(contest.ours, "bfloat16") if fast else NO_BFLOAT16
        makers["kernel bfloat16"] = NO_GPU
    built = build(makers, lambda name: name == "compiled")
    title = f"importance sampling, altosaar, {contest.samples:,} samples of {contest.images} images"
    return Group(title, built.rivals, built.unavailable, None, broken=built.broken)
