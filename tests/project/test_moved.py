"""Programs written before modules moved go on importing, pickling and reloading them."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from vaez_fast import moved
from vaez_fast.measures.evaluate import Metrics

ROOT = Path(__file__).parents[2]
# What docs/README.md listed under each old name.
PUBLIC = {
    "train": ("train", "Result", "TrainingError", "steps_of", "Observe"),
    "evaluate": ("Evaluator", "Metrics"),
    "results": ("load_run", "save", "metrics"),
    "samplers": ("fit", "Sampler", "GaussianMixture", "Posterior", "SAMPLERS"),
    "aggregate": ("surgery", "sample_kl", "moments", "active_units"),
    "image_metrics": ("image_scores", "floors", "frechet_distance"),
}


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_old_name_is_the_module_that_moved() -> None:
    assert {f"vaez_fast.{name}" for name in PUBLIC} == set(moved.NEW_NAMES)
    for old, names in PUBLIC.items():
        module = importlib.import_module(f"vaez_fast.{old}")
        assert module is importlib.import_module(moved.NEW_NAMES[f"vaez_fast.{old}"])
        assert module.__name__ == moved.NEW_NAMES[f"vaez_fast.{old}"]
        for name in names:
            assert hasattr(module, name)


def test_programs_import_the_old_names_first() -> None:
    program = """
import vaez_fast.train
from vaez_fast import samplers
from vaez_fast.train import TrainingError, train
from vaez_fast.results import load_run
import vaez_fast.training.train as new
assert vaez_fast.train is new and vaez_fast.train.train is train is new.train
assert new.__spec__.name == "vaez_fast.training.train"
assert samplers.fit.__module__ == "vaez_fast.measures.samplers"
"""
    run(program)


def test_nothing_is_imported_early() -> None:
    program = """
import sys, vaez_fast
assert not [name for name in sys.modules if name.startswith("vaez_fast.") and name[10:] != "moved"]
assert "torch" not in sys.modules
"""
    run(program)


def test_a_name_that_never_was_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"vaez_fast\.never"):
        importlib.import_module("vaez_fast.never")


def test_a_pickle_of_before_is_read() -> None:
    metrics = Metrics(-100.0, 20.0, 80.0, -95.0, 0.5, 128)
    before = pickle.dumps(metrics, protocol=0)
    before = before.replace(b"vaez_fast.measures.evaluate", b"vaez_fast.evaluate")
    assert pickle.loads(before) == metrics


def test_modules_are_reloaded() -> None:
    program = """
import importlib, sys
import vaez_fast.samplers
before = len(sys.meta_path)
for name in ("vaez_fast", "vaez_fast.moved", "vaez_fast.samplers", "vaez_fast"):
    importlib.reload(importlib.import_module(name))
assert len(sys.meta_path) == before
import vaez_fast.aggregate
assert vaez_fast.samplers is vaez_fast.measures.samplers
"""
    run(program)
