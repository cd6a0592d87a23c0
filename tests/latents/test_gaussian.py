"""GaussianPosterior against torch.distributions in float64; noise keys without a step count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace, Normal, kl_divergence

from vaez_fast.latents import GaussianPosterior, Noise, generator_key
from vaez_kernels import noise_key, normal

SHAPES = [(3, 6), (2, 4, 5), (2, 4, 6, 5), (2, 2, 3, 4, 5)]
FLOAT32_SUM = 2e-6  # relative: a few ulp for sums of positive terms, in any order
KEY = noise_key(3, "evaluate")


def moments(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_float64(q: GaussianPosterior) -> Independent:
    std = torch.exp(0.5 * q.logvar.double()).expand(q.mu.shape)
    return Independent(Normal(q.mu.double(), std), q.mu.dim() - 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clamp", [None, (-0.5, 0.5)])
def test_every_number_is_that_of_torch_distributions(
    shape: tuple[int, ...], clamp: tuple[float, float] | None
) -> None:
    q = GaussianPosterior(moments(*shape), clamp=clamp)
    p = GaussianPosterior(moments(*shape, seed=1))
    truth, prior = in_float64(q), in_float64(p)
    standard = Independent(
        Normal(torch.zeros_like(prior.mean), torch.ones_like(prior.mean)), q.mu.dim() - 1
    )
    z = q.sample(KEY, 7)
    assert z.shape == (7, *q.mu.shape)
    within: dict[str, Any] = {"rtol": FLOAT32_SUM, "atol": 1e-5}
    for found, wanted in (
        (q.kl(), kl_divergence(truth, standard)),
        (q.kl(p), kl_divergence(truth, prior)),
        (q.nll(z), -truth.log_prob(z.double())),
        (q.nll(z[2]), -truth.log_prob(z[2].double())),
        (q.mode(), truth.mode),
        (q.std, truth.stddev),
    ):
        torch.testing.assert_close(found.double(), wanted, **within)
    eps = normal(KEY, 7, shape[0], q.mu[0].numel()).view(z.shape).double()
    torch.testing.assert_close(z.double(), truth.mean + truth.stddev * eps, **within)
    torch.testing.assert_close(
        kl_divergence(q.as_distribution(), p.as_distribution()).double(),
        kl_divergence(truth, prior),
        **within,
    )


@pytest.mark.parametrize("reduce", ["sum", "channels", "none", "batch-mean"])
def test_a_reduction_of_nll_and_kl_is_that_of_their_elements(reduce: str) -> None:
    q = GaussianPosterior(moments(3, 4, 5, 2))
    z = q.sample(KEY)
    sums = {
        "sum": lambda x: x.sum((1, 2, 3)),
        "channels": lambda x: x.sum((2, 3)),
        "none": lambda x: x,
        "batch-mean": lambda x: x.mean(0),
    }[reduce]
    elements = -Normal(q.mu, q.std).log_prob(z)
    torch.testing.assert_close(q.nll(z, reduce=reduce), sums(elements))
    elements = kl_divergence(Normal(q.mu, q.std), Normal(0.0, 1.0))
    torch.testing.assert_close(q.kl(reduce=reduce), sums(elements), rtol=1e-5, atol=1e-6)


def test_channels_of_a_vector_are_its_elements() -> None:
    q = GaussianPosterior(moments(3, 8))
    z = q.sample(KEY, 2)
    assert torch.equal(q.nll(z, reduce="channels"), q.nll(z, reduce="none"))


def test_sample_kl_is_both_in_one_pass() -> None:
    q, p = GaussianPosterior(moments(2, 4, 6, 5)), GaussianPosterior(moments(2, 4, 6, 5, seed=1))
    z, kl = q.sample_kl(KEY, prior=p)
    assert torch.equal(z, q.sample(KEY))
    torch.testing.assert_close(kl, q.kl(p))
    several, estimate = q.sample_kl(KEY, 3, "total-derivative", reduce="channels")
    assert torch.equal(several, q.sample(KEY, 3))
    log_ratio = -q.nll(several, reduce="channels") - Normal(0.0, 1.0).log_prob(several).sum((3, 4))
    torch.testing.assert_close(estimate, log_ratio.mean(0), rtol=1e-5, atol=1e-5)
    free = q.sample_kl(KEY, free_bits=2.0, reduce="none")[1]
    assert torch.equal(free, q.kl(reduce="none").clamp(min=2.0))


@pytest.mark.parametrize(
    "prior",
    [
        lambda mu, logvar: (mu, logvar),
        lambda mu, logvar: GaussianPosterior((mu[None], logvar[None])),
        lambda mu, logvar: Normal(mu, torch.exp(0.5 * logvar)),
        lambda mu, logvar: Independent(Normal(mu, torch.exp(0.5 * logvar)), 1),
    ],
    ids=["pair", "GaussianPosterior", "Normal", "Independent"],
)
def test_a_prior_of_any_kind_gives_the_same_kl_and_gets_its_gradient(prior: Any) -> None:
    q = GaussianPosterior(moments(4, 10))
    mu, logvar = moments(5, seed=1).requires_grad_(), moments(5, seed=2).requires_grad_()
    kl = q.kl(prior(mu, logvar))
    kl.sum().backward()
    theirs = mu.detach().double().requires_grad_(), logvar.detach().double().requires_grad_()
    spread = Independent(Normal(theirs[0], torch.exp(0.5 * theirs[1])), 1)
    wanted = kl_divergence(in_float64(q), spread.expand((4,)))
    wanted.sum().backward()
    torch.testing.assert_close(kl.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    for found, of in zip((mu, logvar), theirs, strict=True):
        assert found.grad is not None
        assert of.grad is not None
        torch.testing.assert_close(found.grad.double(), of.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_normal_prior_of_any_dtype_is_taken_at_its_word(dtype: torch.dtype) -> None:
    q = GaussianPosterior(moments(4, 10).to(dtype))
    narrow = torch.float32 if dtype == torch.float64 else dtype
    scale = torch.tensor([0.5, 0.7, 1.1, 1.3, 2.1]).to(narrow)
    loc = torch.zeros(5).to(narrow)
    wanted = kl_divergence(
        in_float64(q), Independent(Normal(loc.double(), scale.double()), 1).expand((4,))
    )
    found = q.kl(Normal(loc, scale)).double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_detached_side_of_a_balanced_kl_has_no_gradient() -> None:
    given = [moments(2, 6, seed=i).requires_grad_() for i in range(2)]
    q, p = (GaussianPosterior(x, clamp=(-1.0, 1.0)) for x in given)
    assert torch.equal(q.detach().kl(p), q.kl(p))
    q.detach().kl(p).sum().backward()
    assert given[0].grad is None
    assert given[1].grad is not None


def test_a_torch_generator_gives_the_key() -> None:
    q = GaussianPosterior(moments(2, 4, 6, 5))
    one, other = (torch.Generator().manual_seed(7) for _ in range(2))
    first = q.sample(generator=one)
    assert torch.equal(first, q.sample(generator=other))
    assert not torch.equal(first, q.sample(generator=one))
    z, _ = q.sample_kl(generator=other)
    assert not torch.equal(z, first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        usual = q.sample()
        torch.manual_seed(5)
        assert torch.equal(q.sample(), usual)
        assert not torch.equal(q.sample(), usual)


def test_keys_of_generators_are_64_random_bits_and_no_seeds_purpose_has_them() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.stack([generator_key(generator) for _ in range(4000)])
    purposes = keys[:, 0] >> 32
    assert purposes.unique().tolist() == [noise_key(0, "generator")[0] >> 32]
    for words in (keys[:, 0] & (2**32 - 1), keys[:, 1]):
        assert words.min() >= 0
        assert words.max() < 2**32
        ones = torch.stack([(words >> bit & 1).double().mean() for bit in range(32)])
        # Each is a mean of 4,000 fair bits: five standard errors.
        torch.testing.assert_close(
            ones, torch.full_like(ones, 0.5), rtol=0, atol=5 * 0.5 / 4000**0.5
        )


class TestNoise:
    def test_it_counts_the_steps_of_a_seed(self) -> None:
        noise = Noise(3, "train", 5)
        found = [noise.next() for _ in range(3)]
        assert [key.tolist() for key in found] == [
            noise_key(3, "train", step).tolist() for step in (5, 6, 7)
        ]

    def test_backward_reads_its_own_step_after_the_counter_has_moved_on(self) -> None:
        noise, x = Noise(0), moments(4, 10).requires_grad_()
        losses = [GaussianPosterior(x).sample(noise.next()).square().sum() for _ in range(2)]
        torch.stack(losses).sum().backward()
        found, x.grad = x.grad, None
        for step in range(2):
            GaussianPosterior(x).sample(noise_key(0, "train", step)).square().sum().backward()
        torch.testing.assert_close(found, x.grad)

    def test_a_module_saves_its_counter(self) -> None:
        module = torch.nn.ModuleDict({"noise": Noise(3)})
        module["noise"].next()  # type: ignore[operator]
        again = torch.nn.ModuleDict({"noise": Noise(0)})
        again.load_state_dict(module.state_dict())
        assert again["noise"].next().tolist() == noise_key(3, "train", 1).tolist()  # type: ignore[operator]

    def test_a_compiled_step_draws_fresh_numbers(self) -> None:
        noise, x = Noise(1), moments(4, 10)
        draw = torch.compile(lambda: GaussianPosterior(x).sample(noise.next()), fullgraph=True)
        for step in range(3):
            wanted = GaussianPosterior(x).sample(noise_key(1, "train", step))
            torch.testing.assert_close(draw(), wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianPosterior(moments(2, 5)), ValueError, r"moments must have shape \(B, 2C"),
        (lambda: GaussianPosterior(moments(4)), ValueError, r"moments must have shape \(B, 2C"),
        (lambda: GaussianPosterior(moments(2, 4).long()), TypeError, "mu must be float32, .*int64"),
        (
            lambda: GaussianPosterior((moments(2, 1), moments(2, 5))),
            ValueError,
            r"logvar must have mu's shape or broadcast to it, got \(2, 1\) and \(2, 5\)",
        ),
        (
            lambda: GaussianPosterior((moments(4), moments(4))),
            ValueError,
            r"mu must have shape \(B, \*event\)",
        ),
        (
            lambda: GaussianPosterior((moments(2, 4), moments(2, 4).double())),
            TypeError,
            "logvar must be float64 if and only if mu is",
        ),
        (lambda: GaussianPosterior([1, 2]), TypeError, "moments must be a tensor"),  # type: ignore[arg-type]
        (lambda: GaussianPosterior(moments(2, 4), clamp=(1, 0)), ValueError, "low ≤ high"),
        (lambda: GaussianPosterior(moments(2, 4), clamp=(math.nan, 0)), ValueError, "low ≤ high"),
        (lambda: GaussianPosterior(moments(2, 4), clamp=3), TypeError, "a pair .*, got 3"),  # type: ignore[arg-type]
        (lambda: GaussianPosterior(moments(2, 4), clamp=(1, 2, 3)), TypeError, "a pair"),  # type: ignore[arg-type]
        (
            lambda: GaussianPosterior((moments(2, 4), moments(3, 4))).kl(),
            ValueError,
            "logvar must have mu's shape",
        ),
        (
            lambda: GaussianPosterior(moments(2, 4)).sample(KEY, generator=torch.Generator()),
            ValueError,
            "noise and generator exclude each other",
        ),
        (
            lambda: GaussianPosterior(moments(2, 4)).sample(generator=3),  # type: ignore[arg-type]
            TypeError,
            "generator must be a torch.Generator or None, got int",
        ),
        (
            lambda: GaussianPosterior(moments(2, 4)).kl(Laplace(0.0, 1.0)),  # type: ignore[arg-type]
            TypeError,
            "prior must be a diagonal Gaussian",
        ),
        (
            lambda: GaussianPosterior(moments(2, 4)).kl(3),  # type: ignore[arg-type]
            TypeError,
            r"prior must be a GaussianPosterior, .* or a pair of tensors \(mu, logvar\), got int",
        ),
        (
            lambda: GaussianPosterior(moments(2, 4)).nll(moments(2, 3)),
            ValueError,
            r"nll: z must have mu's shape \(2, 2\)",
        ),
        (
            lambda: GaussianPosterior(moments(2, 4)).nll(moments(2, 2), reduce="mean"),
            ValueError,
            "reduce must be",
        ),
    ],
)
def test_a_wrong_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
