"""The launches, graphs and waits of a training step and of the ops."""

from __future__ import annotations

import pytest
import torch

import vaez_kernels
from tests.rehearsal import stand_in
from tests.rehearsal.ops import calls, rehearse, with_backward
from tests.rehearsal.stand_in import Kind
from tests.rehearsal.steps import Step, rehearse_step
from vaez_fast.training.phases import STEPS_PER_REPLAY


@pytest.fixture(scope="module")
def step() -> Step:
    return rehearse_step("ELBO, analytic KL", "bfloat16")


def test_a_step_launches_kernels_and_nothing_else(step: Step) -> None:
    one = step.one
    assert {h.kind for h in one.happened} == {Kind.DRIVER_LAUNCH, Kind.PRODUCT}
    # This is how inductor 2.11 and 2.14 fuse it. More launches would mean a lost fusion.
    assert one.launches <= 50
    # 6 layers: forward, the weights' gradients, and the inputs' gradients except the first's.
    assert one.products.total() <= 17
    kernels = ("latent_forward", "latent_backward", "bernoulli_forward", "bernoulli_backward")
    assert [one.triton[f"{kernel}_kernel"] for kernel in kernels] == [1, 1, 1, 1]


def test_steps_are_captured_whole_and_nothing_waits(step: Step) -> None:
    capture = step.capture
    (nodes,) = capture.captured
    assert nodes == STEPS_PER_REPLAY * step.one.launches
    assert sum(h.captured for h in capture.happened) == nodes
    # torch waits once before it captures.
    assert capture.synchronisations == {"cudaDeviceSynchronize": 1}


def test_a_replay_is_one_launch(step: Step) -> None:
    assert [h.kind for h in step.replay.happened] == [Kind.GRAPH_LAUNCH]


@pytest.mark.parametrize(
    ("op", "launches"), [("rsample_kl", 1), ("bernoulli_log_prob", 1), ("normal", 1)]
)
def test_an_op_is_one_launch_and_never_waits(op: str, launches: int) -> None:
    with torch.no_grad():
        found = rehearse(calls()[op])
    counts = found.counts
    assert {h.kind for h in counts.happened} == {Kind.DRIVER_LAUNCH}
    assert counts.launches == found.nodes == launches


@pytest.mark.parametrize("op", ["rsample_kl", "bernoulli_log_prob"])
def test_backward_is_one_launch_more(op: str) -> None:
    counts = rehearse(with_backward(calls()[op])).counts
    assert counts.triton.total() == 2
    assert counts.synchronisations == {}


def test_a_monte_carlo_kl_compiles_and_keeps_its_kernels() -> None:
    mu, logvar = (torch.zeros(8, 20, device="cuda").requires_grad_() for _ in range(2))
    noise = vaez_kernels.noise_key(0, "train", device=torch.device("cuda"))
    compiled = torch.compile(
        lambda: vaez_kernels.kl_standard_normal_mc(mu, logvar, noise, 4).sum(), fullgraph=True
    )
    compiled().backward()
    with stand_in.counting() as counts:
        compiled().backward()
    assert counts.triton["latent_forward_kernel"] == 1
    assert counts.triton["latent_backward_kernel"] == 1
