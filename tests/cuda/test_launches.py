"""The kernels beside other CUDA work: streams, graphs, devices, torch.compile, tuning.

Skipped without a CUDA device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.process import environment
from tests.cuda.moved import CUDA
from vaez_kernels import (
    bernoulli_log_prob,
    gaussian_log_prob,
    launch,
    mixture_log_prob,
    noise_key,
    normal,
    rsample_kl,
    uniform,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KLS = ["analytic", "total-derivative", "sticking-the-landing"]


def key(step: int, device: torch.device = CUDA) -> Tensor:
    return noise_key(29, "train", step, device=device)


def latents(device: torch.device = CUDA, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mu, logvar = torch.randn((2, 1001, 20), generator=generator).to(device).unbind()
    return mu.clone().requires_grad_(), logvar.clone().requires_grad_()


def step(mu: Tensor, logvar: Tensor, noise: Tensor, kl: str = "analytic") -> tuple[Tensor, ...]:
    """z, the KL, and the gradients of a loss of both."""
    z, rows = rsample_kl(mu, logvar, noise, 2, kl)
    return z, rows, *torch.autograd.grad(z.square().sum() + rows.sum(), (mu, logvar))


def test_an_op_waits_for_the_stream_it_is_called_on() -> None:
    old, new = latents(seed=1), latents(seed=2)
    wanted = step(*new, key(0))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds, in which another stream would run
        with torch.no_grad():
            for target, source in zip(old, new, strict=True):
                target.copy_(source)
        actual = step(*old, key(0))
    stream.synchronize()
    for a, w in zip(actual, wanted, strict=True):
        assert torch.equal(a, w)


def calls() -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """mu and logvar on the CPU and settings: each differs in one thing that a launch depends on."""
    generator = torch.Generator().manual_seed(5)
    both = torch.randn((5, 40), generator=generator)
    mu, logvar = (x.contiguous() for x in both.chunk(2, 1))
    yield mu, logvar, {}
    yield logvar, mu, {}
    yield both.roll(1).flatten()[1:101].view(5, 20), logvar, {}  # 4 bytes from a multiple of 16
    yield *both.chunk(2, 1), {}  # type: ignore[misc]
    yield mu, logvar[:1].expand(5, 20), {}
    yield mu.bfloat16(), logvar, {}
    yield mu[:3], logvar[:3], {}
    yield mu, logvar, {"num_samples": 3}
    yield mu, logvar, {"kl": "total-derivative"}
    yield mu, logvar, {"clamp": (-0.5, 0.5)}
    yield mu, logvar, {"clamp": (-0.25, 0.5)}
    yield mu, logvar, {"free_bits": 0.3}
    yield mu, logvar, {"row_offset": 7}
    yield mu, logvar, {"sample_offset": 7}
    yield mu, logvar, {"reduce": "none"}
    yield mu.view(5, 4, 5), logvar.view(5, 4, 5), {"reduce": "channels"}
    yield mu.view(5, 4, 5), logvar.view(5, 4, 5), {"reduce": "batch-mean"}
    apart = mu.view(5, 2, 2, 5).transpose(2, 3)  # is copied before a kernel reads it
    yield apart, logvar.view(5, 2, 5, 2), {}
    yield mu, logvar, {"prior": (logvar, mu)}


def test_a_call_after_others_of_its_kind_is_what_it_is_alone() -> None:
    for _ in range(2):  # the second time, each finds what the first one kept
        for mu, logvar, settings in calls():
            for wanted in ((True, True), (False, True)):
                found, alone = (
                    of_device(device, mu, logvar, settings, wanted) for device in (CUDA, "cpu")
                )
                for x, y in zip(found, alone, strict=True):
                    bfloat16 = x.dtype == torch.bfloat16
                    torch.testing.assert_close(
                        x.cpu(), y, rtol=1e-2 if bfloat16 else 1e-5, atol=1e-5
                    )


def of_device(
    device: torch.device | str,
    mu: Tensor,
    logvar: Tensor,
    settings: dict[str, Any],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, ...]:
    """z and the KL without and with autograd, the wanted gradients, and the inputs afterwards."""
    moved = settings | {
        name: tuple(x.to(device) for x in settings[name]) for name in settings if name == "prior"
    }
    noise = noise_key(29, "train", 3, device=device)
    # `to` would make a contiguous, aligned copy of a view.
    mu, logvar = (
        as_it_lies(x, device).requires_grad_(w) for x, w in zip((mu, logvar), wanted, strict=True)
    )
    with torch.no_grad():
        plain = rsample_kl(mu, logvar, noise, **moved)
    z, kl = rsample_kl(mu, logvar, noise, **moved)
    leaves = [x for x in (mu, logvar) if x.requires_grad]
    grads = torch.autograd.grad(z.float().square().sum() + 2.0 * kl.sum(), leaves)
    return *plain, z.detach(), kl.detach(), *grads, mu.detach(), logvar.detach()


def as_it_lies(x: Tensor, device: torch.device | str) -> Tensor:
    """x on a device, with its strides and its offset in memory."""
    base = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(device)
    return base.as_strided(x.shape, x.stride(), x.storage_offset())


def likelihoods() -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets on the CPU, each pair different in one thing."""
    generator = torch.Generator().manual_seed(6)
    wide = torch.randn((3, 5, 40), generator=generator)
    targets = (torch.rand((5, 20), generator=generator) < 0.3).float()
    logits = wide[..., :20].contiguous()
    yield logits, targets
    yield 2.0 * logits, 1.0 - targets
    yield wide[..., :20], targets
    yield wide.flatten()[1:301].view(3, 5, 20), targets  # 4 bytes from a multiple of 16
    yield logits.bfloat16(), targets
    yield logits, targets.byte()
    yield logits[:1], targets
    yield wide.flatten().as_strided((1, 5, 20), (100, 40, 1)), targets  # only rows are apart
    yield logits, torch.cat((targets, targets), 1)[:, :20]
    yield logits[:, :2], targets[:2]
    yield logits[..., :19], targets[:, :19]


def test_a_likelihood_after_others_of_its_kind_is_what_it_is_alone() -> None:
    for _ in range(2):
        for logits, x in likelihoods():
            found, alone = (of_likelihood(device, logits, x) for device in (CUDA, "cpu"))
            for one, other in zip(found, alone, strict=True):
                close = 1e-2 if one.dtype == torch.bfloat16 else 1e-5
                torch.testing.assert_close(one.cpu(), other, rtol=close, atol=close)


def of_likelihood(device: torch.device | str, logits: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The likelihood, the gradient of its weighted sum by logits, and its inputs afterwards."""
    logits, x = as_it_lies(logits, device).requires_grad_(), as_it_lies(x, device)
    out = bernoulli_log_prob(logits, x)
    weights = torch.arange(out.numel(), device=device).view(out.shape) / 7.0
    (grad,) = torch.autograd.grad((weights * out).sum(), logits)
    return out.detach(), grad, logits.detach(), x


def test_a_gaussian_likelihood_after_others_of_its_kind_is_what_it_is_alone() -> None:
    for _ in range(2):
        for mean, x in likelihoods():
            for logvar in (
                0.5 * mean,
                torch.cat((mean, mean), 2)[..., : mean.shape[2]],
                mean[..., :1],
            ):
                spread = logvar.expand_as(mean)
                found, alone = (of_gaussian(device, mean, spread, x) for device in (CUDA, "cpu"))
                for one, other in zip(found, alone, strict=True):
                    close = 2e-2 if one.dtype == torch.bfloat16 else 1e-5
                    torch.testing.assert_close(one.cpu(), other, rtol=close, atol=close)


def of_gaussian(
    device: torch.device | str, mean: Tensor, logvar: Tensor, x: Tensor
) -> tuple[Tensor, ...]:
    """The likelihood, both gradients of its weighted sum, and its inputs afterwards."""
    mean, logvar = (as_it_lies(one, device).requires_grad_() for one in (mean, logvar))
    x = as_it_lies(x, device)
    out = gaussian_log_prob(mean, logvar, x)
    weights = torch.arange(out.numel(), device=device).view(out.shape) / 7.0
    grads = torch.autograd.grad((weights * out).sum(), (mean, logvar))
    return out.detach(), *grads, mean.detach(), logvar.detach(), x


def mixtures() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """z, mu, logvar and left-out components on the CPU, each call different in one thing."""
    generator = torch.Generator().manual_seed(7)
    wide = torch.randn((9, 40), generator=generator)
    mu, logvar, z = wide[:, :6].contiguous(), wide[:, 6:12].contiguous(), wide[:5, 12:18]
    z = z.contiguous()
    left = torch.arange(5)
    yield z, mu, logvar, None
    yield 2.0 * z, logvar, mu, None
    yield z, mu, logvar, left
    yield z, mu, logvar, torch.arange(5).repeat_interleave(2)[::2]
    yield z[:4], mu, logvar, None
    yield z, mu[:8], logvar[:8], None
    yield z, mu[:1], logvar[:1], None
    yield z[:, :5].contiguous(), mu[:, :5].contiguous(), logvar[:, :5].contiguous(), None
    yield wide[:5, 12:18], mu, logvar, None
    yield z, wide[:, :6], logvar, None
    yield z, mu, wide[:, 6:12], None
    yield z.t().contiguous().t(), mu, logvar, None
    yield wide.flatten()[1:31].view(5, 6), mu, logvar, None  # 4 bytes from a multiple of 16
    yield z.bfloat16(), mu.bfloat16(), logvar.bfloat16(), None


def test_a_mixture_after_others_is_what_it_is_alone() -> None:
    for _ in range(2):
        for tensors in mixtures():
            found, alone = (of_mixture(device, *tensors) for device in (CUDA, "cpu"))
            for one, other in zip(found, alone, strict=True):
                close = 1e-2 if one.dtype == torch.bfloat16 else 1e-5
                torch.testing.assert_close(one.cpu(), other, rtol=close, atol=close)


def of_mixture(device: torch.device | str, z: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """The density, the gradient of its weighted sum by z, and z afterwards."""
    z = as_it_lies(z, device).requires_grad_()
    mu, logvar, left = (None if x is None else as_it_lies(x, device) for x in others)
    out = mixture_log_prob(z, mu, logvar, left)  # type: ignore[arg-type]
    weights = torch.arange(len(out), device=device) / 7.0
    (grad,) = torch.autograd.grad((weights * out).sum(), z)
    return out.detach(), grad, z.detach()


def test_noise_after_other_noise_is_what_it_is_alone() -> None:
    calls: list[tuple[Any, ...]] = [
        *((normal, 2, 5, 20, 0, 0), (normal, 2, 5, 19, 0, 0), (uniform, 2, 5, 20, 0, 0)),
        *((normal, 2, 5, 20, 3, 0), (normal, 2, 5, 20, 0, 3), (normal, 3, 5, 20, 0, 0)),
    ]
    for step in range(2):
        for draw, *sizes, row, sample in calls:
            offsets = {"row_offset": row, "sample_offset": sample}
            found, alone = (
                draw(key(step, torch.device(device)), *sizes, **offsets) for device in (CUDA, "cpu")
            )
            torch.testing.assert_close(found.cpu(), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kl", KLS)
def test_a_replayed_graph_draws_fresh_noise_each_time(kl: str) -> None:
    mu, logvar = latents()
    noise = key(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(mu, logvar, noise, kl)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise[1].add_(1)
        outputs = step(mu, logvar, noise, kl)
    for count in (1, 2, 3):
        graph.replay()
        for output, wanted in zip(outputs, step(mu, logvar, key(count), kl), strict=True):
            assert torch.equal(output, wanted)
    assert noise.tolist() == key(3).tolist()


@pytest.mark.parametrize("kl", KLS)
def test_under_torch_compile_the_numbers_are_the_same(kl: str) -> None:
    compiled = torch.compile(
        lambda m, v, noise: rsample_kl(m, v, noise, 2, kl), fullgraph=True, dynamic=True
    )
    for seed in (0, 1):
        mu, logvar = latents(seed=seed)
        z, rows = compiled(mu, logvar, key(seed))
        grads = torch.autograd.grad(z.square().sum() + rows.sum(), (mu, logvar))
        wanted = step(mu, logvar, key(seed), kl)
        assert torch.equal(z, wanted[0])
        for actual, want in zip((rows, *grads), wanted[1:], strict=True):
            # The kernels' parts are equal. Other code differentiates z², which may differ by one or
            # two roundings.
            torch.testing.assert_close(actual, want, rtol=1e-6, atol=1e-5)


def test_an_op_never_waits_for_the_gpu() -> None:
    mu, logvar = latents()
    logits = torch.randn(2, 64, 784, device=CUDA, requires_grad=True)
    x = torch.ones(64, 784, dtype=torch.uint8, device=CUDA)
    noise = key(0)
    step(mu, logvar, noise)
    bernoulli_log_prob(logits, x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(mu, logvar, noise)
        bernoulli_log_prob(logits, x).sum().backward()
        normal(noise, 2, 64, 20)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_an_op_runs_where_its_tensors_are_and_not_on_the_current_device() -> None:
    other = torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    actual, wanted = step(*latents(other), key(5, other)), step(*latents(), key(5))
    for a, w in zip(actual, wanted, strict=True):
        assert a.device == other
        assert torch.equal(a.cpu(), w.cpu())


def test_autotuning_changes_the_tile_and_not_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = step(*latents(), key(0))
    monkeypatch.setenv("VAEZ_AUTOTUNE", "1")
    monkeypatch.setattr(launch, "_fastest", {})
    actual = step(*latents(), key(0))
    assert len(launch._fastest) == 2  # forward and backward
    assert torch.equal(actual[0], wanted[0])
    assert torch.equal(actual[2], wanted[2])
    assert torch.equal(actual[3], wanted[3])


SANITIZED = """
import torch
from vaez_kernels import bernoulli_log_prob, noise_key, normal, rsample_kl
for columns in (3, 20, 128):
    mu, logvar = (torch.randn(37, columns, device="cuda", requires_grad=True) for _ in range(2))
    for kl in ("analytic", "total-derivative", "sticking-the-landing"):
        z, rows = rsample_kl(mu, logvar, noise_key(0, "train", device="cuda"), 9, kl)
        (z.sum() + rows.sum()).backward()
    normal(noise_key(0, "train", device="cuda"), 3, 37, columns)
logits = torch.randn(9, 5, 785, device="cuda", requires_grad=True)
bernoulli_log_prob(logits, torch.ones(5, 785, dtype=torch.uint8, device="cuda")).sum().backward()
torch.cuda.synchronize()
"""


def test_no_access_is_out_of_bounds() -> None:
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
    # Without PyTorch's caching allocator: inside its large blocks nothing is out of bounds.
    variables = environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
