"""The Gaussian of diffusers' autoencoders, computed by the fused ops."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .gaussian import GaussianPosterior

CLAMP = (-30.0, 20.0)  # of logvar, in diffusers


def patch_diffusers() -> Patch:
    """Let the autoencoders of diffusers sample and sum their KL by the fused ops.

    AutoencoderKL and the video VAEs return a `DiagonalGaussianDistribution` from `encode`. Until
    `undo`, or for a `with` block, each new one is of a subclass that differs in this:

    - `sample` draws from the noise stream, by a key from the generator (see `generator_key`): the
      distribution is the same, the numbers are not those of `torch.randn`. A list of generators has
      one for each row, as in diffusers.
    - `kl` and `nll` sum over the whole event, in float32. Those of diffusers sum over dimensions 1
      to 3: for video (B, C, T, H, W) that leaves (B, W), and for audio (B, C, T) it is an error. A
      KL to a deterministic distribution, or one of another shape, is still computed by diffusers.
    - `logvar`, `std` and `var` are computed when they are read.

    Raises:
        ImportError: diffusers is not installed.
        RuntimeError: diffusers is patched already.
    """
    return Patch()


class Patch(AbstractContextManager["Patch"]):
    """The patch of diffusers, until `undo` or the end of a `with` block."""

    _active: Patch | None = None  # at most one

    def __init__(self) -> None:
        self._original = _distribution()
        if Patch._active is not None:
            raise RuntimeError("patch_diffusers: diffusers is patched already; undo that first")
        original_init, fused = self._original.__init__, _fused(self._original)

        def init(distribution: Any, *args: Any, **keywords: Any) -> None:
            if type(distribution) is self._original:  # not a subclass with methods of its own
                distribution.__class__ = fused
                distribution.__init__(*args, **keywords)
            else:
                original_init(distribution, *args, **keywords)

        self._init = original_init
        self._original.__init__ = init
        Patch._active = self

    def undo(self) -> None:
        """Let diffusers make its own again; those that exist stay as they are. Idempotent."""
        if Patch._active is self:
            self._original.__init__ = self._init
            Patch._active = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def _distribution() -> Any:
    try:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    except ImportError as error:
        raise ImportError(
            f"patch_diffusers: diffusers cannot be imported ({error}): pip install diffusers"
        ) from error
    return DiagonalGaussianDistribution


def _unpickled(parameters: Tensor, deterministic: bool) -> Any:
    return _fused(_distribution())(parameters, deterministic)


@functools.cache
def _fused(original: Any) -> Any:
    """The subclass of diffusers' class that the patch makes."""

    class Fused(original):
        """q(z|x) of an encoder's output `parameters` (B, 2C, *spatial)."""

        def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
            self.parameters, self.deterministic = parameters, deterministic
            self._q = GaussianPosterior(parameters, clamp=CLAMP)
            self.mean = self._q.mu

        @cached_property
        def logvar(self) -> Tensor:
            return self._q.logvar

        @cached_property
        def std(self) -> Tensor:
            return torch.zeros_like(self.mean) if self.deterministic else self._q.std

        @cached_property
        def var(self) -> Tensor:
            return torch.zeros_like(self.mean) if self.deterministic else self.logvar.exp()

        def sample(self, generator: Any = None) -> Tensor:
            if self.deterministic:
                return self.mean.clone()
            if not isinstance(generator, list):
                return self._q.sample(generator=generator)
            if len(generator) == 1:
                return self._q.sample(generator=generator[0])
            if len(generator) != len(self.mean):
                raise ValueError(
                    "generator must be a torch.Generator or a list with one for each row: "
                    f"{len(self.mean)} rows, got {len(generator)}"
                )
            rows = zip(self.parameters.split(1), generator, strict=True)
            return torch.cat(
                [GaussianPosterior(x, clamp=CLAMP).sample(generator=of_x) for x, of_x in rows]
            )

        def __reduce__(self) -> tuple[Any, ...]:
            return _unpickled, (self.parameters, self.deterministic)

        def kl(self, other: Any = None) -> Tensor:
            if self.deterministic or (
                other is not None and (other.deterministic or other.mean.shape != self.mean.shape)
            ):
                return super().kl(other)
            return self._q.kl(None if other is None else (other.mean, other.logvar))

        def nll(self, sample: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
            if self.deterministic:
                return super().nll(sample)
            if sample.shape != self.mean.shape:
                sample = sample.expand(self.mean.shape)
            if dims is None:
                return self._q.nll(sample)
            return self._q.nll(sample, reduce="none").sum(tuple(dims))

    return Fused
