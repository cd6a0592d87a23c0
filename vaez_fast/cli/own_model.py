"""vaez-fast train --model PACKAGE.MODULE:CLASS: a user's model, on the entries of an .npz."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..system.files import claimed, write_atomically, write_json
from ..system.messages import say
from ..system.stopping import Stopped

HELD_OUT = 0.1  # the fraction of the rows that is not trained on
# Options that a model of one's own takes.
TAKEN = {"model", "data", "epochs", "batch_size", "lr", "seed", "beta", "kl", "num_samples"}
TAKEN |= {"free_bits", "precision", "device", "out", "json", "test_samples"}


def is_own(name: str) -> bool:
    """Whether `--model` names a class of the user's and none of ours."""
    return ":" in name


def run(options: argparse.Namespace, out: Path) -> int:
    """Train the model, evaluate it on rows that it has not seen, and write the results to `out`.

    Raises:
        ConfigError: an option is wrong, or does not go together with a model of one's own.
        OutputError: `out` cannot be written, or holds another run.
    """
    if extra := sorted(options.given - TAKEN):
        raise ConfigError(f"model {options.model}: leave out {', '.join(extra)}, of our models")
    if not options.data.endswith(".npz"):
        raise ConfigError(f"data must be an .npz for model {options.model}, got {options.data!r}")
    model = _made(options.model)

    import torch

    from ..sources import load_npz, split
    from ..trainer import Trainer, cosine, to_csv

    training, held_out = split(load_npz(Path(options.data)), HELD_OUT, options.seed)
    trainer = Trainer(
        model,
        kl=options.kl,
        beta=options.beta,
        num_samples=options.num_samples,
        free_bits=options.free_bits,
        lr=cosine(options.lr),
        precision=options.precision,
        seed=options.seed,
        device=options.device,
        log=to_csv(out / "curve.csv"),
    )
    try:
        trainer.train(training, epochs=options.epochs or 30, batch_size=options.batch_size, out=out)
    except Stopped as stopped:
        say("train", f"{stopped}; the same command goes on with the run in {out}")
        return stopped.exit_status
    with claimed(out):
        found = trainer.evaluate(held_out, options.test_samples)
        numbers = asdict(found) | {"bits_per_dimension": found.bits_per_dimension}
        write_json(out / "metrics.json", {"model": options.model, "held_out": numbers})
        buffer = io.BytesIO()
        torch.save({n: t.cpu() for n, t in model.state_dict().items()}, buffer)
        write_atomically(out / "weights.pt", buffer.getvalue())
    print(json.dumps(numbers, indent=1) if options.json else f"{options.model}, held out: {found}")
    if not options.json:
        print(f"wrote {out / 'metrics.json'}, {out / 'curve.csv'} and {out / 'weights.pt'}")
    return 0


def _made(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"model: cannot import {module!r} ({error})") from None
    found = getattr(imported, attribute, None)
    if found is None:
        raise ConfigError(f"model: {module!r} has no {attribute!r}")
    try:
        return found()
    except Exception as error:
        raise ConfigError(
            f"model: {name} must be a class, or a function, that needs no arguments; calling it "
            f"failed with {type(error).__name__}: {error}"
        ) from None
