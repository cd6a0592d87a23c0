"""Dry runs, and runs that only compile ahead."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.journal import rows
from bench.gpu.plugin import failed_a_value_check
from bench.gpu.processes import workers
from bench.timing import building
from bench.timing.rows import Bench
from tests.bench.gpu.journals import journal
from vaez_fast.config import LOG_PX_SAMPLES, TrainConfig
from vaez_fast.training.phases import STEPS_PER_REPLAY

ROOT = Path(__file__).parents[3]


class TestDryRun:
    """A dry run forgives wrong values; it does not forgive crashes."""

    def outcome(self, fail: Callable[[], None]) -> bool:
        return failed_a_value_check(pytest.CallInfo.from_call(fail, "call"))

    def test_values_that_are_off_are_forgiven(self) -> None:
        def off() -> None:
            assert torch.zeros(1).item() == 1

        def not_close() -> None:
            torch.testing.assert_close(torch.zeros(1), torch.ones(1))

        assert self.outcome(off)
        assert self.outcome(not_close)
        assert not self.outcome(lambda: None)

    def test_an_assertion_in_torch_or_in_a_launcher_is_a_crash(self) -> None:
        def asserts(file: str) -> Callable[[], None]:
            space: dict[str, Any] = {}
            exec(compile("def fail(): assert False", file, "exec"), space)
            fail: Callable[[], None] = space["fail"]
            return fail

        for file in (torch.__file__, str(ROOT / "kernels/vaez_kernels/latent/__init__.py")):
            assert not self.outcome(asserts(file))
        assert self.outcome(asserts(str(ROOT / "tests/cuda/test_numbers.py")))

    def test_only_rivals_of_the_rows_that_were_asked_for_are_built(self, tmp_path: Path) -> None:
        of = journal(tmp_path)
        flags = ["-p", "bench.gpu.plugin", "-p", "no:cacheprovider", "-q", "-s", "--dry-run"]
        flags += ["--part", "ops", "--journal", str(of.path), "--rows", "noise[16384-normal]"]
        arguments = ["-m", "pytest", "bench/ops/bench_noise.py", "--benchmark-only", *flags]
        assert workers(arguments, of, tmp_path, ["ops"], time.monotonic() + 240) == []
        (line,) = rows(of.lines()).values()
        assert line["outcome"] == "dry run"
        assert len(line["benchmark"]["stats"]["data"]) == 1  # one round
        begun = {row for line in of.lines() if line["kind"] == "begin" for row in line["rows"]}
        assert not any("torch.randn" in row for row in begun)


class TestAhead:
    def test_a_training_is_built_as_rivals_are_and_in_few_steps(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # bench_training uses the mark of pytest-benchmark, which may be switched off.
        monkeypatch.setitem(vars(pytest.mark), "benchmark", lambda **_: lambda test: test)
        bench_training = importlib.import_module("bench.training.bench_training")
        took: list[TrainConfig] = []

        def train(config: TrainConfig, *_: Any, **__: Any) -> None:
            took.append(config)
            raise RuntimeError("nothing is trained here")

        class Ahead(building.Watcher):
            short = True

            def done(self) -> None:
                pytest.skip("compiled")

        monkeypatch.setattr(bench_training, "load", lambda *_: None)
        monkeypatch.setattr(bench_training, "train", train)
        monkeypatch.setattr(building, "watcher", Ahead())
        bench = Bench(torch.device("cpu"), quick=False, copy_bytes_per_second=1.0)
        with pytest.raises(pytest.skip.Exception, match="compiled"):
            bench_training.test_training(None, bench, "data", "analytic")
        assert [(config.steps, config.test_samples) for config in took] == [
            (STEPS_PER_REPLAY + 1, 2)
        ]
        monkeypatch.setattr(Ahead, "short", False)
        with pytest.raises(pytest.skip.Exception):
            bench_training.test_training(None, bench, "data", "analytic")
        assert (took[1].steps, took[1].test_samples) == (620, LOG_PX_SAMPLES)
