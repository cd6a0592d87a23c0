"""The benchmarks' byte counts, compared with small examples counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.timing.traffic import (
    aten_bytes,
    inductor_bytes,
)
from vaez_kernels import compiler, noise, noise_key, normal, rsample_kl, uniform
from vaez_kernels.bernoulli.case import bernoulli_log_prob_floor
from vaez_kernels.compiler import has_cpu_compiler, isolated
from vaez_kernels.latent.case import rsample_kl_floor
from vaez_kernels.linear_bernoulli.case import linear_bernoulli_log_prob_floor
from vaez_kernels.mixture.case import mixture_log_prob_floor

CPU = torch.device("cpu")
ROWS, COLUMNS = 48, 64
N = ROWS * COLUMNS

needs_compiler = pytest.mark.skipif(not has_cpu_compiler(), reason="needs a C++ compiler")


def eager(work: Callable[[], object]) -> int:
    return aten_bytes(work, CPU)


@pytest.fixture
def a() -> Tensor:
    return torch.rand(ROWS, COLUMNS)


def test_floor_is_12_and_20_bytes_an_element_for_float32() -> None:
    forward = rsample_kl_floor((1, ROWS, COLUMNS), 4, backward=False)
    both = rsample_kl_floor((1, ROWS, COLUMNS), 4, backward=True)
    assert forward == 12 * N + 4 * ROWS
    assert both - forward == 20 * N + 4 * ROWS


@pytest.mark.parametrize("samples", [1, 8])
def test_the_likelihoods_floor_reads_targets_once_for_all_samples(samples: int) -> None:
    for itemsize in (4, 2):
        forward = bernoulli_log_prob_floor((samples, ROWS, COLUMNS), itemsize, backward=False)
        both = bernoulli_log_prob_floor((samples, ROWS, COLUMNS), itemsize, backward=True)
        assert forward == (itemsize * samples + 1) * N + 4 * samples * ROWS
        assert both - forward == (2 * itemsize * samples + 1) * N + 4 * samples * ROWS


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_latent_ops_floor_is_what_goes_in_and_comes_out(
    samples: int, dtype: torch.dtype
) -> None:
    mu = logvar = grad_mu = grad_logvar = torch.empty(ROWS, COLUMNS, dtype=dtype)
    z = grad_z = torch.empty(samples, ROWS, COLUMNS, dtype=dtype)
    kl = grad_kl = torch.empty(ROWS)
    forward = bytes_of(mu, logvar) + bytes_of(z, kl)
    backward = bytes_of(mu, logvar, grad_z, grad_kl) + bytes_of(grad_mu, grad_logvar)
    size = ((samples, ROWS, COLUMNS), dtype.itemsize)
    assert rsample_kl_floor(*size, backward=False) == forward
    assert rsample_kl_floor(*size, backward=True) == forward + backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_layers_floor_is_what_goes_in_and_comes_out(dtype: torch.dtype) -> None:
    samples, images, width, pixels = 3, 5, 7, 11
    hidden = grad_hidden = torch.empty(samples, images, width, dtype=dtype)
    weight = grad_weight = torch.empty(pixels, width, dtype=dtype)
    bias = grad_bias = torch.empty(pixels)
    x = torch.empty(images, pixels, dtype=torch.uint8)
    log_prob = grad_log_prob = torch.empty(samples, images)
    forward = bytes_of(hidden, weight, bias, x) + bytes_of(log_prob)
    backward = bytes_of(hidden, weight, bias, x, grad_log_prob)
    backward += bytes_of(grad_hidden, grad_weight, grad_bias)
    size = ((samples, images, width, pixels), dtype.itemsize)
    assert linear_bernoulli_log_prob_floor(*size, backward=False) == forward
    assert linear_bernoulli_log_prob_floor(*size, backward=True) == forward + backward


def test_the_mixtures_floor_is_what_goes_in_and_comes_out() -> None:
    draws, components, latents = 13, 17, 3
    z = grad_z = torch.empty(draws, latents)
    mu = logvar = torch.empty(components, latents)
    log_q = grad_log_q = torch.empty(draws)
    forward = bytes_of(z, mu, logvar) + bytes_of(log_q)
    backward = bytes_of(z, mu, logvar, grad_log_q) + bytes_of(grad_z)
    assert mixture_log_prob_floor((draws, components, latents), 4, backward=False) == forward
    assert (
        mixture_log_prob_floor((draws, components, latents), 4, backward=True) == forward + backward
    )


# Eager kernels.


def test_a_sum_of_two_tensors_moves_12_bytes_an_element(a: Tensor) -> None:
    b = torch.rand_like(a)
    assert eager(lambda: a + b) == 12 * N


def test_a_scalar_is_not_read_from_memory(a: Tensor) -> None:
    assert eager(lambda: a * 2.5) == 8 * N


def test_a_tensor_given_twice_is_read_once(a: Tensor) -> None:
    assert eager(lambda: a * a) == 8 * N


def test_bfloat16_moves_half(a: Tensor) -> None:
    half = a.bfloat16()
    assert eager(lambda: half * 2.5) == 4 * N
    assert eager(lambda: a.bfloat16()) == (4 + 2) * N


def test_a_reduction_reads_all_and_writes_what_is_left(a: Tensor) -> None:
    assert eager(lambda: a.sum(1)) == 4 * N + 4 * ROWS


def test_an_expanded_tensor_has_the_elements_of_its_source(a: Tensor) -> None:
    row = torch.rand(COLUMNS)
    assert eager(lambda: a + row.expand_as(a)) == 8 * N + 4 * COLUMNS


def test_a_slice_is_read_as_far_as_it_goes(a: Tensor) -> None:
    assert eager(lambda: a[:, ::2] * 2.5) == 8 * (N // 2)


@pytest.mark.parametrize(
    "view", [Tensor.t, Tensor.detach, lambda a: a.view(-1), lambda a: a[None].expand(9, -1, -1)]
)
def test_a_view_moves_nothing(a: Tensor, view: Callable[[Tensor], Tensor]) -> None:
    assert eager(lambda: view(a)) == 0


def test_memory_that_is_only_allocated_moves_nothing(a: Tensor) -> None:
    assert eager(lambda: (torch.empty(ROWS, COLUMNS), torch.empty_like(a))) == 0


@pytest.mark.parametrize(
    "fill",
    [torch.zeros_like, torch.ones_like, torch.randn_like, Tensor.zero_, Tensor.normal_],
)
def test_filling_writes_and_reads_nothing(a: Tensor, fill: Callable[[Tensor], Tensor]) -> None:
    assert eager(lambda: fill(a)) == 4 * N


def test_in_place_arithmetic_reads_what_it_overwrites(a: Tensor) -> None:
    b = torch.rand_like(a)
    assert eager(lambda: b.mul_(2.5)) == 8 * N
    assert eager(lambda: b.add_(a)) == 12 * N
    assert eager(lambda: b.copy_(a)) == 8 * N
    assert eager(lambda: torch.mul(a, 2.5, out=b)) == 8 * N


def test_an_operator_made_of_others_counts_their_kernels(a: Tensor) -> None:
    # On a CPU: log σ(l) with a buffer for its backward (12), ones (4), then in place: minus x (12),
    # times l (12), minus log σ (12).
    x = torch.ones_like(a)
    assert eager(lambda: binary_cross_entropy_with_logits(a, x, reduction="none")) == 52 * N


SCALAR_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "and": lambda n: n & 5,
    "number & tensor": lambda n: 5 & n,
    "or": lambda n: n | 5,
    "xor": lambda n: n ^ 5,
    "shift left": lambda n: n << 3,
    "shift right": lambda n: n >> 3,
    "remainder": lambda n: n % 5,
    "number % tensor": lambda n: 5 % n,
    "floor": lambda n: n // 5,
    "number - tensor": lambda n: 5 - n,
    "in place": lambda n: n.bitwise_and_(5),
}


@pytest.mark.parametrize("name", SCALAR_OPERATIONS)
def test_integers_and_a_number_move_16_bytes_an_element(name: str) -> None:
    # In int64: C++ turns the number into a tensor and calls the operator for two tensors.
    n = torch.arange(1, N + 1).view(ROWS, COLUMNS)
    expected = SCALAR_OPERATIONS[name](n.clone())
    found: list[Tensor] = []
    assert eager(lambda: found.append(SCALAR_OPERATIONS[name](n))) == 16 * N
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("kind", [normal, uniform])
def test_eager_noise_is_counted(
    kind: Callable[[Tensor, int, int, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fallback on a GPU runs ten rounds, each with two products of int64 words. A product reads
    # 8 bytes and writes 8. Four words make four numbers.
    monkeypatch.setitem(compiler.failures, "cpu", "the test wants eager code")
    key = noise_key(0, "train")
    drawn: list[Tensor] = []
    moved = eager(lambda: drawn.append(kind(key, 1, ROWS, COLUMNS)))
    assert moved > 10 * 2 * 16 * N // 4
    assert torch.equal(drawn[0], kind(key, 1, ROWS, COLUMNS))


def test_the_backward_is_counted_with_its_forward(a: Tensor) -> None:
    a.requires_grad_()
    upstream = torch.rand_like(a)

    def work() -> None:
        torch.autograd.grad(a.exp(), a, upstream)

    assert eager(work) == 8 * N + 12 * N  # exp; the upstream gradient times exp's result


# Compiled kernels.


@pytest.fixture
def nothing_compiled() -> None:
    torch._dynamo.reset()


@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiled_sum_moves_12_bytes_an_element(a: Tensor) -> None:
    add = torch.compile(torch.add)
    b = torch.rand_like(a)
    assert inductor_bytes(lambda: add(a, b)) == 12 * N


@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
def test_fused_kernels_move_no_intermediate(a: Tensor) -> None:
    chain = torch.compile(lambda a, row: torch.exp(2.5 * a + row).tanh())
    row = torch.rand(COLUMNS)
    assert inductor_bytes(lambda: chain(a, row)) == 8 * N + 4 * COLUMNS
    # The graph may be cached now; counting again must not give zero bytes.
    torch._dynamo.reset()
    assert inductor_bytes(lambda: chain(a, row)) == 8 * N + 4 * COLUMNS


@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiled_backward_is_counted_with_its_forward(a: Tensor) -> None:
    a.requires_grad_()
    upstream = torch.rand_like(a)
    run = torch.compile(torch.exp)
    moved = inductor_bytes(lambda: torch.autograd.grad(run(a), a, upstream))
    assert moved == 8 * N + 12 * N


@needs_compiler
def test_what_is_compiled_already_has_no_account(a: Tensor) -> None:
    add = torch.compile(torch.add)
    add(a, a)
    assert inductor_bytes(lambda: add(a, a)) is None
    assert inductor_bytes(lambda: None) is None


@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fallback_moves_its_noise_and_its_tensors(dtype: torch.dtype) -> None:
    mu = torch.rand(ROWS, COLUMNS).to(dtype).requires_grad_()
    logvar = torch.rand(ROWS, COLUMNS).to(dtype).requires_grad_()
    key = noise_key(0, "train")
    grads = [torch.rand(1, ROWS, COLUMNS).to(dtype), torch.rand(ROWS)]

    def work() -> None:
        torch.autograd.grad(rsample_kl(mu, logvar, key), [mu, logvar], grads)

    item = dtype.itemsize
    drawn = 4 * N
    z = (3 * item + 4) * N  # mu, logvar, eps in, z out
    kl = 2 * item * N + 4 * ROWS  # in a separate loop
    backward = (5 * item + 4) * N + 4 * ROWS
    moved = inductor_bytes(work)
    assert moved is not None
    # The rest is the key, the step, and constants of the generator.
    assert 0 <= moved - (drawn + z + kl + backward) < 1024


@needs_compiler
def test_the_compiled_noise_stores_its_numbers_and_nothing_else() -> None:
    # `inductor_bytes` relies on this: one loop over the 100,003 quads of the example inputs.
    build = noise.twin.compiled_quads.build
    moved = inductor_bytes(lambda: isolated(lambda: build(True)))
    assert moved is not None
    assert 0 <= moved - 100_003 * 16 < 1024
