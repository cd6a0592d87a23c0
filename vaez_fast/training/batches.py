"""The training data on the device, and the order of their use in an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..system.world import ALONE, World


class Batches:
    """Batches of B images. The step's number selects its batch on the device, without the host.

    A new epoch writes into the same tensors, because a captured CUDA graph reads those.

    Args:
        images: (N, 784) uint8 on the device, N ≥ B.
        batch_size: B, of all ranks together.
        world: the ranks that share each batch; this rank takes its share of the rows.
    """

    def __init__(self, images: Tensor, batch_size: int, world: World = ALONE) -> None:
        self.images = images
        self.batch_size = batch_size
        self.world = world
        self.share = world.share(batch_size)
        self.order = torch.arange(len(images), device=images.device)

    @property
    def device(self) -> torch.device:
        """Where the images are, and where everything will be."""
        return self.images.device

    def inputs(self) -> list[Tensor]:
        """The tensors that a step's batch is taken from."""
        return [self.images, self.order]

    @property
    def per_epoch(self) -> int:
        """Whole batches in an epoch; the remaining images are left out until another epoch."""
        return len(self.images) // self.batch_size

    def begin_epoch(self, order: Tensor, images: Tensor | None = None) -> None:
        """Use the images in `order`, a permutation (N,) int64; `images` replaces them if given."""
        self.order.copy_(order)
        if images is not None:
            self.images.copy_(images)

    def rows(self, images: Tensor, order: Tensor, step: Tensor) -> Tensor:
        """This rank's rows of a step's batch: images, order and step (1,) int64 on the device →
        (len(share), 784) uint8.
        """
        first = step % self.per_epoch * self.batch_size
        chosen = first + torch.arange(self.share.start, self.share.stop, device=order.device)
        return images.index_select(0, order.index_select(0, chosen))
