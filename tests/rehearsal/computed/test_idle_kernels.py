"""A kernel that computes nothing makes tests/cuda fail, so tests that pass there ran kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from tests.cuda import test_numbers, test_products
from tests.cuda.moved import CUDA, linear_on_cuda, log_prob_on_cuda, mixture_on_cuda
from tests.executed.cases import OUTPUTS
from tests.kernels.bernoulli import pixels
from tests.kernels.helpers import assert_within
from tests.kernels.importance import decoders
from tests.kernels.linear_bernoulli import last_layer
from tests.kernels.mixture import mixtures
from tests.rehearsal.results import idle
from vaez_kernels import linear_bernoulli_log_prob

latents = partial(
    test_numbers.test_values_and_gradients_are_the_references,
    "rsample_kl/analytic",
    torch.float32,
    (8, 7, 3),
)


def bernoulli() -> None:
    pixels.check(*pixels.pixels(9, 7, 19), log_prob_on_cuda)


def mixture() -> None:
    mixtures.check(mixtures.mixture(7, 5, 3), mixture_on_cuda)


def last_layers() -> None:
    given = last_layer.inputs(test_products.SMALL)
    last_layer.check(given, "float32", linear_on_cuda, tensor_cores=True)


def importance() -> None:
    of = decoders.given(3, *test_products.WIDTHS)
    found = test_products.estimates(of, 7, "bfloat16")
    want = decoders.truth(of, test_products.KEY, 7, "bfloat16")
    assert_within("log_likelihood", found.log_likelihood, want.log_likelihood, want.bound)


KERNELS: dict[str, Callable[[], object]] = {
    "noise_kernel": partial(test_numbers.test_the_stream_is_the_cpus, 3),
    "latent_forward_kernel": latents,
    "latent_backward_kernel": latents,
    "bernoulli_forward_kernel": bernoulli,
    "bernoulli_backward_kernel": bernoulli,
    "mixture_prepare_kernel": mixture,
    "mixture_forward_kernel": mixture,
    "mixture_log_prob_kernel": mixture,
    "mixture_backward_kernel": mixture,
    "mixture_gradient_kernel": mixture,
    "linear_bernoulli_forward_kernel": last_layers,
    "linear_bernoulli_residual_kernel": last_layers,
    "linear_bernoulli_product_kernel": last_layers,
    "linear_bernoulli_sum_kernel": last_layers,
    "decoder_kernel": importance,
}


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """Otherwise memory could still hold the right results of an earlier call."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("fresh_memory_is_nan")
@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_check_fails_without_its_kernel(kernel: str) -> None:
    KERNELS[kernel]()
    with idle(kernel) as launches, pytest.raises(AssertionError):
        KERNELS[kernel]()
    assert set(launches) == {kernel}


def test_no_kernel_is_left_out() -> None:
    assert set(KERNELS) == set(OUTPUTS)


def test_a_kernel_that_reaches_beyond_its_tensors_is_stopped() -> None:
    hidden, weight, bias, x = (t.detach().to(CUDA) for t in last_layer.inputs((3, 7, 20, 19)))
    short = bias.untyped_storage()
    short.resize_(4)  # bytes: only the first of 19 numbers remains
    with pytest.raises(RuntimeError, match="launch failure"):
        linear_bernoulli_log_prob(hidden, weight, bias, x)
