"""The floor of a training step's time: its matrix products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from vaez_fast.training.engine import Engine
from vaez_fast.training.graph import trace


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


def replay(products: list[Product], device: torch.device) -> Callable[[], None]:
    """A function that runs `products` on its own operands, each into its own output."""
    jobs = [(left, right, left @ right) for left, right in (operands(p, device) for p in products)]

    def run() -> None:
        for left, right, out in jobs:
            torch.mm(left, right, out=out)

    return run
