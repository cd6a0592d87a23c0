"""The families of q(z|x) against Jacobians by autograd, torch.distributions and plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vaez_fast.richer.autoregressive import MADE, InverseAutoregressiveFlow
from vaez_fast.richer.posteriors import Diagonal, FullCovariance, InverseAutoregressive

D, HIDDEN, B = 5, 9, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(module: nn.Module) -> nn.Module:
    """The module in float64, with weights as large as training makes them."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(drawn(*p.shape, seed=i).float() / p.shape[-1] ** 0.5)
    return module.double()


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "diagonal": Diagonal,
    "full covariance": lambda: FullCovariance(D, HIDDEN),
    "iaf": lambda: InverseAutoregressive(D, HIDDEN),
}


def parameters(family: nn.Module) -> tuple[Tensor, ...]:
    hidden = torch.relu(drawn(B, HIDDEN, seed=1))
    return drawn(B, D, seed=2), 0.5 * drawn(B, D, seed=3), *family.added(hidden)  # type: ignore[operator]


@pytest.mark.parametrize("name", FAMILIES)
def test_log_q_is_that_of_the_drawn_z_by_the_change_of_variables(name: str) -> None:
    family = moved(FAMILIES[name]())
    of_images = tuple(p.detach() for p in parameters(family.requires_grad_(False)))
    eps = drawn(2, B, D, seed=4)
    z, log_q = family.transform(eps, *of_images)  # type: ignore[operator]
    for s in range(2):
        for b in range(B):
            one = tuple(p[b : b + 1] for p in of_images)

            def z_of(e: Tensor, one: tuple[Tensor, ...] = one) -> Tensor:
                return family.transform(e[None, None], *one)[0][0, 0]  # type: ignore[operator]

            jacobian = torch.autograd.functional.jacobian(z_of, eps[s, b])
            base = -0.5 * float(eps[s, b].square().sum()) - 0.5 * D * math.log(2 * math.pi)
            wanted = base - float(torch.linalg.slogdet(jacobian).logabsdet)
            # Linear layers return float32: 6e-8 of numbers near 10.
            assert float(log_q[s, b]) == pytest.approx(wanted, abs=2e-5)
            torch.testing.assert_close(z_of(eps[s, b]), z[s, b], rtol=1e-5, atol=1e-5)


def test_a_full_covariance_is_pytorchs_multivariate_normal() -> None:
    family = FullCovariance(D, HIDDEN).double()
    mu, logvar, entries = drawn(B, D), drawn(B, D, seed=1), drawn(B, D * (D - 1) // 2, seed=2)
    factor = torch.diag_embed(torch.exp(0.5 * logvar))
    for b in range(B):
        row = iter(entries[b])
        for i in range(D):
            for j in range(i):
                factor[b, i, j] = factor[b, i, i] * next(row)
    q = torch.distributions.MultivariateNormal(mu, scale_tril=factor)
    p = torch.distributions.MultivariateNormal(torch.zeros(D).double(), torch.eye(D).double())
    eps = drawn(4, B, D, seed=3)
    z, log_q = family.transform(eps, mu, logvar, entries)
    torch.testing.assert_close(z, mu + torch.einsum("bij,sbj->sbi", factor, eps))
    torch.testing.assert_close(log_q, q.log_prob(z))
    kl = family.kl_standard_normal(mu, logvar, entries)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, p))


def test_the_monte_carlo_kl_of_a_full_covariance_is_unbiased() -> None:
    family = FullCovariance(D, HIDDEN).double()
    mu, logvar, entries = drawn(1, D), drawn(1, D, seed=1), 0.5 * drawn(1, 10, seed=2)
    z, log_q = family.transform(drawn(40_000, 1, D, seed=3), mu, logvar, entries)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    spread, mean = torch.std_mean(log_q - log_p)
    wanted = float(family.kl_standard_normal(mu, logvar, entries))
    # Four standard errors: one draw in 16,000 fails, and the draws are fixed.
    assert abs(float(mean) - wanted) < 4 * float(spread) / 200
    assert float(spread) / 200 < 0.01 * wanted


def test_a_new_full_covariance_is_diagonal_and_every_entry_can_learn() -> None:
    family = FullCovariance(D, HIDDEN)
    hidden = torch.rand(B, HIDDEN, generator=torch.Generator().manual_seed(0)) + 0.1
    mu, logvar, eps = (drawn(B, D, seed=i).float() for i in range(3))
    entries = family.added(hidden)[0]
    z, _ = family.transform(eps[None], mu, logvar, entries)
    assert torch.equal(z, Diagonal().transform(eps[None], mu, logvar)[0])
    z.square().sum().backward()
    assert family.mixing.weight.grad is not None
    assert bool((family.mixing.weight.grad != 0).all())


def test_each_output_of_made_reads_all_dimensions_before_its_own_and_no_other() -> None:
    made = moved(MADE(D, hidden=40, context=4))
    context = drawn(1, 4)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: torch.stack(made(z[None, None], context))[:, 0, 0],  # (2, D)
        drawn(D),
    )
    before = torch.ones(D, D).tril(-1).bool()
    for of_output in jacobian:
        assert torch.equal(of_output != 0, before)


def test_made_reads_its_context() -> None:
    made = moved(MADE(D, hidden=40, context=4))
    z = drawn(1, 1, D)
    m, s = made(z, drawn(1, 4))
    other_m, other_s = made(z, drawn(1, 4, seed=1))
    # Dimension 0 has no hidden units before it, so only biases.
    for a, b in ((m, other_m), (s, other_s)):
        assert ((a != b) == (torch.arange(D) > 0)).all()


def test_the_flow_is_a_gated_mean_and_then_reverses() -> None:
    flow = moved(InverseAutoregressiveFlow(D, hidden=12, context=4))
    z, context = drawn(2, B, D), drawn(B, 4, seed=1)
    new, log_det = flow(z, context)
    m, s = flow.made(z, context)  # type: ignore[operator]
    gate = 1 / (1 + torch.exp(-s))
    wanted = (gate * z + (1 - gate) * m).flip(-1)
    torch.testing.assert_close(new, wanted, rtol=1e-6, atol=1e-6)  # s is float32
    torch.testing.assert_close(log_det, gate.log().sum(-1), rtol=1e-5, atol=1e-5, check_dtype=False)


def test_a_new_flows_gate_is_open() -> None:
    torch.manual_seed(0)
    flow = InverseAutoregressiveFlow(16)
    z, context = drawn(1, 50, 16).float(), torch.zeros(50, 128)
    _, log_det = flow(z, context)
    # sigmoid(2) = 0.88; without the 2 the mean would be near 0.5.
    assert float(torch.exp(log_det.detach() / 16).mean()) == pytest.approx(0.88, abs=0.03)
