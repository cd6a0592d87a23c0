"""The floor of a training step's time: its matrix products alone, by the fastest code at hand.

On a CPU two libraries are within PyTorch's reach: the one behind `torch.mm` (MKL for float32), and
oneDNN by the operator of a linear layer. Which is faster depends on processor, dtype, shape and
layout: on AMD's processors MKL keeps to AVX2. Each product is tried with both, and with operands as
they are or transposed in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor
from torch.fx import Node

from bench.timing.clock import interleave
from vaez_fast.training.engine import Engine
from vaez_fast.training.graph import trace
from vaez_kernels.affine import has_onednn
from vaez_kernels.backend import has_fast_bfloat16


@dataclass(frozen=True)
class Product:
    """One matrix product of a step: shape and stride of each operand, and the dtype."""

    left: tuple[tuple[int, ...], tuple[int, ...]]  # (m, k)
    right: tuple[tuple[int, ...], tuple[int, ...]]  # (k, n)
    dtype: torch.dtype

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        (m, k), (_, n) = self.left[0], self.right[0]
        return 2 * m * k * n


def products_of(engine: Engine) -> list[Product]:
    """The products of a step of `engine`, forward and backward, in order."""
    graph = trace(engine.update, *engine.arguments())
    found = []
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.mm.default:
            left, right = (_layout(operand) for operand in node.args)
            found.append(Product(left, right, node.meta["val"].dtype))
        elif node.op == "call_function" and _multiplies(node):
            raise NotImplementedError(f"a product that is no aten.mm: {node.target}")
    return found


def _layout(operand: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    value = operand.meta["val"]
    return tuple(value.shape), tuple(value.stride())


def _multiplies(node: Node) -> bool:
    name = str(node.target)
    return any(word in name for word in ("addmm", "bmm", "matmul", "convolution", "linear"))


def operands(product: Product, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normal random numbers with the shapes, strides and dtype of the product."""

    def normal(layout: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
        return torch.empty_strided(*layout, dtype=product.dtype, device=device).normal_()

    return normal(product.left), normal(product.right)


@dataclass(frozen=True)
class Job:
    """A product that is ready to be computed, its operands and a function that returns it."""

    left: Tensor
    right: Tensor
    run: Callable[[], Tensor]


@dataclass(frozen=True)
class Way:
    """How to compute a product on a CPU: "rows" or "columns" of an operand are contiguous."""

    library: str  # a key of LIBRARIES
    left: str
    right: str

    def job(self, product: Product) -> Job:
        """The product of normal random numbers."""
        (m, k), (_, n) = product.left[0], product.right[0]
        left = _stored(m, k, product.dtype, self.left)
        right = _stored(k, n, product.dtype, self.right)
        return Job(left, right, LIBRARIES[self.library](left, right))


def _stored(rows: int, columns: int, dtype: torch.dtype, contiguous: str) -> Tensor:
    if contiguous == "columns":
        return _stored(columns, rows, dtype, "rows").t()
    return torch.empty(rows, columns, dtype=dtype).normal_()


def _by_mm(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    out = left @ right
    return lambda: torch.mm(left, right, out=out)


def _by_linear(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    linear, weight = torch.ops.mkldnn._linear_pointwise, right.t()
    return lambda: linear(left, weight, None, "none", [], "")


LIBRARIES = {"torch.mm": _by_mm, "oneDNN linear": _by_linear}
SECONDS = 0.05  # to choose the way of a product


def ways(dtype: torch.dtype) -> Iterator[Way]:
    """All ways that this PyTorch has on this processor.

    A linear layer would copy inputs whose rows are not contiguous.
    """
    linear = has_onednn() and (dtype == torch.float32 or has_fast_bfloat16(torch.device("cpu")))
    for right in ("rows", "columns"):
        yield Way("torch.mm", "rows", right)
        yield Way("torch.mm", "columns", right)
        if linear:
            yield Way("oneDNN linear", "rows", right)


def fastest(product: Product) -> Way:
    """The fastest way to compute a product on a CPU, by the medians of rounds taken in turn."""
    names = {str(way): way for way in ways(product.dtype)}
    works = {name: way.job(product).run for name, way in names.items()}
    taken = interleave(works, torch.device("cpu"), SECONDS)
    return names[min(taken, key=lambda name: median(taken[name].wall))]


@dataclass(frozen=True)
class Products:
    """The products of a step, ready to be computed."""

    jobs: list[Job]
    libraries: dict[str, int]  # how many products each library computes

    def run(self) -> None:
        for job in self.jobs:
            job.run()


def replay(products: list[Product], device: torch.device) -> Products:
    """The products as a step computes them: by torch.mm, in the step's layouts."""
    pairs = [operands(product, device) for product in products]
    jobs = [Job(left, right, _by_mm(left, right)) for left, right in pairs]
    return Products(jobs, {"torch.mm": len(jobs)})


def floor(products: list[Product], device: torch.device) -> Products:
    """Each product in the fastest way; on a GPU as the step computes it, by cuBLAS."""
    if device.type != "cpu":
        return replay(products, device)
    # Products of the same sizes may lie in memory as is fastest for them.
    distinct = {_sizes(product): product for product in products}
    chosen = {sizes: fastest(product) for sizes, product in distinct.items()}
    found = [chosen[_sizes(product)] for product in products]
    jobs = [way.job(product) for way, product in zip(found, products, strict=True)]
    return Products(jobs, dict(Counter(way.library for way in found)))


def _sizes(product: Product) -> tuple[object, ...]:
    return product.left[0], product.right[0], product.dtype


# Rows and columns of a product that is large enough to reach the processor's peak.
LARGE = {"cpu": 1024, "cuda": 8192}


@cache
def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Multiplications and additions a second of one large square product, by the fastest way."""
    n = LARGE[device.type]
    layout = ((n, n), (n, 1))
    product = Product(layout, layout, dtype)
    run = floor([product], device).run
    times = interleave({"peak": run}, device, budget=0.5)["peak"]
    return product.operations / median(times.of_the_device)
