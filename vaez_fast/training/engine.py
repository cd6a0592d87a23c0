"""A training step as one compiled graph: batch, loss, backward and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from vaez_kernels.backend import uses_triton

from ..model import VAE
from ..objective import Objective
from ..streams import TRAINING
from .batches import Batches
from .graph import compile_graph, identity, lift_constants, trace
from .optimizer import Optimizer
from .trainable import check_fixed, check_parameters, check_same, same_attributes


@dataclass
class State:
    """All that a step advances, in place and on the device."""

    noise: Tensor  # (2,) int64: key and next step
    # (3,) float32: rate and distortion, each summed over the images since `clear_totals`, and how
    # many steps of the whole run left both sums finite
    totals: Tensor
    weights: list[Tensor]  # the trained parameters, float32
    copies: list[Tensor]  # the matrices in the products' dtype; empty for float32
    moments: list[list[Tensor]]  # the optimiser's, for each weight

    def tensors(self) -> list[Tensor]:
        moments = [m for of_weight in self.moments for m in of_weight]
        return [self.noise, self.totals, *self.weights, *self.copies, *moments]

    def over(self, tensors: list[Tensor]) -> State:
        """A state of other tensors, given in the order of `tensors()`."""
        rest = iter(tensors)
        return State(
            next(rest),
            next(rest),
            [next(rest) for _ in self.weights],
            [next(rest) for _ in self.copies],
            [[next(rest) for _ in of_weight] for of_weight in self.moments],
        )


def _with_copies(weights: list[Tensor], copies: list[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    # Pairs each weight with its copy in the products' dtype, or None; only matrices have copies.
    remaining = iter(copies)
    return [(w, next(remaining) if copies and w.dim() == 2 else None) for w in weights]


def _stored_for_products(p: Tensor) -> Tensor:
    # A matrix (out, in) is stored as (in, out), the layout that forward and backward products read:
    # the products of a step take 1.88 ms, and 2.06 in nn.Linear's layout (bfloat16, batch 128, two
    # cores).
    p = p.detach()
    return p.t().clone(memory_format=torch.contiguous_format).t() if p.dim() == 2 else p.clone()


def _restore(name: str, state: Tensor, saved: Any) -> None:
    # copy_ alone would convert and broadcast.
    if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (state.shape, state.dtype):
        raise ValueError(f"its {name} is not {state.dtype} of shape {tuple(state.shape)}")
    state.copy_(saved)


# An arm is trained from many seeds, but compiled once. Tracing finds equal steps and takes 0.2 s,
# compiling 10 s.
compiled_graphs: dict[object, Callable[..., None]] = {}


class Engine:
    """Trains one objective, a whole step at a time; nothing is read back from the device.

    Args:
        objective: the model with its initial weights, the loss, and which half is trained.
        batches: the images, on the device where everything will be, and the ranks that share them.
            Each rank computes its rows. One sum over ranks of gradients and losses makes all ranks
            take the same step.
        optimizer: the update rule.
        learning_rates: (T,) float64, one for each step; at most T steps can be taken.
        kl_weights: (T,) float64, the rate's weight at each step; the objective's β by default.
        seed: fixes the training noise.
        precision: dtype of the matrix products (float32 or bfloat16); weights, moments and all
            reductions are float32.
        pixel_scale: the factor that turns the uint8 pixels into x in [0, 1].
        encoder: the engine that trains the encoder, if this one trains the decoder on its z; each
            step reads the encoder's current weights.

    Raises:
        ValueError: a compiled step would train the model differently from the model's own code
            (see `trainable`). The model is unchanged.
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
        # Tensors that the loss reads and the step does not change: buffers and another engine's
        # encoder.
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
        # The optimiser also writes a copy of the matrices in the products' dtype, so that no step
        # has to convert the float32 weights.
        matrices = [w for w in weights if w.dim() == 2] if precision != torch.float32 else []
        self.state = State(
            noise=TRAINING.key(seed, device=device),
            totals=torch.zeros(3, device=device),
            weights=weights,
            copies=[w.to(precision) for w in matrices],
            moments=[[torch.zeros_like(w) for _ in range(optimizer.moments)] for w in weights],
        )
        self._inputs = [batches.images, batches.order, self.schedule, *self.fixed]
        self._arguments = [*self._inputs, *self.state.tensors()]
        self._run = self._compile()

    def for_products(self) -> list[Tensor]:
        """The trained parameters that matrix products read: the copies, if there are any."""
        pairs = _with_copies(self.state.weights, self.state.copies)
        return [w if copy is None else copy for w, copy in pairs]

    def update(self, *tensors: Tensor) -> None:
        """The function that is compiled: one step on `arguments()` or on tensors like them."""
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
        # One flat sum keeps weights and losses equal on all ranks, bit for bit.
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
        # Tensors that a model reads but has not registered: plain attributes or literals.
        constants = lift_constants(graph)
        arguments = [*self._arguments, *constants]
        buffers = {f"vae.{name}" for name, _ in self.objective.vae.named_buffers()}
        named = zip(self.fixed_names, self.fixed, strict=True)
        fixed = [(name, tensor) for name, tensor in named if name in buffers]
        fixed += [(f"a tensor of shape {tuple(c.shape)}", c) for c in constants]
        if fixed:
            check_fixed(graph, arguments, fixed)
        # The ops choose their backend when the graph is compiled.
        key = (identity(graph, arguments), uses_triton(self.state.totals))
        if key not in compiled_graphs:
            run = compile_graph(graph, *arguments, device=self.batches.images.device)
            # A step on copies of the state: on CUDA some kernels are compiled at the first run.
            run(*self._inputs, *(t.clone() for t in self.state.tensors()), *constants)
            compiled_graphs[key] = run
        self._constants = constants
        return compiled_graphs[key]

    def step(self) -> None:
        """Advance by one batch."""
        self._run(*self._arguments, *self._constants)

    def take_totals(self, steps: int) -> tuple[float, float]:
        """Mean rate and distortion in nats over the `steps` since the last call; waits for them."""
        totals = self.read_totals(steps)
        self.clear_totals()
        return totals

    def read_totals(self, steps: int) -> tuple[float, float]:
        """As `take_totals`, but the next call counts the same steps again."""
        images = steps * self.batches.batch_size
        rate, distortion = (self.state.totals[:2] / images).tolist()
        return rate, distortion

    def clear_totals(self) -> None:
        """Start to count again."""
        self.state.totals[:2].zero_()

    def finite_steps(self) -> int:
        """The number of steps before the first loss that is not finite."""
        return int(self.state.totals[2])

    def state_dict(self) -> dict[str, Any]:
        """All that a step advances, on the CPU; the copies follow from the weights."""
        state = self.state
        moments = [[m.cpu() for m in of_weight] for of_weight in state.moments]
        return {
            "noise": state.noise.cpu(),
            "totals": state.totals.cpu(),
            "weights": dict(zip(self.names, [w.cpu() for w in state.weights], strict=True)),
            "moments": dict(zip(self.names, moments, strict=True)),
        }

    def load_state_dict(self, saved: dict[str, Any], step: int) -> None:
        """Load what `state_dict` returned after `step` steps.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is from another engine.
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
        """Copy the trained float32 weights into a model; its other weights do not change."""
        weights = zip(self.names, self.state.weights, strict=True)
        named = {name.removeprefix("vae."): w for name, w in weights}
        vae.load_state_dict(named, strict=False)
