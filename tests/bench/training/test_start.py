"""Processes that are timed up to their first training step take one, and failures are named."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.process import ROOT, environment
from bench.training import first_steps as module
from bench.training.first_steps import first_steps, seconds_to_first_step, variables
from bench.training.start import FIRST_STEPS


@pytest.mark.parametrize("provider", ["textbook", "jax"])
def test_every_provider_takes_a_step(provider: str) -> None:
    if provider == "jax" and find_spec("jax") is None:
        pytest.skip("jax is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "bench.training.start", provider],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "stepped\n"), done.stderr


def test_the_first_process_of_a_provider_is_cold_and_its_second_warm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, Path]] = []

    def seconds(provider: str, caches: Path) -> float:
        filled = (caches / "filled").exists()
        (caches / "filled").touch()
        seen.append((provider, caches))
        return 1.0 if filled else 9.0

    monkeypatch.setattr(module, "seconds_to_first_step", seconds)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    first_steps.cache_clear()
    groups = first_steps(2)
    first_steps.cache_clear()
    measured = {name for name in FIRST_STEPS if name not in groups["cold"].unavailable}
    assert groups["cold"].unavailable["jax"] == "jax is not installed"
    assert groups["cold"].seconds == {name: [9.0, 9.0] for name in measured}
    assert groups["warm"].seconds == {name: [1.0, 1.0] for name in measured}
    assert len({caches for _, caches in seen}) == 2 * len(measured)  # none is shared
    assert not any(caches.exists() for _, caches in seen)


def test_a_process_that_takes_no_step_is_named_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"start absent took no step: KeyError: 'absent'"):
        seconds_to_first_step("absent", tmp_path)


def test_compilers_keep_their_results_in_the_given_folder(tmp_path: Path) -> None:
    code = "from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, env=variables(tmp_path), capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)


def test_the_engine_takes_a_step() -> None:
    FIRST_STEPS["engine float32"]()
