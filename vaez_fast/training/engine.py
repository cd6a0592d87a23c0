"""One training step as one compiled graph: batch, loss, backward and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from vaez_kernels import noise_key
from vaez_kernels.backend import uses_triton

from ..model import VAE
from ..objective import Objective
from .batches import Batches
from .graph import compile_graph, identity, lift_constants, trace
from .optimizer import Optimizer
from .trainable import check_fixed, check_parameters, check_same, same_attributes


@dataclass
class State:
    """All that a step advances, in place and on the device."""

    noise: Tensor  # (2,) int64: key, and the step that is to come
    # (3,) float32: rate and distortion, summed over images since they were read; and the number of
    # steps since the start after which they were finite
    totals: Tensor
    weights: list[Tensor]  # the parameters that are trained, float32
    copies: list[Tensor]  # of the matrices in the products' dtype; empty for float32
    moments: list[list[Tensor]]  # the optimiser's, for each weight

    def tensors(self) -> list[Tensor]:
        moments = [m for of_weight in self.moments for m in of_weight]
        return [self.noise, self.totals, *self.weights, *self.copies, *moments]

    def over(self, tensors: list[Tensor]) -> State:
        """The same fields made of other tensors, in the order of `tensors()`."""
        rest = iter(tensors)
        return State(
            next(rest),
            next(rest),
            [next(rest) for _ in self.weights],
            [next(rest) for _ in self.copies],
            [[next(rest) for _ in of_weight] for of_weight in self.moments],
        )


def _with_copies(weights: list[Tensor], copies: list[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    # each weight with its copy in the products' dtype: the matrices have one, if there are any
    remaining = iter(copies)
    return [(w, next(remaining) if copies and w.dim() == 2 else None) for w in weights]


def _stored_for_products(p: Tensor) -> Tensor:
    # A matrix (out, in) is laid out as (in, out), as products with a batch read it on either side:
    # those of a step take 1.88 ms so, 2.06 as nn.Linear has it (bfloat16, batch 128, two cores).
    p = p.detach()
    return p.t().clone(memory_format=torch.contiguous_format).t() if p.dim() == 2 else p.clone()


def _restore(name: str, state: Tensor, saved: Any) -> None:
    # copy_ alone would convert and broadcast
    if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (state.shape, state.dtype):
        raise ValueError(f"its {name} is not {state.dtype} of shape {tuple(state.shape)}")
    state.copy_(saved)


# The same arm is trained from many seeds, and compiled once. Tracing tells what is the same: it
# takes 0.2 s of the 10 that compiling does.
_graphs: dict[object, Callable[..., None]] = {}


class Engine:
    """Trains one objective, a whole step at a time; nothing is read back from the device.

    Args:
        objective: the model, how its loss is computed, and which half of it is trained; its
            parameters are the start.
        batches: the images, on the device where all of it will live, and the ranks that share them:
            each computes its rows, and one sum over ranks, of gradients and losses, makes them all
            take the same step.
        optimizer: the update rule.
        learning_rates: (T,) float64, one for each step; there are no more steps than T.
        kl_weights: (T,) float64, the rate's weight at each step; the objective's β by default.
        seed: fixes the training noise.
        precision: dtype of the matrix products (float32 or bfloat16); weights, moments and all
            reductions are float32.
        pixel_scale: what turns the uint8 pixels into x in [0, 1].
        encoder: the engine that trains the encoder, where this one trains the decoder on its z: its
            weights are read as they stand at each step.

    Raises:
        ValueError: a step would not train the model as its own code says (`trainable`). The model
            is as it was.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        optimizer: Optimizer,
        learning_rates: Tensor,
        *,
        seed: int,
        precision: torch.dtype,
        pixel_scale: float,
        kl_weights: Tensor | None = None,
        encoder: Engine | None = None,
    ) -> None:
        check_parameters(objective, precision)
        self.objective, self.batches, self.optimizer = objective, batches, optimizer
        self.pixel_scale = pixel_scale
        device = batches.images.device
        trained = [
            (name, p)
            for name, p in objective.named_parameters()
            if name.split(".")[1] in objective.trains  # "vae.encoder.0.weight"
        ]
        self.names = [name for name, _ in trained]
        # What the loss reads and the step leaves alone: buffers, and another engine's encoder.
        fixed = {name: b.detach().to(device) for name, b in objective.named_buffers()}
        if encoder is not None:
            fixed |= dict(zip(encoder.names, encoder.for_products(), strict=True))
        self.fixed_names, self.fixed = list(fixed), list(fixed.values())
        if kl_weights is None:
            kl_weights = torch.full_like(learning_rates, objective.beta)
        # (T, 1 + the optimiser's columns) float32
        table = optimizer.table(learning_rates)
        self.schedule = torch.cat((kl_weights[:, None].float(), table), 1).to(device)
        weights = [_stored_for_products(p.to(device)) for _, p in trained]
        # Matrices are kept in the products' dtype beside the float32 weights, and written by the
        # optimiser, instead of being converted in every step.
        matrices = [w for w in weights if w.dim() == 2] if precision != torch.float32 else []
        self.state = State(
            noise=noise_key(seed, "train", device=device),
            totals=torch.zeros(3, device=device),
            weights=weights,
            copies=[w.to(precision) for w in matrices],
            moments=[[torch.zeros_like(w) for _ in range(optimizer.moments)] for w in weights],
        )
        self._inputs = [batches.images, batches.order, self.schedule, *self.fixed]
        self._arguments = [*self._inputs, *self.state.tensors()]
        self._run = self._compile()

    def for_products(self) -> list[Tensor]:
        """The trained parameters as matrix products read them: those in the products' dtype."""
        pairs = _with_copies(self.state.weights, self.state.copies)
        return [w if copy is None else copy for w, copy in pairs]

    def update(self, *tensors: Tensor) -> None:
        """What is compiled: a step on `arguments()`, or on others like them."""
        images, order, schedule = tensors[:3]
        fixed = tensors[3 : len(self._inputs)]
        state = self.state.over(list(tensors[len(self._inputs) :]))
        step = state.noise[1:]
        x = self.batches.rows(images, order, step).float() * self.pixel_scale
        pairs = _with_copies(state.weights, state.copies)
        leaves = [(w if copy is None else copy).detach().requires_grad_() for w, copy in pairs]
        names = [*self.names, *self.fixed_names]
        given = dict(zip(names, [*leaves, *fixed], strict=True))
        left = dict(given)
        rate, distortion = functional_call(
            self.objective, left, (x, state.noise, self.batches.share.start)
        )
        check_same(given, left)
        kl_weight, *row = schedule.index_select(0, step)[0].unbind()
        loss = (kl_weight * rate + distortion).sum() / self.batches.batch_size
        gradients = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            sums = torch.stack((rate.sum(), distortion.sum()))
            summed, sums = self._over_ranks(gradients, sums)
            self.descend(state, summed, row)
            state.totals[:2].add_(sums)
            state.totals[2:].add_(state.totals[:2].sum().isfinite())
            state.noise.add_(torch.arange(2, device=step.device))

    def _over_ranks(
        self, gradients: Sequence[Tensor], sums: Tensor
    ) -> tuple[Sequence[Tensor], Tensor]:
        # One flat sum: ranks then hold the same weights and the same losses, bit for bit.
        if self.batches.world.size == 1:
            return gradients, sums
        flat = torch.cat([sums, *(g.float().flatten() for g in gradients)])
        flat = self.batches.world.sum(flat)
        sums, *parts = flat.split([2, *(g.numel() for g in gradients)])
        return [p.view(g.shape) for p, g in zip(parts, gradients, strict=True)], sums

    def descend(self, state: State, gradients: Sequence[Tensor], row: list[Tensor]) -> None:
        """The optimiser's part of a step, in place."""
        pairs = _with_copies(state.weights, state.copies)
        for (w, copy), moments, gradient in zip(pairs, state.moments, gradients, strict=True):
            self.optimizer.update(w, gradient.float(), moments, row)
            if copy is not None:
                copy.copy_(w)

    def arguments(self) -> list[Tensor]:
        """The tensors that a step reads and advances."""
        return self._arguments

    def _compile(self) -> Callable[..., None]:
        with same_attributes(self.objective):
            graph = trace(self.update, *self._arguments)
        # What a model reads and has not registered: tensors that are plain attributes or literals.
        constants = lift_constants(graph)
        arguments = [*self._arguments, *constants]
        buffers = {f"vae.{name}" for name, _ in self.objective.vae.named_buffers()}
        named = zip(self.fixed_names, self.fixed, strict=True)
        fixed = [(name, tensor) for name, tensor in named if name in buffers]
        fixed += [(f"a tensor of shape {tuple(c.shape)}", c) for c in constants]
        if fixed:
            check_fixed(graph, arguments, fixed)
        # Our ops choose their backend when the graph is compiled.
        key = (identity(graph, arguments), uses_triton(self.state.totals))
        if key not in _graphs:
            run = compile_graph(graph, *arguments, device=self.batches.images.device)
            # Compiles on CUDA, too, what is compiled at the first run; the step lands on a copy.
            run(*self._inputs, *(t.clone() for t in self.state.tensors()), *constants)
            _graphs[key] = run
        self._constants = constants
        return _graphs[key]

    def step(self) -> None:
        """Advance by one batch."""
        self._run(*self._arguments, *self._constants)

    def take_totals(self, steps: int) -> tuple[float, float]:
        """Mean rate and distortion, nats, over the `steps` since the last call (waits for them)."""
        totals = self.read_totals(steps)
        self.clear_totals()
        return totals

    def read_totals(self, steps: int) -> tuple[float, float]:
        """What `take_totals` gives; the next call will count the same steps again."""
        images = steps * self.batches.batch_size
        rate, distortion = (self.state.totals[:2] / images).tolist()
        return rate, distortion

    def clear_totals(self) -> None:
        """Count from here on."""
        self.state.totals[:2].zero_()

    def finite_steps(self) -> int:
        """How many of the steps taken were before the first loss that is not finite."""
        return int(self.state.totals[2])

    def state_dict(self) -> dict[str, Any]:
        """All that a step advances, on the CPU; what is left out follows from it."""
        state = self.state
        moments = [[m.cpu() for m in of_weight] for of_weight in state.moments]
        return {
            "noise": state.noise.cpu(),
            "totals": state.totals.cpu(),
            "weights": dict(zip(self.names, [w.cpu() for w in state.weights], strict=True)),
            "moments": dict(zip(self.names, moments, strict=True)),
        }

    def load_state_dict(self, saved: dict[str, Any], step: int) -> None:
        """Go on from what `state_dict` gave when `step` steps were done.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is that of another engine.
        """
        state = self.state
        for part in (saved, saved.get("weights"), saved.get("moments")):
            if not isinstance(part, dict):
                raise TypeError("its weights and moments are not named")
        if list(saved["weights"]) != self.names:
            raise ValueError(f"its weights are {', '.join(saved['weights'])}")
        _restore("noise", state.noise, saved["noise"])
        state.noise[1] = step
        _restore("totals", state.totals, saved["totals"])
        for name, w, moments in zip(self.names, state.weights, state.moments, strict=True):
            _restore(name, w, saved["weights"][name])
            for m, m_saved in zip(moments, saved["moments"][name], strict=True):
                _restore(name, m, m_saved)
        for w, copy in _with_copies(state.weights, state.copies):
            if copy is not None:
                copy.copy_(w)

    def write_to(self, vae: VAE) -> None:
        """Copy the trained float32 weights into a model; what is not trained stays as it is."""
        weights = zip(self.names, self.state.weights, strict=True)
        named = {name.removeprefix("vae."): w for name, w in weights}
        vae.load_state_dict(named, strict=False)
