"""A pytest plugin that runs a worker's share of the rows of a part and writes them to the journal.

`bench.gpu.processes.workers` starts pytest with it. The rows of a group share their preparation and
are timed in turn, so a group stays in one process. As long as one of its rows is missing, the whole
group is run again.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Distribution

from bench.gpu.journal import CRASHED, DRY, FAILED, PASSED, SKIPPED, Journal, settled, this_run
from bench.gpu.parts import COMPARISON, PARTS, group_of, in_order
from bench.gpu.processes import LOST
from bench.process import ROOT
from bench.timing import building
from bench.timing import clock as measure
from bench.timing.rivals import AUTOTUNED
from vaez_fast.measures.evaluate import Evaluator, Metrics
from vaez_fast.training.engine import Engine
from vaez_kernels import error_bounds

# These are not compiled ahead: max-autotune times candidates, which must not share the machine, and
# JAX stores nothing on the disk.
NOT_AHEAD = (AUTOTUNED, "jax", "jax bfloat16")
TORCH_TESTING = Path(torch.testing.__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench.gpu")
    group.addoption("--part", choices=sorted(PARTS))
    group.addoption("--journal", type=Path)
    group.addoption("--worker", default="0")
    group.addoption("--share", default="0/1", help="I/N: every N-th group, from the I-th on")
    group.addoption("--ahead", action="store_true", help="compile kernels without timing them")
    group.addoption("--dry-run", action="store_true", help="one round a row, no checks")
    group.addoption(
        "--rows", action="append", default=[], help="only rows whose id contains this text"
    )


def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    if options.ahead:
        import torch._inductor.config

        # Other processes use the GPU now, so the fastest candidate of now may be slower later.
        torch._inductor.config.autotune_local_cache = False
    if options.ahead or options.dry_run:
        error_bounds.Check.passed = property(lambda self: True)  # type: ignore[assignment,method-assign]
        measure.MOST_ROUNDS = measure.WARMUP_CALLS = 1
    if options.dry_run:
        # On the stand-in, values are whatever is in memory, which the checks of
        # torch.distributions would reject.
        Distribution.set_default_validate_args(False)
        _keep_numbers_finite()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    config.pluginmanager.register(Rows(options), "bench-gpu-rows")


def _end_with(parent: int) -> None:
    # If the parent is killed, nothing else stops this process and its compilers.
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _keep_numbers_finite() -> None:
    # On the stand-in, values may be anything, and training stops at a number that is not finite.
    evaluate, read_totals = Evaluator.__call__, Engine.read_totals

    def evaluated(self: Evaluator, *args: Any, **options: Any) -> Metrics:
        found = asdict(evaluate(self, *args, **options))
        return Metrics(**{name: _finite(value) for name, value in found.items()})

    def totals(self: Engine, steps: int) -> tuple[float, float]:
        rate, distortion = read_totals(self, steps)
        return _finite(rate), _finite(distortion)

    Evaluator.__call__ = evaluated  # type: ignore[method-assign]
    Engine.read_totals = totals  # type: ignore[method-assign]


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else 0.0


class Rows(building.Watcher):
    """The rows of this process: their choice, their order and their results."""

    def __init__(self, options: Any) -> None:
        self.part = PARTS[options.part]
        self.journal = Journal(options.journal)
        self.worker, self.ahead, self.dry = options.worker, options.ahead, options.dry_run
        self.share, self.shares = map(int, options.share.split("/"))
        self.texts = options.rows
        self.members: dict[str, list[str]] = {}  # group → its rows
        self.provider: dict[str, str | None] = {}  # row → its provider; None for a check
        self.group = ""  # the one that runs now
        self.crashed: dict[str, str] = {}  # row → why, in this run
        self.prepared: dict[str, float] = {}  # row → seconds to build its rival
        building.watcher = self

    # The choice of rows.

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        items_of: dict[str, list[pytest.Item]] = {}
        for item in items:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            provider = params.get("provider")
            if not any(text in item.nodeid for text in self.texts or [""]):
                continue
            group = group_of(item.nodeid, provider)
            self.provider[item.nodeid] = provider
            self.members.setdefault(group, []).append(item.nodeid)
            items_of.setdefault(group, []).append(item)
        groups = in_order(self.members, self.part)[self.share :: self.shares]
        lines = self.journal.lines()
        now = this_run(lines)
        if not any(line["kind"] == "plan" and line["worker"] == self.worker for line in now):
            plan = [] if self.ahead else [row for group in groups for row in self.members[group]]
            self.journal.write("plan", worker=self.worker, rows=plan)
        ended = settled(lines)
        built = {line["group"] for line in now if line["kind"] == "built"} if self.ahead else set()
        self.crashed = {
            line["id"]: line["why"]
            for line in now
            if line["kind"] == "row" and line["outcome"] == CRASHED
        }
        chosen: list[pytest.Item] = []
        for group in groups:
            if group in built or ended.issuperset(self.members[group]):
                continue
            todo = [item for item in items_of[group] if item.nodeid not in self.crashed]
            chosen += todo[:1] if self.ahead else todo
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen

    # Their results.

    def lost_if_killed(self, *rows: str) -> None:
        print(f"\n{time.strftime('%H:%M:%S')} {rows[0]}", flush=True)  # see STALL_SECONDS
        self.journal.write("begin", worker=self.worker, rows=rows)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.group = group_of(nodeid, self.provider[nodeid])
        self.lost_if_killed(*self.members[self.group])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo is not None and not report.skipped and not building.device_answers():
            why = building.reason_of(call.excinfo.value)
            print(f"{item.nodeid}: the CUDA device is lost: {why}", file=sys.stderr)
            sys.stdout.flush()
            self.journal.crash(self.worker, why)
            os._exit(LOST)  # a teardown would fail or hang
        failed = report.failed or (report.skipped and report.when != "teardown")
        if (report.when == "call" or failed) and not self.ahead:
            self._record(item, call, report)
        return report

    def _record(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        why = "" if call.excinfo is None else building.reason_of(call.excinfo.value)
        outcome = {"passed": PASSED, "skipped": SKIPPED, "failed": FAILED}[report.outcome]
        if self.dry and (outcome == PASSED or failed_a_value_check(call)):
            outcome = DRY
        values: dict[str, Any] = {"seconds": report.duration}
        values |= dict(item.user_properties)
        if item.nodeid in self.prepared:
            values["prepared_seconds"] = self.prepared[item.nodeid]
        fixture = getattr(item, "funcargs", {}).get("benchmark")
        if fixture is not None and fixture.stats is not None:
            values["benchmark"] = fixture.stats.as_dict(include_data=True)
            if self.dry:
                values["benchmark"]["extra_info"]["check"] = DRY
        self.journal.write(
            "row", worker=self.worker, id=item.nodeid, outcome=outcome, why=why, **values
        )

    # The methods of a `bench.timing.building.Watcher`.

    def begin(self, provider: str) -> str | None:
        if self.ahead and provider in NOT_AHEAD:
            return "is not compiled ahead"
        if self.texts and not any(self._of(provider)):
            return "its row is not among --rows"
        row = self._row(provider)
        if row in self.crashed:
            return f"crashed: {self.crashed[row]}"
        self.lost_if_killed(row)
        return None

    def end(self, provider: str, seconds: float) -> None:
        self.prepared[self._row(provider)] = seconds

    @property
    def short(self) -> bool:
        return bool(self.ahead or self.dry)

    def done(self) -> None:
        self.lost_if_killed(*self.members[self.group])
        if self.ahead:
            seconds = sum(self.prepared.get(row, 0.0) for row in self.members[self.group])
            self.journal.write("built", worker=self.worker, group=self.group, seconds=seconds)
            pytest.skip("compiled")

    def _row(self, provider: str) -> str:
        return next(self._of(provider), f"{self.group}, {provider}")

    def _of(self, provider: str) -> Iterator[str]:
        members = self.members[self.group]
        return (row for row in members if self.provider[row] in (provider, None))


def failed_a_value_check(call: pytest.CallInfo[None]) -> bool:
    """Whether the failed assertion belongs to a test itself, directly or through torch.testing.

    The stand-in's kernels compute nothing, so every comparison of values fails. A failed
    assertion in torch, in inductor or in one of our launchers is a crash.
    """
    if call.excinfo is None or not isinstance(call.excinfo.value, AssertionError):
        return False
    files = [Path(entry.path) for entry in call.excinfo.traceback]
    while files and files[-1].is_relative_to(TORCH_TESTING):
        files.pop()
    return bool(files) and (
        files[-1].is_relative_to(ROOT / "tests") or files[-1] == ROOT / COMPARISON
    )
