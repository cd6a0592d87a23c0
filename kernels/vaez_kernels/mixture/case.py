"""Cases of the mixture's density: calls to compare, and the call to time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.utils.checkpoint import checkpoint

from .. import reference
from ..error_bounds import ROUNDING, Check, Rules, worst
from ..launch import blocks_of
from ..testing import DTYPES, VALUES_SHAPE, Arguments, Case, Function, Shape, Tensors, Timed
from . import kernel, mixture_log_prob

# Whether each draw leaves a component out.
OPS = {"mixture_log_prob": False, "mixture_log_prob/leave_out": True}
SHAPES = ((1, 2, 1), (7, 5, 3), (17, 129, 20), (5, 300, 128))  # M, N, D
LARGE = (500, 2000, 64)
LEAVES = ("z",)  # components have no gradient
# The gradient is a mean weighted by responsibilities, whose relative error is the error of log q.
RULES = Rules(
    growth=lambda output, wanted: (
        max(1.0, float(wanted["log_prob"].abs().max())) if output == "grad z" else 1.0
    )
)


def cases() -> Iterator[Case]:
    for op in OPS:
        for dtype in DTYPES:
            for shape in SHAPES:
                yield Case(op, shape, dtype)
        yield Case(op, VALUES_SHAPE, torch.float32, "wide")


def large_cases() -> Iterator[Case]:
    return (Case(op, LARGE, dtype) for op in OPS for dtype in DTYPES)


def inputs(case: Case) -> Arguments:
    # z is drawn from the components: far from all of them, textbook code would lose all digits.
    draws, components, columns = case.shape
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mu, logvar = draw(components, columns), draw(components, columns) - 1.0
    if case.values == "wide":
        mu, logvar = 10.0 * mu, (3.0 * logvar).clamp(-12.0, 6.0)
    own = torch.arange(draws) % components
    z = mu[own] + torch.exp(0.5 * logvar[own]) * draw(draws, columns)
    tensors = {name: x.to(case.dtype) for name, x in (("z", z), ("mu", mu), ("logvar", logvar))}
    return tensors | ({"leave_out": own} if OPS[case.op] else {})


def call(case: Case, arguments: Arguments) -> Tensors:
    return {"log_prob": mixture_log_prob(**arguments)}


def truth(case: Case, arguments: Arguments, rounded: bool) -> Tensors:
    return {"log_prob": reference.mixture_log_prob(**arguments)}


def textbook(case: Case, arguments: Arguments, operands: str) -> Tensors:
    return {"log_prob": textbook_log_prob(**arguments)}


def textbook_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None = None
) -> Tensor:
    components = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    log_q = components.log_prob(z[:, None]).sum(2)
    if leave_out is None:
        return log_q.logsumexp(1) - math.log(len(mu))
    others = log_q.scatter(1, leave_out[:, None], -torch.inf)
    return others.logsumexp(1) - math.log(len(mu) - 1)


# Elements of a (draws, N, D) chunk: 4 MiB on a CPU, unless a single draw takes more.
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}


def chunked_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """z (M, D), mu, logvar (N, D) → log q(z) (M,): differences, squares, sums and logsumexp.

    Eager code works in chunks, which backward computes again. Compiled code adds differences to
    their sum without storing them, so it takes all draws at once.
    """
    inverse_sigma = torch.exp(-0.5 * logvar)
    normaliser = -0.5 * (logvar + math.log(2.0 * math.pi)).sum(1) - math.log(len(mu))

    def density(z: Tensor) -> Tensor:
        t = (z[:, None] - mu) * inverse_sigma
        return (normaliser - 0.5 * t.square().sum(2)).logsumexp(1)

    if torch.compiler.is_compiling():
        return density(z)
    chunks = z.split(max(1, CHUNK[z.device.type] // mu.numel()))
    return torch.cat([checkpoint(density, chunk, use_reentrant=False) for chunk in chunks])


# Draws that are checked at the start and at the end, as for the latent op, against all components.
DRAWS_CHECKED = 8


@dataclass(frozen=True)
class MixtureCase:
    """Inputs of the mixture's density and the upstream gradient, float32, all on one device."""

    z: Tensor  # (M, D)
    mu: Tensor  # (N, D)
    logvar: Tensor  # (N, D)
    grad: Tensor  # (M,)

    def run(self, forward: Function, backward: bool) -> tuple[Tensor, ...]:
        """log q(z) (M,), then the gradient of z (M, D)."""
        out = forward(self.z, self.mu, self.logvar)
        return (out, *torch.autograd.grad(out, self.z, self.grad)) if backward else (out,)

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare the first and last eight draws with the reference.

        With u = `ROUNDING`, log q may err by u times the sizes of its components' terms, ½Σt² and
        ½Σ|logvar|, weighted by responsibility, and by u times its own size. A responsibility has a
        relative error of u times the size of its own terms plus that weighted mean. The terms of
        the gradient have four more roundings.
        """
        errors: list[float] = []
        for first in sorted({0, max(0, len(self.z) - DRAWS_CHECKED)}):
            errors += self._errors_of_draws(outputs, first)
        return Check(worst(errors), "float64 reference")

    def _errors_of_draws(self, outputs: tuple[Tensor, ...], first: int) -> list[float]:
        draws = slice(first, first + DRAWS_CHECKED)
        out, *gradients = (x.detach()[draws].double() for x in outputs)
        z = self.z.detach()[draws].double().requires_grad_()
        truth = reference.mixture_log_prob(z, self.mu, self.logvar)
        (gradient,) = torch.autograd.grad(truth, z, self.grad[draws].double())
        mu, logvar, unit = self.mu.double(), self.logvar.double(), ROUNDING[torch.float32]
        errors = []
        for m, point in enumerate(z.detach()):  # one draw at a time: (N, D) in float64 is large
            slope = (point - mu) * torch.exp(-logvar)  # (N, D)
            squares = (slope * (point - mu)).sum(1)
            responsibility = torch.softmax(-0.5 * (squares + logvar.sum(1)), 0)
            sizes = 0.5 * (squares + logvar.abs().sum(1))
            size = responsibility @ sizes
            errors.append((out[m] - truth[m]).abs() / (unit * (1.0 + size + truth[m].abs())))
            terms = (responsibility * (4.0 + sizes + size)) @ slope.abs()
            bound = unit * (self.grad[first + m].abs() * terms + unit)
            errors += [((of_all[m] - gradient[m]).abs() / bound).max() for of_all in gradients]
        return [float(e.detach()) for e in errors]

    def advance(self) -> None:
        pass


def timed_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> MixtureCase:
    draws, components, D = shape
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn((components, D), generator=generator)
    logvar = -4.0 * torch.rand((components, D), generator=generator)
    eps = torch.randn((draws, D), generator=generator)
    z = mu[:draws] + torch.exp(0.5 * logvar[:draws]) * eps
    grad = torch.randn((draws,), generator=generator)
    z = z.to(device).requires_grad_()
    return MixtureCase(z, mu.to(device), logvar.to(device), grad.to(device))


def mixture_log_prob_floor(shape: Shape, itemsize: int, backward: bool) -> int:
    """Bytes of float32 `mixture_log_prob`, which computes M·N·D terms from little data.

    Forward reads z, mu and logvar, and writes a number for each draw. Backward reads the same and
    the gradients of these numbers, and writes the gradient of z.
    """
    draws, components, D = shape
    forward = itemsize * (draws * D + 2 * components * D + draws)
    return forward + (forward + itemsize * draws * D if backward else 0)


class Moved(NamedTuple):
    """Bytes that a kernel loads and stores."""

    loaded: int
    stored: int


def mixture_log_prob_launches(
    shape: Shape, itemsize: int = 4, leave_out: bool = False
) -> tuple[dict[str, Moved], dict[str, Moved]]:
    """What the launches of forward and of backward move, by kernel.

    Each block of draws reads all components, and reads its draws once for each tile of components.
    Most of that comes from L2. tests/interpreted/test_mixture_kernel.py counts the same bytes in
    the interpreter, and tests/executed in the compiled code.

    Args:
        shape: M, N, D.
        itemsize: of the inputs; what the kernels pass to each other is float32.
        leave_out: whether each draw leaves a component out.
    """
    draws, components, D = shape
    m, n = kernel.BLOCK_M, kernel.BLOCK_N
    blocks, tiles = blocks_of(draws, m), blocks_of(components, n)
    splits = kernel.splits_of(draws, tiles)
    block_d = kernel.block_d_of(D)
    d_blocks = blocks_of(D, block_d)
    width = d_blocks * block_d
    inputs = itemsize * (draws * D + 2 * components * D)
    transposed = 4 * D * (blocks * m + 2 * tiles * n)
    normalisers, highest = 8 * tiles * n, 8 * tiles  # float64
    scores = blocks * tiles * (4 * D * (m + 2 * n) + 8 * n) + 8 * leave_out * draws * tiles
    main = scores + blocks * splits * highest
    of_splits = 4 * 2 * splits * draws
    forward = {
        "mixture_prepare_kernel": Moved(inputs, transposed + normalisers + highest),
        "mixture_forward_kernel": Moved(main, of_splits),
        "mixture_log_prob_kernel": Moved(of_splits + blocks * highest, 4 * 3 * draws),
    }
    rows = 4 * width * (blocks * m + 2 * tiles * n)
    weights = 4 * m * n * blocks * tiles
    # All tiles of a split except its first read the sums again.
    sums, again = (4 * m * block_d * blocks * count for count in (tiles, tiles - splits))
    operands = 4 * block_d * (m + 2 * n) * blocks * tiles
    loaded = main + 4 * draws * tiles + weights + operands + again
    backward = {
        "mixture_prepare_kernel": Moved(inputs, transposed + rows + normalisers + highest),
        "mixture_backward_kernel": Moved(d_blocks * loaded, d_blocks * (weights + sums)),
        "mixture_gradient_kernel": Moved(
            4 * splits * draws * D + 8 * draws * d_blocks, itemsize * draws * D
        ),
    }
    return forward, backward


def mixture_log_prob_moved(shape: Shape, backward: bool) -> int:
    """Bytes that our kernels move for float32 inputs."""
    directions = mixture_log_prob_launches(shape)[: 2 if backward else 1]
    return sum(sum(moved) for direction in directions for moved in direction.values())


TIMED = Timed(
    title="mixture op",
    case=timed_case,
    ours=lambda case: mixture_log_prob,
    textbook=chunked_log_prob,
    # An evaluation of a small model during training.
    launch_bound=((128, 5_000, 20),),
    # Posteriors of altosaar's model, for a part of the draws and images of MNIST; on a GPU, for all
    # 50,000 images. A call of textbook code takes a second on an H100.
    large={"cpu": ((256, 10_000, 128),), "cuda": ((2_000, 50_000, 128),)},
    dtypes=(torch.float32,),  # for bfloat16 everything except textbook code computes the same
    least_bytes=mixture_log_prob_floor,
    kernel_bytes=mixture_log_prob_moved,
    tiled=True,
)
