"""The ops on CUDA from the caller's side: launches, waits and host time of one call.

Runs in a process on the stand-in. Kernels take no time there, so only the host time remains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

import vaez_kernels as ops
from tests.rehearsal import stand_in
from tests.rehearsal.stand_in import Counts

ROWS, LATENTS, PIXELS, HIDDEN, COMPONENTS = 128, 20, 784, 512, 1024
ROUNDS, CALLS = 15, 20

Call = Callable[[], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Rehearsed:
    """One call of an op whose kernels are already compiled."""

    counts: Counts
    nodes: int  # of a graph that captures the call
    host_us: float
    add_us: float  # torch.add of two small tensors, timed in turn with the op


def _leaf(*shape: int) -> Tensor:
    return torch.zeros(shape, device="cuda").requires_grad_()


def calls() -> dict[str, Call]:
    """A call of every op, by its name. Calls whose result requires a gradient can run backward."""
    noise = ops.noise_key(0, "train", device=torch.device("cuda"))
    mu, logvar = _leaf(ROWS, LATENTS), _leaf(ROWS, LATENTS)
    logits, x = _leaf(1, ROWS, PIXELS), torch.zeros(ROWS, PIXELS, device="cuda")
    hidden = _leaf(1, ROWS, HIDDEN)
    decoder = nn.Sequential(nn.Linear(LATENTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))
    decoder.cuda().requires_grad_(False)
    weight, bias = _leaf(PIXELS, HIDDEN), _leaf(PIXELS)
    z, components = _leaf(ROWS, LATENTS), torch.zeros(COMPONENTS, LATENTS, device="cuda")
    return {
        "normal": lambda: ops.normal(noise, 1, ROWS, LATENTS),
        "uniform": lambda: ops.uniform(noise, 1, ROWS, LATENTS),
        "rsample": lambda: ops.rsample(mu, logvar, noise),
        "kl_standard_normal": lambda: ops.kl_standard_normal(mu, logvar),
        "kl_standard_normal_mc": lambda: ops.kl_standard_normal_mc(mu, logvar, noise),
        "rsample_kl": lambda: ops.rsample_kl(mu, logvar, noise),
        "rsample_kl, 8 samples": lambda: ops.rsample_kl(mu, logvar, noise, 8),
        **{
            f"rsample_kl, {estimator}": partial(ops.rsample_kl, mu, logvar, noise, kl=estimator)
            for estimator in ("total-derivative", "sticking-the-landing")
        },
        "bernoulli_log_prob": lambda: ops.bernoulli_log_prob(logits, x),
        "linear_bernoulli_log_prob": lambda: ops.linear_bernoulli_log_prob(hidden, weight, bias, x),
        "mixture_log_prob": lambda: ops.mixture_log_prob(z, components, components),
        "importance_log_likelihood, 50 samples": lambda: ops.importance_log_likelihood(
            decoder, mu.detach(), logvar.detach(), x, noise, 50, "bfloat16"
        ),
    }


def _outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def with_backward(call: Call) -> Callable[[], None]:
    """Forward, then backward from gradients that already exist."""
    ones = [torch.ones_like(output) for output in _outputs(call())]

    def both() -> None:
        torch.autograd.backward(_outputs(call()), ones)

    return both


def _nodes(work: Callable[[], object]) -> int:
    with stand_in.counting() as counts, torch.cuda.graph(torch.cuda.CUDAGraph()):
        work()
    (nodes,) = counts.captured
    return nodes


def host_us(work: Callable[[], object], calls: int = CALLS) -> float:
    """Host time of one call in microseconds, averaged over `calls` calls."""
    before = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - before) / calls * 1e6


def rehearse(work: Callable[[], object]) -> Rehearsed:
    """Counts one call and times many. Each round also times as many calls of torch.add."""
    a, b = torch.zeros(ROWS, device="cuda"), torch.zeros(ROWS, device="cuda")
    work()  # compiles
    with stand_in.counting() as counts:
        work()
    nodes = _nodes(work)
    stand_in.set_duration("*", 0)
    rounds = [(host_us(work), host_us(lambda: torch.add(a, b))) for _ in range(ROUNDS)]
    stand_in.forget_durations()
    ours, adds = zip(*rounds, strict=True)
    return Rehearsed(counts, nodes, median(ours), median(adds))


def rehearse_all() -> dict[str, Rehearsed]:
    """Every op without gradients and, if it has gradients, forward and backward."""
    found: dict[str, Rehearsed] = {}
    for name, call in calls().items():
        with torch.no_grad():
            found[name] = rehearse(call)
        if all(output.requires_grad for output in _outputs(call())):
            found[f"{name}, with backward"] = rehearse(with_backward(call))
    return found
