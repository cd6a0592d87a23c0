"""A posterior of images under torch.func, torch.compile, torch.export and AOTInductor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vaez_fast.latents import GaussianPosterior
from vaez_kernels import noise_key
from vaez_kernels.compiler import has_cpu_compiler

needs_compiler = pytest.mark.skipif(not has_cpu_compiler(), reason="no C++ compiler here")
KEY = noise_key(3, "train", 5)


class Latent(nn.Module):
    """An encoder's moments (B, 2C, H, W) and a key → z (B, C, H, W), KL (B,)."""

    def forward(self, moments: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return GaussianPosterior(moments, clamp=(-30.0, 20.0)).sample_kl(noise)


def moments(rows: int, seed: int = 0) -> Tensor:
    return torch.randn((rows, 8, 6, 5), generator=torch.Generator().manual_seed(seed))


def loss(moments: Tensor, noise: Tensor) -> Tensor:
    z, kl = Latent()(moments, noise)
    return z.square().sum() + kl.sum()


def gradient(x: Tensor, noise: Tensor = KEY) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x, noise), x)[0]


def test_func_grad_is_autograds() -> None:
    torch.testing.assert_close(torch.func.grad(loss)(moments(3), KEY), gradient(moments(3)))


def test_func_vjp_is_autograds() -> None:
    outputs, pull = torch.func.vjp(lambda x: Latent()(x, KEY), moments(3))[:2]
    z, kl = outputs
    torch.testing.assert_close(pull((2.0 * z, torch.ones_like(kl)))[0], gradient(moments(3)))


def test_vmap_is_a_loop_over_slices_and_over_their_keys() -> None:
    x = torch.stack([moments(3, seed) for seed in range(4)])
    keys = torch.stack([noise_key(3, "train", step) for step in range(4)])
    mapped = torch.vmap(torch.func.grad(loss))(x, keys)
    alone = torch.stack([gradient(one, key) for one, key in zip(x, keys, strict=True)])
    torch.testing.assert_close(mapped, alone)


@needs_compiler
def test_one_dynamic_compilation_serves_all_sizes() -> None:
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(Latent(), backend=counter, fullgraph=True, dynamic=True)
    for rows in (3, 5, 9):
        torch.testing.assert_close(compiled(moments(rows), KEY), Latent()(moments(rows), KEY))
    assert counter.frame_count == 1


def exported() -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=2, max=64)
    return torch.export.export(Latent(), (moments(3), KEY), dynamic_shapes=({0: rows}, None))


def test_an_exported_program_holds_the_op_and_draws_by_its_key() -> None:
    program = exported()
    assert "vaez.latent_forward.default" in {str(node.target) for node in program.graph.nodes}
    run = program.module()
    for rows, key in ((3, KEY), (7, noise_key(4, "train"))):
        torch.testing.assert_close(run(moments(rows), key), Latent()(moments(rows), key))


@needs_compiler
def test_an_ahead_of_time_compiled_program_draws_by_its_key(tmp_path: Path) -> None:
    package = torch._inductor.aoti_compile_and_package(
        exported(), package_path=str(tmp_path / "latent.pt2")
    )
    run = torch._inductor.aoti_load_package(package)
    for rows, key in ((3, KEY), (7, noise_key(4, "train"))):
        z, kl = run(moments(rows), key)
        torch.testing.assert_close((z, kl), Latent()(moments(rows), key))
