"""patch_diffusers against diffusers' own class, in float64 and in its autoencoders."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vaez_fast.latents import generator_key, patch_diffusers
from vaez_kernels import normal

vae = pytest.importorskip(
    "diffusers.models.autoencoders.vae", reason="diffusers is not installed: pip install diffusers"
)


@pytest.fixture
def patched() -> Iterator[None]:
    with patch_diffusers():
        yield


def encoded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Some logvar are outside diffusers' clamp.
    return (4.0 * torch.randn(shape, generator=generator)).to(dtype) * torch.tensor(
        [1.0, 5.0]
    ).repeat_interleave(shape[1] // 2).view(-1, *(1,) * (len(shape) - 2)).to(dtype)


def own(parameters: Tensor, deterministic: bool = False) -> Any:
    """diffusers' own distribution, in float64."""
    return vae.DiagonalGaussianDistribution(parameters.double(), deterministic)


def gradient(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), of)[0]


def assert_same(found: Tensor, wanted: Tensor) -> None:
    # The clamped variances span e^50, so the error of a sum is relative to its largest term.
    scale = wanted.abs().max().item()
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("member", ["kl", "kl of other", "nll", "nll of dims", "mode"])
def test_values_and_gradients_are_those_of_diffusers(member: str) -> None:
    given, other = encoded(2, 8, 6, 5), encoded(2, 8, 6, 5, seed=1)
    other[:, 4:] *= 0.2  # a prior's variance of e^−30 would drown every other term
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(2))
    calls = {
        "kl": lambda q, p: q.kl(),
        "kl of other": lambda q, p: q.kl(p),
        "nll": lambda q, p: q.nll(x.to(q.mean.dtype)),
        "nll of dims": lambda q, p: q.nll(x.to(q.mean.dtype), dims=(2, 3)),
        "mode": lambda q, p: q.mode(),
    }
    wide = given.double().requires_grad_()
    wanted = calls[member](own(wide), own(other))
    narrow = given.clone().requires_grad_()
    with patch_diffusers():
        q, p = (vae.DiagonalGaussianDistribution(y) for y in (narrow, other))
        found = calls[member](q, p)
    assert_same(found, wanted)
    assert_same(gradient(found, narrow), gradient(wanted, wide))


@pytest.mark.parametrize("attribute", ["mean", "logvar", "std", "var", "parameters"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_attributes_are_those_of_diffusers(attribute: str, deterministic: bool) -> None:
    given = encoded(2, 8, 6, 5)
    wanted = getattr(own(given, deterministic), attribute)
    with patch_diffusers():
        found = getattr(vae.DiagonalGaussianDistribution(given, deterministic), attribute)
    assert_same(found, wanted)


@pytest.mark.usefixtures("patched")
def test_a_sample_is_mean_and_std_times_the_generators_normals() -> None:
    given = encoded(2, 8, 6, 5)
    q = vae.DiagonalGaussianDistribution(given)
    z = q.sample(generator=torch.Generator().manual_seed(3))
    key = generator_key(torch.Generator().manual_seed(3))
    assert_same(z, q.mean + q.std * normal(key, 1, 2, 120).view(2, 4, 6, 5))
    assert z.dtype == given.dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        usual = q.sample()
        torch.manual_seed(0)
        assert torch.equal(q.sample(), usual)


@pytest.mark.usefixtures("patched")
def test_each_row_has_its_own_generator_if_there_is_a_list() -> None:
    given = encoded(3, 8, 6, 5)
    q = vae.DiagonalGaussianDistribution(given)
    seeded = lambda: [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]  # noqa: E731
    rows = [
        vae.DiagonalGaussianDistribution(row).sample(generator=of_row)
        for row, of_row in zip(given.split(1), seeded(), strict=True)
    ]
    assert torch.equal(q.sample(generator=seeded()), torch.cat(rows))
    assert torch.equal(
        q.sample(generator=seeded()[:1]), q.sample(generator=torch.Generator().manual_seed(4))
    )


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("shape", [(2, 8, 7), (2, 8, 3, 4, 5)])
def test_audio_and_video_have_one_kl_and_one_nll_a_row(shape: tuple[int, ...]) -> None:
    given = encoded(*shape)
    q = vae.DiagonalGaussianDistribution(given)
    flat = own(given.flatten(2)[..., None])  # as an image, of which diffusers sums all
    assert q.kl().shape == (2,)
    assert_same(q.kl(), flat.kl())
    assert_same(q.nll(q.mean), flat.nll(flat.mean))


@pytest.mark.usefixtures("patched")
def test_a_deterministic_one_is_as_in_diffusers() -> None:
    given = encoded(2, 8, 6, 5)
    q = vae.DiagonalGaussianDistribution(given, deterministic=True)
    assert torch.equal(q.sample(), q.mean)
    assert q.kl().tolist() == q.nll(q.mean).tolist() == [0.0]
    found = vae.DiagonalGaussianDistribution(encoded(2, 8, 6, 5, seed=1)).kl(q)
    assert found.isposinf().all()  # to a point


@pytest.mark.usefixtures("patched")
def test_a_distribution_of_one_row_has_a_kl_to_each_of_several() -> None:
    one, several = encoded(1, 8, 6, 5), encoded(3, 8, 6, 5, seed=1)
    several[:, 4:] *= 0.2
    found = vae.DiagonalGaussianDistribution(one).kl(vae.DiagonalGaussianDistribution(several))
    assert_same(found, own(one).kl(own(several)))
    q = vae.DiagonalGaussianDistribution(several)
    assert_same(q.nll(q.mean[:1]), own(several).nll(q.mean[:1].double()))


@pytest.mark.usefixtures("patched")
def test_it_can_be_pickled() -> None:
    given = encoded(2, 8, 6, 5)
    q = vae.DiagonalGaussianDistribution(given)
    again = pickle.loads(pickle.dumps(q))
    assert type(again) is type(q)
    assert torch.equal(again.kl(), q.kl())


@pytest.mark.usefixtures("patched")
def test_a_list_of_generators_has_one_for_each_row() -> None:
    q = vae.DiagonalGaussianDistribution(encoded(2, 8, 6, 5))
    with pytest.raises(ValueError, match="one for each row: 2 rows, got 3"):
        q.sample(generator=[torch.Generator() for _ in range(3)])


def test_undone_it_leaves_diffusers_as_it_was_and_what_exists_goes_on() -> None:
    before = dict(vars(vae.DiagonalGaussianDistribution))
    old = vae.DiagonalGaussianDistribution(encoded(2, 8, 6, 5))
    patch = patch_diffusers()
    made = vae.DiagonalGaussianDistribution(encoded(2, 8, 6, 5))
    assert isinstance(made, vae.DiagonalGaussianDistribution)
    with pytest.raises(RuntimeError, match="patched already"):
        patch_diffusers()
    assert_same(old.kl(), own(encoded(2, 8, 6, 5)).kl())
    patch.undo()
    patch.undo()
    assert dict(vars(vae.DiagonalGaussianDistribution)) == before
    assert_same(made.kl(), own(encoded(2, 8, 6, 5)).kl())
    assert type(vae.DiagonalGaussianDistribution(encoded(2, 8, 6, 5))) is type(old)
    with patch_diffusers():
        patch.undo()  # of an earlier one: it does nothing
        assert type(vae.DiagonalGaussianDistribution(encoded(2, 8, 6, 5))) is not type(old)
    assert type(vae.DiagonalGaussianDistribution(encoded(2, 8, 6, 5))) is type(old)


def test_a_subclass_keeps_its_own_methods() -> None:
    class Own(vae.DiagonalGaussianDistribution):  # type: ignore[name-defined]
        def kl(self, other: Any = None) -> str:
            return "its own"

    with patch_diffusers():
        q = Own(encoded(2, 8, 6, 5))
    assert q.kl() == "its own"
    assert q.std.shape == (2, 4, 6, 5)


def autoencoders() -> dict[str, tuple[Any, tuple[int, ...]]]:
    import diffusers

    image = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    video = diffusers.AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return {
        "AutoencoderKL": (image, (2, 3, 16, 16)),
        "AutoencoderKLWan": (video, (2, 3, 5, 16, 16)),
    }


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_an_autoencoder_of_diffusers_trains_on_the_fused_ops(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, shape = autoencoders()[name]
        x = torch.randn(shape)
    with patch_diffusers():
        q = model.encode(x).latent_dist
    z = q.sample(torch.Generator().manual_seed(0))
    assert q.kl().shape == (2,)
    loss = (model.decode(z).sample - x).square().sum() + q.kl().sum()
    loss.backward()
    parameters = q.parameters.detach().requires_grad_()
    flat = parameters.double().flatten(2)[..., None]
    assert_same(q.kl(), own(flat).kl())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
