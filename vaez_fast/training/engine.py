"""A training step as one compiled graph: batch, loss, backward and optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vaez_kernels.backend import uses_triton

from ..streams import TRAINING
from ..system.world import World
from .dropout import RefusedDraws, StreamDropout, check_draws
from .graph import compile_graph, identity, lift_constants, trace, untraceable
from .optimizer import Optimizer
from .step_state import State, restore, stored_for_products
from .torch_optimizer import TorchOptimizer
from .trainable import check_dtypes, check_fixed, converts_inputs, same_attributes


class StepBatches(Protocol):
    """What a step's data come from: `batches.Batches`, or `trainer.rows.Rows`."""

    batch_size: int
    world: World
    share: range

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        ...

    def inputs(self) -> list[Tensor]:
        """The tensors that a step's batch is taken from."""
        ...

    @property
    def rows(self) -> Callable[..., Any]:
        """A function of `inputs()` and step (1,) int64: this rank's rows of the step's batch."""
        ...


# An arm is trained from many seeds, but compiled once. Tracing finds equal steps and takes 0.2 s,
# compiling 10 s.
compiled_graphs: dict[object, Callable[..., None]] = {}


class Engine:
    """Trains one objective, a whole step at a time; nothing is read back from the device.

    All parameters that are not frozen train. Buffers that a `state_dict` of the model holds, such
    as running means, are advanced by each step. Dropout draws from the noise stream.

    Args:
        objective: a module that holds the model with its initial weights, and computes rate and
            distortion, each (B,) nats, from a batch, noise and a row offset. `trains` names the
            parts of the model that train, None for all; `beta` is the rate's weight.
        batches: the data, on the device where everything will be, and the ranks that share them.
            Each rank computes its rows. One sum over ranks of gradients and losses makes all ranks
            take the same step.
        optimizer: the update rule.
        learning_rates: (T,) float64, one for each step; at most T steps can be taken.
        kl_weights: (T,) float64, the rate's weight at each step; the objective's β by default.
        seed: fixes the training noise.
        precision: dtype of the matrix products (float32 or bfloat16); weights, moments and all
            reductions are float32. In bfloat16, a model whose matrices are not all in
            `vaez_fast.model.Linear` layers runs under autocast.
        pixel_scale: the factor that turns the uint8 pixels into x in [0, 1]; None if the model
            takes a batch as it is.
        encoder: the engine that trains the encoder, if this one trains the decoder on its z; each
            step reads the encoder's current weights.
        clip: the largest global norm of the gradients; longer ones are scaled down to it.
        average: the decay of an exponential moving average of the weights and of floating-point
            buffers, None for no average. At step t it is at most (1 + t)/(10 + t).

    Raises:
        ValueError: a compiled step would train the model differently from the model's own code
            (see `trainable`). The model is unchanged.
    """

    def __init__(
        self,
        objective: Any,
        batches: StepBatches,
        optimizer: Optimizer | TorchOptimizer,
        learning_rates: Tensor,
        *,
        seed: int,
        precision: torch.dtype,
        pixel_scale: float | None = None,
        kl_weights: Tensor | None = None,
        encoder: Engine | None = None,
        clip: float | None = None,
        average: float | None = None,
    ) -> None:
        check_dtypes(objective)
        self.objective, self.optimizer = objective, optimizer
        self.batches: Any = batches  # the study's have images
        self.pixel_scale, self.clip, self.average = pixel_scale, clip, average
        self.device = device = batches.device
        trained = [(n, p) for n, p in objective.named_parameters() if _trains(objective, n, p)]
        if not trained:
            raise ValueError("Engine trains parameters, and this model has none that is not frozen")
        self.names = [name for name, _ in trained]
        kept = set(objective.state_dict())
        buffers = {name: b.detach().to(device) for name, b in objective.named_buffers()}
        self.buffer_names = [name for name in buffers if name in kept]
        # Tensors that the loss reads and the step does not change: other buffers and another
        # engine's encoder.
        fixed = {name: b for name, b in buffers.items() if name not in kept}
        if encoder is not None:
            fixed |= dict(zip(encoder.names, encoder.state.for_products(), strict=True))
        self.fixed_names, self.fixed = list(fixed), list(fixed.values())
        if kl_weights is None:
            kl_weights = torch.full_like(learning_rates, objective.beta)
        # (T, 1 + the optimiser's columns) float32
        table = optimizer.table(learning_rates)
        self.schedule = torch.cat((kl_weights[:, None].float(), table), 1).to(device)
        weights = [stored_for_products(p.to(device)) for _, p in trained]
        self.autocast = None
        if precision != torch.float32 and not converts_inputs(objective):
            self.autocast = precision
        # The optimiser also writes a copy of the matrices in the products' dtype, so that no step
        # has to convert the float32 weights.
        copied = precision != torch.float32 and self.autocast is None
        self.state: State = State(
            noise=TRAINING.key(seed, device=device),
            totals=torch.zeros(3, device=device),
            weights=weights,
            copies=[w.to(precision) for w in weights if copied and w.dim() == 2],
            moments=[optimizer.moments_of(w) for w in weights],
            buffers=[buffers[name].clone() for name in self.buffer_names],
        )
        if average is not None:
            self.state.averages = [t.clone() for t in _averaged(self.state)]
        self._inputs = [*batches.inputs(), self.schedule, *self.fixed]
        self._arguments = [*self._inputs, *self.state.tensors()]
        self._run = self._compile()

    def update(self, *tensors: Tensor) -> None:
        """The function that is compiled: one step on `arguments()` or on tensors like them."""
        count = len(self.batches.inputs())
        schedule, *fixed = tensors[count : len(self._inputs)]
        state = self.state.over(list(tensors[len(self._inputs) :]))
        step = state.noise[1:]
        x = self.batches.rows(*tensors[:count], step)
        if self.pixel_scale is not None:
            x = x.float() * self.pixel_scale
        leaves = [w.detach().requires_grad_() for w in state.for_products()]
        given = dict(zip(self.names, leaves, strict=True))
        given |= dict(zip(self.fixed_names, fixed, strict=True))
        given |= dict(zip(self.buffer_names, state.buffers, strict=True))
        rate, distortion = self._loss(given, x, state)
        kl_weight, *row = schedule.index_select(0, step)[0].unbind()
        loss = (kl_weight * rate + distortion).sum() / self.batches.batch_size
        # None for a weight that the loss does not read, which then stays as it is.
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        with torch.no_grad():
            sums = torch.stack((rate.sum(), distortion.sum()))
            summed, sums = self._over_ranks(gradients, sums)
            self.descend(state, summed, row)
            state.totals[:2].add_(sums)
            state.totals[2:].add_(state.totals[:2].sum().isfinite())
            state.noise.add_(torch.arange(2, device=step.device))

    def _loss(self, given: dict[str, Tensor], x: Any, state: State) -> tuple[Tensor, Tensor]:
        # rate (B,), distortion (B,) with these tensors; buffers that the model replaces are copied
        left, start = dict(given), self.batches.share.start
        with ExitStack() as around:
            if self.autocast is not None:
                around.enter_context(torch.autocast(self.device.type, self.autocast))
            around.enter_context(StreamDropout(state.noise, self.batches.share))
            rate, distortion = functional_call(self.objective, left, (x, state.noise, start))
        replaced = [name for name, tensor in given.items() if left[name] is not tensor]
        if not set(replaced) <= set(self.buffer_names):
            raise ValueError(
                f"Engine trains parameters alone, and this model's forward replaces {replaced[0]}"
            )
        with torch.no_grad():
            for name in replaced:
                given[name].copy_(left[name])
        return rate.float(), distortion.float()

    def _over_ranks(
        self, gradients: Sequence[Tensor | None], sums: Tensor
    ) -> tuple[Sequence[Tensor | None], Tensor]:
        # One flat sum keeps weights and losses equal on all ranks, bit for bit.
        if self.batches.world.size == 1:
            return gradients, sums
        used = [g for g in gradients if g is not None]
        flat = torch.cat([sums, *(g.float().flatten() for g in used)])
        flat = self.batches.world.sum(flat)
        sums, *parts = flat.split([2, *(g.numel() for g in used)])
        rest = iter(parts)
        return [None if g is None else next(rest).view(g.shape) for g in gradients], sums

    def descend(self, state: State, gradients: Sequence[Tensor | None], row: list[Tensor]) -> None:
        """The optimiser's part of a step, in place; a weight without a gradient stays."""
        if self.clip is not None:
            used = [g.float().square().sum() for g in gradients if g is not None]
            norm = torch.stack(used).sum().sqrt()
            # As in torch.nn.utils.clip_grad_norm_.
            scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            gradients = [None if g is None else g * scale for g in gradients]
        pairs = state.with_copies()
        for (w, copy), moments, gradient in zip(pairs, state.moments, gradients, strict=True):
            if gradient is None:
                continue
            self.optimizer.update(w, gradient.float(), moments, row)
            if copy is not None:
                copy.copy_(w)
        if self.average is not None:
            # The first steps count more, so that the initial weights are soon forgotten.
            t = state.noise[1].float()
            decay = ((1 + t) / (10 + t)).clamp(max=self.average)
            for tensor, mean in zip(_averaged(state), state.averages, strict=True):
                mean.add_((1 - decay) * (tensor - mean))

    def arguments(self) -> list[Tensor]:
        """The tensors that a step reads and advances."""
        return self._arguments

    def _compile(self) -> Callable[..., None]:
        self._constants: list[Tensor] = []
        try:
            with same_attributes(self.objective):
                graph = trace(self.update, *self._arguments)
        except untraceable() as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                "the step of this model and optimizer cannot become one graph, so it runs in eager "
                f"PyTorch: {reason}",
                RuntimeWarning,
                stacklevel=3,
            )
            return self._eager
        check_draws(graph)
        # Tensors that a model reads but has not registered: plain attributes or literals.
        constants = lift_constants(graph)
        arguments = [*self._arguments, *constants]
        named = zip(self.fixed_names, self.fixed, strict=True)
        own = {name for name, _ in self.objective.named_buffers()}
        fixed = [(name, tensor) for name, tensor in named if name in own]
        fixed += [(f"a tensor of shape {tuple(c.shape)}", c) for c in constants]
        if fixed:
            check_fixed(graph, arguments, fixed)
        # The ops choose their backend when the graph is compiled.
        key = (identity(graph, arguments), uses_triton(self.state.totals))
        if key not in compiled_graphs:
            run = compile_graph(graph, *arguments, device=self.device)
            # A step on copies of the state: on CUDA some kernels are compiled at the first run.
            run(*self._inputs, *(t.clone() for t in self.state.tensors()), *constants)
            compiled_graphs[key] = run
        self._constants = constants
        return compiled_graphs[key]

    def _eager(self, *tensors: Tensor) -> None:
        with torch.enable_grad(), RefusedDraws():
            self.update(*tensors)

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

        def named(names: list[str], tensors: list[Tensor]) -> dict[str, Tensor]:
            return dict(zip(names, [t.cpu() for t in tensors], strict=True))

        moments = [[m.cpu() for m in of_weight] for of_weight in state.moments]
        return {
            "noise": state.noise.cpu(),
            "totals": state.totals.cpu(),
            "weights": named(self.names, state.weights),
            "moments": dict(zip(self.names, moments, strict=True)),
            "buffers": named(self.buffer_names, state.buffers),
            "averages": named(self._averaged_names(), state.averages),
        }

    def load_state_dict(self, saved: dict[str, Any], step: int) -> None:
        """Load what `state_dict` returned after `step` steps.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is from another engine.
        """
        state = self.state
        # Checkpoints of earlier versions have no buffers and no averages.
        saved = {"buffers": {}, "averages": {}} | saved
        names = {"weights": self.names, "moments": self.names, "buffers": self.buffer_names}
        names["averages"] = self._averaged_names()
        for part, expected in names.items():
            if not isinstance(saved.get(part), dict):
                raise TypeError("its weights and moments are not named")
            if list(saved[part]) != expected:
                raise ValueError(f"its {part} are {', '.join(saved[part])}")
        restore("noise", state.noise, saved["noise"])
        state.noise[1] = step
        restore("totals", state.totals, saved["totals"])
        for name, w, moments in zip(self.names, state.weights, state.moments, strict=True):
            restore(name, w, saved["weights"][name])
            for m, m_saved in zip(moments, saved["moments"][name], strict=True):
                restore(name, m, m_saved)
        for part, tensors in (("buffers", state.buffers), ("averages", state.averages)):
            for name, tensor in zip(names[part], tensors, strict=True):
                restore(name, tensor, saved[part][name])
        for w, copy in state.with_copies():
            if copy is not None:
                copy.copy_(w)

    def named_tensors(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """The trained weights and the buffers by their names in the objective.

        `averaged` takes their averages, if there are any.
        """
        state = self.state
        named = dict(zip(self.names, state.weights, strict=True))
        named |= dict(zip(self.buffer_names, state.buffers, strict=True))
        if averaged:
            named |= dict(zip(self._averaged_names(), state.averages, strict=True))
        return named

    def _averaged_names(self) -> list[str]:
        if not self.state.averages:
            return []
        buffers = zip(self.buffer_names, self.state.buffers, strict=True)
        return [*self.names, *(name for name, b in buffers if b.is_floating_point())]

    def write_to(self, vae: nn.Module) -> None:
        """Copy the trained weights and the buffers into a model; its other weights stay."""
        named = self.named_tensors().items()
        vae.load_state_dict({name.removeprefix("vae."): t for name, t in named}, strict=False)


def _averaged(state: State) -> list[Tensor]:
    return [*state.weights, *(b for b in state.buffers if b.is_floating_point())]


def _trains(objective: Any, name: str, p: nn.Parameter) -> bool:
    # `name` is like "vae.encoder.0.weight".
    part = name.split(".")[1]
    return p.requires_grad and (objective.trains is None or part in objective.trains)
