"""The pages of docs/latents: their programs run unchanged and print what the formulas say."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vaez_kernels import noise_key, normal

PAGES = Path(__file__).parents[2] / "docs" / "latents"
FLOAT32_SUM = 1e-5  # relative, for sums of a thousand terms


@functools.cache
def ran(page: str) -> tuple[dict[str, Any], str]:
    """What the programs of a page define, one after the other, and what they print."""
    names: dict[str, Any] = {"__name__": "__main__"}
    text = (PAGES / f"{page}.md").read_text("utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as printed, torch.random.fork_rng(devices=[]):
        for program in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            exec(compile(program, page, "exec", dont_inherit=True), names)
    return names, printed.getvalue()


def numbers(pattern: str, printed: str) -> list[float]:
    """The numbers behind `pattern` in each line that has it."""
    found = [
        [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-\d+)?|\d+e-\d+", line)]
        for line in re.findall(f"{pattern}(.*)", printed)
    ]
    assert found, f"{pattern!r} is not in {printed!r}"
    return [x for line in found for x in line]


def truth(moments: Sequence[torch.Tensor], event: int) -> Independent:
    mu, logvar = moments
    std = torch.exp(0.5 * logvar.detach().double())
    return Independent(Normal(mu.detach().double(), std), event)


def standard(like: Independent) -> Independent:
    return Independent(
        Normal(torch.zeros_like(like.mean), torch.ones_like(like.mean)), len(like.event_shape)
    )


class TestDiffusers:
    def test_it_learns_and_leaves_diffusers_as_it_was(self) -> None:
        vae = pytest.importorskip("diffusers.models.autoencoders.vae", reason="no diffusers here")
        names, printed = ran("diffusers")
        assert type(names["vae"].encode(names["x"]).latent_dist) is vae.DiagonalGaussianDistribution
        errors = numbers("squared error", printed)[::2]
        assert len(errors) == 4
        assert errors[-1] < errors[0] / 2

    def test_the_kls_of_its_channels_are_the_formulas(self) -> None:
        pytest.importorskip("diffusers", reason="no diffusers here")
        names, printed = ran("diffusers")
        mu, logvar = names["moments"].chunk(2, 1)
        q = truth((mu, logvar.clamp(-30.0, 20.0)), 0)
        wanted = kl_divergence(q, standard(q)).sum((2, 3)).mean(0)
        # Two decimals are printed.
        assert numbers("KL of each channel", printed) == pytest.approx(wanted.tolist(), abs=0.006)


class TestVideo:
    def test_each_video_has_the_formulas_kl_and_ranks_draw_the_same(self) -> None:
        pytest.importorskip("diffusers", reason="no diffusers here")
        names, printed = ran("video")
        mu, _ = names["moments"].chunk(2, 1)
        q = truth(names["moments"].chunk(2, 1), 4)
        wanted = kl_divergence(q, standard(q))
        assert numbers("KL of each video:", printed) == pytest.approx(wanted.tolist(), abs=0.006)
        eps = normal(noise_key(0, "generate"), 1, 3, mu[0].numel()).view(mu.shape)
        z = q.mean + q.stddev * eps.double()
        torch.testing.assert_close(names["z"].double(), z, rtol=1e-6, atol=1e-5)
        assert numbers("differ by at most", printed.replace("0e+00", "0.0"))[0] < 1e-6


class TestWorldModel:
    def test_it_learns_to_predict_the_pendulum(self) -> None:
        errors = numbers("error", ran("world-model")[1])[::2]
        # Without a prediction the error is 50 times the variance of a sine with noise.
        assert errors[-1] < 50.0 * 0.5 / 10.0

    def test_both_kls_are_the_formula_and_each_trains_its_own_side(self) -> None:
        names, _ = ran("world-model")
        model, x = names["model"], names["x"]
        p_weight, q_weight = model.prior.bias, model.posterior[0].weight
        _, dyn, rep = model(x)
        torch.testing.assert_close(dyn, rep)
        h = torch.zeros(x.shape[1], names["HIDDEN"])
        seen = torch.cat((h, x[0]), 1)
        q, p = (truth(of.chunk(2, 1), 1) for of in (model.posterior(seen), model.prior(h)))
        wanted = kl_divergence(q, p).clamp(min=1.0)
        torch.testing.assert_close(dyn[0].detach().double(), wanted, rtol=FLOAT32_SUM, atol=1e-5)
        for nats, its_own, other in ((dyn, p_weight, q_weight), (rep, q_weight, p_weight)):
            by_own, by_other = torch.autograd.grad(
                nats[0].sum(), (its_own, other), retain_graph=True, allow_unused=True
            )
            assert by_own.any()
            assert by_other is None or not by_other.any()


class TestScvi:
    def test_both_kls_are_those_of_torch_distributions(self) -> None:
        names, printed = ran("scvi")
        z, size = names["z_encoder"](names["x"]), names["size_encoder"](names["x"])
        q = truth((z.mu, z.logvar), 1)
        torch.testing.assert_close(
            z.kl().double(), kl_divergence(q, standard(q)), rtol=FLOAT32_SUM, atol=1e-5
        )
        of_cell = Normal(
            names["prior_mean"][names["batch"], None].double(),
            names["prior_variance"][names["batch"], None].double().sqrt(),
        )
        wanted = kl_divergence(truth((size.mu, size.logvar), 1), Independent(of_cell, 1))
        found = size.kl(names["size_prior"])
        torch.testing.assert_close(found.double(), wanted, rtol=FLOAT32_SUM, atol=1e-5)
        log_px = numbers(r"log p\(x\|z\)", printed)[::3]
        assert log_px == sorted(log_px)  # it learns
