"""The calls of the public ops that are executed as PTX, and the references of their outputs.

All backends share the references and bounds, which helpers.py, pixels.py, last_layer.py,
mixtures.py and decoders.py derive. Triton compiles a kernel for each D, dtype and flag, which takes
a third of a second, so not every shape is combined with every flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests.kernels import floors, helpers
from tests.kernels.bernoulli import pixels
from tests.kernels.floors import Floor
from tests.kernels.helpers import ERROR, MODES, Compared, latents
from tests.kernels.importance import decoders
from tests.kernels.latent import events
from tests.kernels.linear_bernoulli import last_layer
from tests.kernels.mixture import mixtures
from vaez_fast import compare as comparison
from vaez_kernels import compiler, importance_estimates, noise_key, normal, reference, uniform
from vaez_kernels.cases import FOLDERS, ours, truth
from vaez_kernels.linear_bernoulli import PRECISIONS
from vaez_kernels.testing import Case as OpCase

KEY = noise_key(29, "evaluate", 2**31 + 5)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Offsets beyond the range of 32 bits.
OFFSETS: dict[str, Any] = {"row_offset": 2**40 + 3, "sample_offset": 2**32 - 9}

# The outputs that each kernel of a detailed case computes. PyTorch computes all others.
OUTPUTS = {
    "noise_kernel": ("normal", "uniform"),
    "latent_forward_kernel": ("z", "kl"),
    "latent_backward_kernel": ("grad_mu", "grad_logvar", "grad_prior_mu", "grad_prior_logvar"),
    "bernoulli_forward_kernel": ("log_prob",),
    "bernoulli_backward_kernel": ("grad_logits", "grad_x"),
    "linear_bernoulli_forward_kernel": ("log_prob",),
    "linear_bernoulli_residual_kernel": ("grad_hidden", "grad_weight", "grad_bias"),
    "linear_bernoulli_product_kernel": ("grad_hidden", "grad_weight"),
    "linear_bernoulli_sum_kernel": ("log_prob", "grad_hidden", "grad_weight", "grad_bias"),
    "mixture_prepare_kernel": ("log_prob", "grad_z"),
    "mixture_forward_kernel": ("log_prob",),
    "mixture_log_prob_kernel": ("log_prob",),
    "mixture_backward_kernel": ("grad_z",),
    "mixture_gradient_kernel": ("grad_z",),
    "decoder_kernel": ("log_likelihood", "log_prob"),
}


class Case(NamedTuple):
    """One call of an op, forward and backward."""

    op: str
    flags: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    compare: Callable[[], list[Compared]]
    floors: dict[str, Floor] = {}  # noqa: RUF012 (by kernel; empty if none is known)
    again: dict[str, int] = {}  # noqa: RUF012 (by kernel: bytes that it may load once more)
    targets: tuple[str, ...] = ("sm_90",)
    quick: bool = True  # whether CI executes it

    def __str__(self) -> str:
        words = (self.op, self.flags, _name(self.dtype), "x".join(map(str, self.shape)))
        return " ".join(filter(None, words)).replace(" ", "-")


# The folders of the ops that have cases of their own here. Others take those of vaez_kernels.cases.
DETAILED = ("noise", "latent", "bernoulli", "mixture", "linear_bernoulli", "importance")


def all_cases() -> list[Case]:
    detailed = [
        *_noise(),
        *_latent(),
        *_events(),
        *_bernoulli(),
        *_mixture(),
        *_last_layer(),
        *_decoder(),
    ]
    return [*detailed, *_others()]


def _others() -> Iterator[Case]:
    for name, module in FOLDERS.items():
        if name in DETAILED:
            continue
        for case in module.cases():
            if min(case.shape) > 1 and case.shape[-1] < 100:
                run, quick = partial(_compared, case), case.values == "normal"
                yield Case(case.op, case.values, case.dtype, case.shape, run, quick=quick)


def _compared(case: OpCase) -> list[Compared]:
    """Outputs of the PTX, with what `vaez-fast compare` allows them to err by on a GPU."""
    wanted, found = truth(case), ours(case, torch.device("cpu"))
    # Nothing is compiled for the CPU where fresh memory is filled with NaN, which would be traced.
    with patch.object(compiler, "has_cpu_compiler", lambda: False):
        results = {"fallback": comparison.run([case], "fallback"), "cuda": [found]}
    return [
        Compared(
            row.output,
            found[row.output],
            wanted[row.output],
            row.tolerance + (row.textbook_absolute or 0.0),
        )
        for row in comparison.compared([case], ("fallback", "cuda"), results)
        if row.backend == "cuda"
    ]


def _noise() -> Iterator[Case]:
    for draw in (normal, uniform):
        for shape in ((3, 7, 19), (8, 129, 20), (1, 1, 1), (2, 33, 128), (1, 3, 257)):
            quick = draw is normal or shape[2] == 20
            of = {"noise_kernel": floors.noise(*shape)}
            compare = partial(_drawn, draw, shape)
            yield Case("noise", draw.__name__, torch.float32, shape, compare, of, quick=quick)


def _drawn(draw: Callable[..., Tensor], shape: tuple[int, int, int]) -> list[Compared]:
    wanted = getattr(reference, draw.__name__)(KEY, *shape, **OFFSETS)
    limit = ERROR * wanted.abs().clamp(min=1.0)
    return [Compared(draw.__name__, draw(KEY, *shape, **OFFSETS), wanted, limit)]


def _latent() -> Iterator[Case]:
    for i, mode in enumerate(MODES):
        for dtype in FLOATS:
            # CI runs each mode with float32 and one other dtype.
            quick = dtype in (torch.float32, FLOATS[1 + i % 2])
            yield _latent_case(mode, (3, 7, 20), dtype, quick=quick)
    shapes = ((1, 1, 1), (1, 129, 20), (2, 33, 128), (8, 7, 19), (8, 5, 257), (1, 2, 1500))
    for mode in ("rsample_kl/analytic", "rsample_kl/total-derivative"):
        for shape in shapes:
            quick = mode.endswith("analytic")
            targets = ("sm_90", "sm_80") if shape[2] in (20, 19) else ("sm_90",)
            yield _latent_case(mode, shape, torch.float32, targets, quick, OFFSETS)
            for dtype in FLOATS[1:]:
                yield _latent_case(mode, shape, dtype, quick=False, offsets=OFFSETS)


# Each has flags of the kernels that the others lack.
EVENTS = (
    events.Call((2, 4, 6, 4), "channels-last halves", samples=2, clamp=(-0.5, 0.75)),
    events.Call((2, 4, 6, 4), "channels last", "total-derivative", "channels", prior="channel"),
    events.Call((2, 3, 5, 5), "channels last", "sticking-the-landing", "none", 2, prior="full"),
    events.Call((5, 19), reduce="batch-mean", free_bits=0.2, prior="row"),
    events.Call((2, 4, 6, 4), "halves", "analytic", "channels", 9, logvar="channel"),
    events.Call((2, 4, 6, 4), dtypes=(torch.float32, torch.bfloat16), reduce="none", free_bits=0.1),
)


def _events() -> Iterator[Case]:
    for call in EVENTS:
        compare = partial(events.compared, call, **OFFSETS | {"sample_offset": 2**32 - 10})
        flags = "-".join(str(x) for x in call[1:] if x and x is not call.dtypes)
        yield Case("event", flags, call.dtypes[1], call.shape, compare)


def _latent_case(
    mode: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    targets: tuple[str, ...] = ("sm_90",),
    quick: bool = True,
    offsets: dict[str, Any] | None = None,
) -> Case:
    samples, rows, columns = shape
    mu, logvar = latents(rows, columns, dtype)
    compare = partial(helpers.compared, mode, mu, logvar, KEY, samples, **(offsets or {}))
    names = ("latent_forward_kernel", "latent_backward_kernel")
    of = dict(zip(names, floors.latent(mode, mu, samples), strict=True))
    return Case("latent", mode, dtype, shape, compare, of, targets=targets, quick=quick)


def _bernoulli() -> Iterator[Case]:
    for dtype in FLOATS:
        for targets in pixels.TARGETS:
            quick = targets in (torch.uint8, torch.float32)
            yield _bernoulli_case((3, 7, 20), dtype, targets, quick or dtype == torch.float32)
    for shape in ((1, 1, 1), (8, 129, 3), (8, 7, 784), (3, 33, 257)):
        for dtype in FLOATS:
            yield _bernoulli_case(shape, dtype, torch.uint8, dtype == torch.float32)
    logits, x = pixels.pixels(2, 3, 4200, torch.float32, torch.float32)  # two programs a row
    compare = partial(pixels.compared, logits, x)
    yield Case("likelihood", "wide", torch.float32, (2, 3, 4200), compare)


def _bernoulli_case(
    shape: tuple[int, int, int], dtype: torch.dtype, targets: torch.dtype, quick: bool
) -> Case:
    logits, x = pixels.pixels(*shape, dtype, targets)
    names = ("bernoulli_forward_kernel", "bernoulli_backward_kernel")
    of = dict(zip(names, floors.bernoulli(logits, x), strict=True))
    flags = f"{_name(targets)} targets"
    compare = partial(pixels.compared, logits, x)
    return Case("likelihood", flags, dtype, shape, compare, of, quick=quick)


def _mixture() -> Iterator[Case]:
    shapes = ((1, 1, 1), (7, 5, 3), (17, 129, 20), (3, 300, 33), (2, 130, 257))
    for shape in shapes:
        for leave_out in (False, True)[: shape[1]]:
            for dtype in FLOATS:
                quick = (
                    dtype == torch.float32 and shape[2] < 257 and (not leave_out or shape[2] == 20)
                )
                yield _mixture_case(shape, dtype, leave_out, quick)
    # The kernel's own inputs are always float32.
    for dtype in FLOATS[1:]:
        yield _mixture_case((5, 40, 20), dtype, True, True)


def _mixture_case(
    shape: tuple[int, int, int], dtype: torch.dtype, leave_out: bool, quick: bool
) -> Case:
    compare = partial(mixtures.compared, mixtures.mixture(*shape, dtype, leave_out=leave_out))
    of = floors.mixture(shape, dtype, leave_out)
    flags = "leave_out" if leave_out else ""
    again = floors.mixture_again(shape, leave_out)
    return Case("mixture", flags, dtype, shape, compare, of, again, quick=quick)


def _last_layer() -> Iterator[Case]:
    one_tile, small, large = (2, 7, 12, 15), (3, 7, 19, 20), (2, 33, 40, 100)
    for precision in PRECISIONS:
        yield _layer_case(one_tile, torch.float32, torch.uint8, precision, True)
        yield _layer_case(small, torch.float32, torch.uint8, precision, True)
        yield _layer_case(large, torch.float32, torch.uint8, precision, False)
    for dtype in FLOATS[1:]:
        yield _layer_case(one_tile, dtype, torch.uint8, "float32", True)
        yield _layer_case(small, dtype, torch.uint8, "float32", True)
        yield _layer_case(large, dtype, torch.float32, "float32", False)
    yield _layer_case((1, 1, 1, 1), torch.float32, torch.float32, "tf32", True)
    yield _layer_case((8, 5, 70, 784), torch.bfloat16, torch.bool, "float32", False)


def _layer_case(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    targets: torch.dtype,
    precision: str,
    quick: bool,
) -> Case:
    given = last_layer.inputs(shape, dtype, targets)
    compare = partial(last_layer.compared, given, precision, tensor_cores=True)
    flags = f"{_name(targets)} targets, {precision} products"
    # For sm_90, products of other precisions become wgmma, which tests/ptx does not support.
    plain = precision == "float32" and dtype == torch.float32
    gpus = ("sm_80", "sm_90") if plain else ("sm_80",)
    of, again = {}, {}
    # The smallest tile has 16 rows, 16 pixels and 32 hidden units. If there are several, programs
    # read operands again.
    if shape[0] * shape[1] <= 16 and shape[3] <= 16:
        of = floors.last_layer(*given, precision)
        again = floors.last_layer_again(given.hidden, given.x)
    return Case("last layer", flags, dtype, shape, compare, of, again, gpus, quick)


def _decoder() -> Iterator[Case]:
    small = (5, 19, 23, 84)  # neither powers of two nor multiples of 16
    for precision in ("tf32", "bfloat16"):
        for activation in (nn.ReLU, nn.Tanh):
            yield _decoder_case((3, 40, *small), activation, precision, True)
        yield _decoder_case((1, 1, *small), nn.ReLU, precision, False)
        yield _decoder_case((2, 70, 50, 200, 200, 784), nn.Tanh, precision, False)
        yield _decoder_case((2, 33, 2, 256, 512, 784), nn.ReLU, precision, False)


def _decoder_case(
    shape: tuple[int, ...], activation: type[nn.Module], precision: str, quick: bool
) -> Case:
    flags = f"{activation.__name__.lower()}, {precision} products"
    compare = partial(_sampled, shape, activation, precision)
    gpu, name = "sm_80", "importance sampling"
    of = {"decoder_kernel": floors.decoder(shape, precision, gpu)}
    again = {"decoder_kernel": floors.decoder_again(shape, precision, gpu)}
    return Case(name, flags, torch.float32, shape, compare, of, again, (gpu,), quick)


def _sampled(shape: tuple[int, ...], activation: type[nn.Module], precision: str) -> list[Compared]:
    images, samples, *widths = shape
    of = decoders.given(images, *widths, activation=activation)
    offsets: dict[str, Any] = OFFSETS | {"sample_offset": 3}
    found = importance_estimates(*of, KEY, samples, precision, **offsets)
    wanted = decoders.truth(of, KEY, samples, precision, **offsets)
    return [
        Compared(name, getattr(found, name), getattr(wanted, name), wanted.bound)
        for name in found._fields
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
