"""Trains any model: `Trainer(model).train(data, …)`, then `.evaluate(held_out)`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vaez_kernels.checks import check_count

from ..config import choose_device, choose_precision
from ..data import epoch_order
from ..sources import Entry, SparseRows, check_entries
from ..streams import EVALUATION
from ..system.cores import SharedCores
from ..system.errors import ConfigError, first_line
from ..system.files import OutputError, claimed
from ..system.progress import Progress
from ..system.stopping import Signals, Stopped
from ..training.engine import Engine
from ..training.state import TrainingError
from ..training.torch_optimizer import optimizer_of
from .elbo import Elbo
from .evaluation import Evaluation, evaluate
from .log import Log
from .priors import StandardNormal
from .rows import Loaded, Rows
from .saved import Saved, read, write
from .schedules import Schedule, values

Data = Tensor | Mapping[str, Entry]
# Steps between two looks at signals and at the clock.
AT_ONCE = 32
KEEP_SECONDS = 60.0


class Trainer:
    """Trains a model on the negative ELBO, a whole step in one compiled graph.

    The same seed on the same machine gives the same numbers to the last digit, however often the
    run was stopped and resumed.

    Args:
        model: any module; its `encode(batch)` returns a posterior, its `decode(z, batch)` a
            likelihood. A batch is a dict with a row of each entry of the data, or a tensor if the
            data are one. All parameters that are not frozen train, float32.
        prior: p(z), a module with `log_prob(z)` that trains with the model; N(0, I) by default.
        kl: see `Elbo`.
        beta: the weight of the rate, a number or a schedule such as `warmup(400)`.
        num_samples, free_bits, target: see `Elbo`.
        optimizer: a class of torch.optim or a `functools.partial` of one.
        lr: the learning rate, a number or a schedule such as `cosine(2e-3)`.
        clip: the largest global norm of the gradients, None for any.
        average: the decay of an exponential moving average of the weights and running statistics,
            which then is what the trained model gets; None for no average. At step t the decay is
            at most (1 + t)/(10 + t).
        precision: of matrix products: "float32", "bfloat16", or "auto", bfloat16 where the
            processor multiplies it. Layers of PyTorch run under autocast in bfloat16.
        seed: fixes the order of the data and all noise. Initial weights are the model's.
        device: "cpu", "cuda", …, or "auto".
        log: called as log(step, numbers) after each epoch, such as `to_csv(path)`.

    Raises:
        ConfigError, TypeError, ValueError: a wrong argument.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prior: nn.Module | None = None,
        kl: str | None = None,
        beta: float | Schedule = 1.0,
        num_samples: int = 1,
        free_bits: float = 0.0,
        target: str | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        lr: float | Schedule = 1e-3,
        clip: float | None = None,
        average: float | None = None,
        precision: str = "auto",
        seed: int = 0,
        device: str = "auto",
        log: Log | None = None,
    ) -> None:
        check_count("Trainer", "num_samples", num_samples, least=1)
        _check_between("free_bits", free_bits, 0.0, math.inf)
        _check_between("clip", clip, math.ulp(0.0), math.inf)
        _check_between("average", average, 0.0, 1.0)
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        prior = StandardNormal() if prior is None else prior
        self.elbo = Elbo(model, prior, kl, num_samples, free_bits, target).to(self.device)
        self.model, self.prior = model, prior
        self.optimizer, self.lr, self.beta = optimizer_of(optimizer), lr, beta
        self.clip, self.average, self.seed, self.log = clip, average, seed, log

    def train(
        self,
        data: Data | Iterable[Any],
        *,
        epochs: int,
        batch_size: int | None = None,
        held_out: Data | None = None,
        patience: int | None = None,
        out: str | Path | None = None,
        show_progress: bool = True,
    ) -> list[dict[str, float]]:
        """Train for `epochs` epochs, or go on with the run that is in the folder `out`.

        Args:
            data: a tensor (N, …), a dict of entries with N rows, or a DataLoader of such batches.
            epochs: how often each row is seen.
            batch_size: rows of a step; a DataLoader has its own.
            held_out: after each epoch its ELBO is measured (one sample of z a row), and the model
                gets the weights with the best one in the end.
            patience: stop after so many epochs without a better held-out ELBO.
            out: a folder. Every minute, at a signal and at the end the state is written there;
                calling again with the same settings goes on from it.
            show_progress: draw a bar, if stderr is a terminal.

        Returns:
            A dict for each epoch: step, rate, distortion and elbo of training, means over the
            epoch in nats per row; with `held_out` also held_out_elbo.

        Raises:
            ConfigError, TypeError, ValueError: a wrong argument.
            TrainingError: the loss is not finite.
            OutputError: `out` cannot be written, or holds another run.
            Stopped: a signal; the state is written.
        """
        check_count("Trainer.train", "epochs", epochs, least=1)
        if patience is not None:
            check_count("Trainer.train", "patience", patience, least=1)
            if held_out is None:
                raise ConfigError("patience needs held_out, whose ELBO it watches")
        if held_out is not None:
            # Moved once, not after each epoch.
            entries, bare = _entries(held_out, self.device)
            check_entries(entries, op="held_out")
            held_out = cast(Tensor, entries["x"]) if bare else entries
        if not self.elbo.training:
            self.elbo.train()  # else, parts that the user put into evaluation mode stay in it
        batches = self._batches(data, batch_size)
        if self.elbo.target is None and not batches.bare:
            self.elbo.target = next(iter(batches.entries()))
        steps = epochs * batches.per_epoch
        lr, beta = values("lr", self.lr, steps), values("beta", self.beta, steps)
        with ExitStack() as around:
            folder = None if out is None else Path(out)
            saved, settings = None, {}
            if folder is not None:
                settings = self._settings(batches, epochs, lr, beta, held_out, patience)
                around.enter_context(claimed(folder))
                saved = read(folder, settings)
            engine = Engine(
                self.elbo,
                batches,
                self.optimizer,
                lr,
                seed=self.seed,
                precision=self.precision,
                kl_weights=beta,
                clip=self.clip,
                average=self.average,
            )
            run = _Run(self, engine, batches, epochs, held_out, patience, folder, settings)
            if saved is not None:
                run.go_on_from(saved)
            progress = around.enter_context(Progress(steps, "training", show=show_progress))
            signals = around.enter_context(Signals())
            progress.advance(run.done)
            run.train(signals, progress)
        return run.curve

    def _settings(
        self,
        batches: Rows | Loaded,
        epochs: int,
        lr: Tensor,
        beta: Tensor,
        held_out: Data | None,
        patience: int | None,
    ) -> dict[str, Any]:
        """All that the numbers of a run depend on, but its initial weights and a loader's data."""
        elbo = self.elbo
        watched = None if held_out is None else _entries(held_out, self.device)[0]
        return {
            "epochs": epochs,
            "batch_size": batches.batch_size,
            "seed": self.seed,
            "precision": str(self.precision),
            "model": type(self.model).__qualname__,
            "prior": type(self.prior).__qualname__,
            "kl": elbo.kl,
            "num_samples": elbo.num_samples,
            "free_bits": elbo.free_bits,
            "target": elbo.target,
            "optimizer": repr(self.optimizer),
            "lr": _fingerprint({"lr": lr}),
            "beta": _fingerprint({"beta": beta}),
            "clip": self.clip,
            "average": self.average,
            "patience": patience,
            "held_out": None if watched is None else _fingerprint(watched),
            "data": None if isinstance(batches, Loaded) else _fingerprint(batches.entries()),
        }

    def evaluate(self, data: Data, samples: int = 128) -> Evaluation:
        """ELBO, rate, distortion and log p(x) of the model, from `samples` z of each row.

        Raises:
            ConfigError, TypeError, ValueError: a wrong argument.
        """
        check_count("Trainer.evaluate", "samples", samples, least=1)
        return self._evaluate(data, samples, "test")

    def _evaluate(self, data: Data, samples: int, use: str) -> Evaluation:
        entries, bare = _entries(data, self.device)
        check_entries(entries, op="evaluate")
        if self.elbo.target is None and len(entries) > 1:
            raise ConfigError(
                f"target must be given: which of {', '.join(entries)} the likelihood scores"
            )
        key = EVALUATION[use].key(self.seed, device=self.device)
        return evaluate(self.elbo, entries, key, samples, bare=bare)

    def _batches(self, data: Data | Iterable[Any], batch_size: int | None) -> Rows | Loaded:
        if not isinstance(data, (Tensor, Mapping)):
            if batch_size is not None:
                raise ConfigError("batch_size is the loader's own here, leave it out")
            return Loaded(data, self.device)
        entries, bare = _entries(data, self.device)
        size = check_entries(entries)
        if batch_size is None:
            raise ConfigError("batch_size must be given for data in memory")
        check_count("Trainer.train", "batch_size", batch_size, least=1)
        if batch_size > size:
            raise ConfigError(
                f"batch_size must be at most {size}, the rows of data, got {batch_size}"
            )
        return Rows(entries, batch_size, bare=bare)


class _Run:
    """A run of `Trainer.train`: its epochs, its curve, and the state in its folder."""

    def __init__(
        self,
        trainer: Trainer,
        engine: Engine,
        batches: Rows | Loaded,
        epochs: int,
        held_out: Data | None,
        patience: int | None,
        folder: Path | None,
        settings: dict[str, Any],
    ) -> None:
        self.trainer, self.engine, self.batches = trainer, engine, batches
        self.epochs, self.held_out, self.patience = epochs, held_out, patience
        self.folder, self.settings = folder, settings
        self.done = 0
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self._kept_at = time.monotonic()

    def go_on_from(self, saved: Saved) -> None:
        try:
            self.engine.load_state_dict(saved.engine, saved.done)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise OutputError(
                f"out: {self.folder} holds a damaged state, or one of another model "
                f"({first_line(error)})"
            ) from None
        self.done, self.curve, self.best = saved.done, saved.curve, saved.best

    def train(self, signals: Signals, progress: Progress) -> None:
        signals.hold()
        cores = SharedCores()
        try:
            for epoch in range(self.done // self.batches.per_epoch, self.epochs):
                if self._had_enough():
                    break
                self._epoch(epoch, signals, progress, cores)
        finally:
            cores.close()
        self._give_weights()
        self._keep()
        signals.release()

    def _epoch(self, epoch: int, signals: Signals, progress: Progress, cores: SharedCores) -> None:
        batches, per_epoch = self.batches, self.batches.per_epoch
        if isinstance(batches, Rows):
            seed = self.trainer.seed
            batches.begin_epoch(epoch_order(seed, epoch, batches.size, batches.device))
        else:
            batches.begin_epoch()
            for _ in range(self.done - epoch * per_epoch):
                batches.next()
        last = (epoch + 1) * per_epoch
        while self.done < last:
            count = min(AT_ONCE, last - self.done)
            for _ in range(count):
                batches.next()
                self.engine.step()
            self.done += count
            progress.advance(count)
            if batches.device.type == "cpu":
                cores.done(count)
            if self.done < last:
                self._keep_or_stop(signals)
        self._end_epoch(per_epoch)
        self._keep_or_stop(signals)

    def _end_epoch(self, steps: int) -> None:
        rate, distortion = self.engine.take_totals(steps)
        if not math.isfinite(rate + distortion):
            raise self._not_finite(f"rate {rate}, distortion {distortion}")
        point = {
            "step": float(self.done),
            "elbo": -(rate + distortion),
            "rate": rate,
            "distortion": distortion,
        }
        if self.held_out is not None:
            weights = self._give_weights(best=False)
            bound = self.trainer._evaluate(self.held_out, 1, "validation").elbo
            point["held_out_elbo"] = bound
            if self.best is None or bound > self.best["elbo"]:
                kept = {name: t.detach().cpu().clone() for name, t in weights.items()}
                self.best = {"elbo": bound, "epoch": len(self.curve), "weights": kept}
        self.curve.append(point)
        if self.trainer.log is not None:
            numbers = {name: value for name, value in point.items() if name != "step"}
            self.trainer.log(self.done, numbers)

    def _not_finite(self, what: str) -> TrainingError:
        step = self.engine.finite_steps() + 1
        return TrainingError(
            f"the loss is not finite at step {step} ({what}): a smaller lr, or clip, may help"
        )

    def _had_enough(self) -> bool:
        if self.patience is None or self.best is None:
            return False
        return len(self.curve) - 1 - int(self.best["epoch"]) >= self.patience

    def _give_weights(self, *, best: bool = True) -> dict[str, Tensor]:
        """Copy the trained weights into the model: the best ones if there are any, or the last."""
        weights = self.engine.named_tensors(averaged=True)
        if best and self.best is not None:
            weights = self.best["weights"]
        self.trainer.elbo.load_state_dict(weights, strict=False)
        return weights

    def _keep_or_stop(self, signals: Signals) -> None:
        if signals.received or time.monotonic() - self._kept_at > KEEP_SECONDS:
            self._keep()
        if signals.received:
            self._give_weights()
            raise Stopped(signals.received)

    def _keep(self) -> None:
        if self.folder is None:
            return
        if self.engine.finite_steps() < self.done:
            raise self._not_finite("at a checkpoint")
        state = self.engine.state_dict()
        write(self.folder, Saved(self.settings, self.done, state, self.curve, self.best))
        self._kept_at = time.monotonic()


def _entries(data: Data, device: torch.device) -> tuple[dict[str, Entry], bool]:
    """The entries on the device, and whether the data are one bare tensor."""
    if isinstance(data, Tensor):
        return {"x": data.to(device)}, True
    if not isinstance(data, Mapping) or not data:
        raise TypeError(
            "data must be a tensor (N, …) or a dict of tensors with N rows, got "
            f"{type(data).__name__}"
        )
    return {name: entry.to(device) for name, entry in data.items()}, False


def _check_between(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or math.isinf(value):
        least = "above 0" if 0 < low < 1e-300 else f"at least {low:g}"
        most = "" if math.isinf(high) else f" and at most {high:g}"
        raise ConfigError(f"{name} must be a number, {least}{most}, got {value!r}")


def _fingerprint(data: Mapping[str, Entry]) -> str:
    digest = hashlib.sha256()
    for name, entry in data.items():
        tensors = entry.tensors() if isinstance(entry, SparseRows) else [entry]
        for t in tensors:
            digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
            flat = t.detach().cpu().contiguous().view(torch.uint8).flatten()
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()
