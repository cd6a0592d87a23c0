"""One training step as one compiled graph: loss, backward and optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.func import functional_call

from vaez_kernels import noise_key

from .data import PIXELS
from .graph import compile_graph
from .model import VAE
from .objective import Objective

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
# The share of all steps over which the learning rate rises. At full rate from the first step 100
# of the encoder's first 256 units die, against 20, and log p(x) of static MNIST ends at −96.8
# instead of −95.3 (reports/README.md, "Warm-up").
WARMUP = 0.05


@dataclass
class State:
    """All that a step reads and advances, in place and on the device."""

    noise: Tensor  # (2,) int64: key, and the step that is to come
    schedule: Tensor  # (T, 2) float32: see `adam_schedule`
    totals: Tensor  # (2,) float32: rate and distortion, summed over images since they were read
    weights: list[Tensor]  # the parameters that are trained, float32
    copies: list[Tensor]  # of the matrices in the products' dtype; empty for float32
    first_moments: list[Tensor]
    second_moments: list[Tensor]

    def clone(self) -> State:
        def copy(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
            return [v.clone() for v in value] if isinstance(value, list) else value.clone()

        return State(*(copy(getattr(self, f.name)) for f in fields(self)))  # type: ignore[arg-type]

    def arguments(self) -> tuple[Tensor | list[Tensor], ...]:
        return tuple(getattr(self, f.name) for f in fields(self))


def adam_schedule(lr: float, steps: int) -> Tensor:
    """(steps, 2) float32: the learning rate with Adam's bias corrections folded in.

    The rate rises linearly over the first steps and follows a cosine to zero. Row t holds
    lr_t / (1 − β₁^(t+1)) and 1 / √(1 − β₂^(t+1)) (Kingma & Ba 2015, algorithm 1). A table, because
    inductor repeats scalar arithmetic inside the loop over the weights, where two pow and a cos
    cost more than the update (0.8 against 0.2 ms for 200,000 weights).
    """
    t = torch.arange(steps, dtype=torch.float64)
    rise = ((t + 1) / max(1.0, WARMUP * steps)).clamp(max=1)
    cosine = 0.5 * (1 + torch.cos(math.pi * t / steps))
    rate = lr * rise * cosine / (1 - BETA1 ** (t + 1))
    return torch.stack((rate, (1 - BETA2 ** (t + 1)).rsqrt()), 1).float()


def _with_copies(weights: list[Tensor], copies: list[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    # each weight with its copy in the products' dtype: the matrices have one, if there are any
    remaining = iter(copies)
    return [(w, next(remaining) if copies and w.dim() == 2 else None) for w in weights]


# The same arm is trained from many seeds, and compiled once.
_graphs: dict[object, Callable[..., None]] = {}


class Engine:
    """Adam, with a short warm-up and a cosine schedule, on one objective.

    Args:
        objective: the model, how its loss is computed, and which half of it is trained; its
            parameters are the start.
        steps: T, the length of the schedule.
        batch_size: B.
        lr: the schedule's height.
        seed: fixes the training noise.
        precision: dtype of the matrix products (float32 or bfloat16); weights, moments and all
            reductions are float32.
        pixel_scale: what turns the uint8 pixels into x in [0, 1].
        device: where all of it lives.
        encoder: the engine that trains the encoder, where this one trains the decoder on its z: its
            weights are read as they stand at each step.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        steps: int,
        batch_size: int,
        lr: float,
        seed: int,
        precision: torch.dtype,
        pixel_scale: float,
        device: torch.device,
        encoder: Engine | None = None,
    ) -> None:
        self.objective = objective
        trained = [
            (name, p)
            for name, p in objective.named_parameters()
            if name.split(".")[1] in objective.trains  # "vae.encoder.0.weight"
        ]
        self.names = [name for name, _ in trained]
        self.fixed_names = encoder.names if encoder is not None else []
        self.fixed = encoder.for_products() if encoder is not None else []
        self.batch_size = batch_size
        self.pixel_scale = pixel_scale
        weights = [p.detach().to(device).clone() for _, p in trained]
        # Matrices are kept in the products' dtype beside the float32 weights, and written by the
        # optimiser, instead of being converted in every step.
        matrices = [w for w in weights if w.dim() == 2] if precision != torch.float32 else []
        self.state = State(
            noise=noise_key(seed, "train", device=device),
            schedule=adam_schedule(lr, steps).to(device),
            totals=torch.zeros(2, device=device),
            weights=weights,
            copies=[w.to(precision) for w in matrices],
            first_moments=[torch.zeros_like(w) for w in weights],
            second_moments=[torch.zeros_like(w) for w in weights],
        )
        self._run = self._compile(device)

    def for_products(self) -> list[Tensor]:
        """The trained parameters as matrix products read them: those in the products' dtype."""
        pairs = _with_copies(self.state.weights, self.state.copies)
        return [w if copy is None else copy for w, copy in pairs]

    def _update(
        self,
        pixels: Tensor,  # (B, 784) uint8
        fixed: list[Tensor],
        noise: Tensor,
        schedule: Tensor,
        totals: Tensor,
        weights: list[Tensor],
        copies: list[Tensor],
        first_moments: list[Tensor],
        second_moments: list[Tensor],
    ) -> None:
        pairs = _with_copies(weights, copies)
        leaves = [(w if copy is None else copy).detach().requires_grad_() for w, copy in pairs]
        x = pixels.float() * self.pixel_scale
        names = [*self.names, *self.fixed_names]
        parameters = dict(zip(names, [*leaves, *fixed], strict=True))
        rate, distortion = functional_call(self.objective, parameters, (x, noise))
        loss = (self.objective.beta * rate + distortion).mean()
        gradients = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            step_size, correction = schedule.index_select(0, noise[1:])[0].unbind()
            for (w, copy), m, v, gradient in zip(
                pairs, first_moments, second_moments, gradients, strict=True
            ):
                g = gradient.float()
                m.lerp_(g, 1 - BETA1)
                v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
                w.sub_(step_size * m / (v.sqrt() * correction + EPSILON))
                if copy is not None:
                    copy.copy_(w)
            totals.add_(torch.stack((rate.sum(), distortion.sum())))
            noise.add_(torch.arange(2, device=noise.device))

    def _compile(self, device: torch.device) -> Callable[..., None]:
        pixels = torch.zeros((self.batch_size, PIXELS), dtype=torch.uint8, device=device)
        arguments = (pixels, self.fixed)
        # Everything that the graph depends on: the sizes of what it is given, and what it computes.
        shapes = tuple((tuple(t.shape), t.dtype) for t in (*self.fixed, *self.state.copies))
        sizes = (self.batch_size, len(self.state.schedule), shapes, self.pixel_scale, device)
        key = (self.objective.key, self.objective.vae.name, sizes)
        if key not in _graphs:
            run = compile_graph(self._update, *arguments, *self.state.arguments(), device=device)
            run(*arguments, *self.state.clone().arguments())  # compiles; the step lands on a copy
            _graphs[key] = run
        return _graphs[key]

    def step(self, pixels: Tensor) -> None:
        """Advance by one batch of uint8 pixels (B, 784); reads nothing back from the device."""
        self._run(pixels, self.fixed, *self.state.arguments())

    def take_totals(self, steps: int) -> tuple[float, float]:
        """Mean rate and distortion, nats, over the `steps` since the last call (waits for them)."""
        rate, distortion = (self.state.totals / (steps * self.batch_size)).tolist()
        self.state.totals.zero_()
        return rate, distortion

    def write_to(self, vae: VAE) -> None:
        """Copy the trained float32 weights into a model; what is not trained stays as it is."""
        weights = zip(self.names, self.state.weights, strict=True)
        named = {name.removeprefix("vae."): w for name, w in weights}
        vae.load_state_dict(named, strict=False)
