"""cuBLAS's products equal those in float64, within the rounding errors of their dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

CUDA = torch.device("cuda")
M, N, K = 7, 20, 33


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mm": lambda a, b, bias: a @ b,
    "mm, A transposed": lambda a, b, bias: a.t().contiguous().t() @ b,
    "mm, B transposed": lambda a, b, bias: a @ b.t().contiguous().t(),
    "mm, parts of matrices": lambda a, b, bias: a[2:5, 3:20] @ b[3:20, 1:9],
    "linear": lambda a, b, bias: F.linear(a, b.t(), bias),
    "addmm": lambda a, b, bias: torch.addmm(bias, a, b, beta=0.5, alpha=2),
    "addmm of a matrix": lambda a, b, bias: torch.addmm(bias.expand(M, N).clone(), a, b),
    "relu": lambda a, b, bias: torch._addmm_activation(bias, a, b),
    "bmm": lambda a, b, bias: torch.bmm(a.expand(3, M, K), torch.stack([b, b * 2, b * 3])),
    "baddbmm": lambda a, b, bias: torch.baddbmm(bias, a.expand(2, M, K), b.expand(2, K, N)),
    "mv": lambda a, b, bias: a @ b[:, 3],
    "dot": lambda a, b, bias: torch.dot(a[0], b[:, 3]),
    "out=": lambda a, b, bias: torch.mm(a, b, out=a.new_empty(M, N)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(PRODUCTS))
def test_a_product_is_float64s(name: str, dtype: torch.dtype) -> None:
    product = PRODUCTS[name]
    given = [numbers(M, K).to(dtype), numbers(K, N, seed=1).to(dtype), numbers(N, seed=2).to(dtype)]
    found = product(*(x.to(CUDA) for x in given)).cpu().double()
    a, b, bias = (x.double() for x in given)
    wanted, sizes = product(a, b, bias), product(a.abs(), b.abs(), bias.abs())
    # K + 2 additions and products in float32 (or float64), of terms that add up to `sizes`. Then
    # one rounding to the dtype, or two if a bias is added to the rounded product.
    accumulated = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    bound = (K + 2) * accumulated * sizes + torch.finfo(dtype).eps * sizes
    assert ((found - wanted).abs() <= bound).all()


def test_a_captured_product_reads_its_operands_at_each_replay() -> None:
    a, b = numbers(M, K).to(CUDA), numbers(K, N).to(CUDA)
    a @ b  # creates the handle and its workspace before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product = a @ b
    for factor in (1.0, 3.0):
        a.copy_(factor * numbers(M, K).to(CUDA))
        graph.replay()
        torch.testing.assert_close(product.cpu(), factor * (numbers(M, K) @ numbers(K, N)))
