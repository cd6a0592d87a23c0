"""Scaling: ranks are checked against one process before they are timed; the page has the times."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.scaling import run as scaling
from bench.scaling.figure import figure
from bench.scaling.model import Cluster, fitted
from bench.scaling.page import FAILED, page
from bench.scaling.rank import Plan
from bench.scaling.reasoning import clusters
from bench.scaling.run import LIMITS, main, measure, merged
from bench.scaling.worker import difference
from vaez_fast.drawing import style
from vaez_fast.drawing.page import markdown
from vaez_fast.model import VAE

# By batch: how far rounding alone moves the losses of one process, nats.
ROUNDING: dict[str, float | None] = {"128": 1e-5, "512": 1e-5, "1024": 2e-3, "2048": 5e-2}
TINY = Plan(
    processes=(1, 2), strong=(8, 24), weak=12, steps=20, checked_steps=3, rounds=2, calls=1,
    evaluations=2, samples=1,
)  # fmt: skip
ROW, FIXED = 40e-6, 1.5e-3
SLOWDOWN, ALL_REDUCE = {1: 1.0, 2: 1.1, 4: 2.3}, {1: 0.0, 2: 2e-3, 4: 5e-3}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        # Without a C++ compiler steps run uncompiled; compiling them would take longer.
        patch.setenv("CXX", "none")
        patch.setattr(scaling, "PASSES", 1)
        patch.setattr(scaling, "TWO_THREADS", ())
        return measure(TINY)


def test_two_ranks_are_launched_checked_and_timed(measured: dict[str, Any]) -> None:
    one, two = measured["layouts"]
    assert one["difference"]["batches"] == {
        batch: {"gradient": 0.0, "loss": 0.0} for batch in ("8", "12", "24")
    }
    for found in two["difference"]["batches"].values():
        # Two ranks sum 12 rows in another order. Equal bits would mean that one process did it all.
        assert 0.0 < found["gradient"] <= LIMITS["gradient"]
        assert found["loss"] <= LIMITS["loss"]
    assert one["failed"] == two["failed"] == []
    assert set(one["seconds"]) == {"8", "12", "24", "evaluation"}
    assert set(two["seconds"]) == {"8", "24", "apart", "all_reduce", "evaluation"}
    assert all(0.0 < moved < 0.1 for moved in measured["rounding"].values())
    assert two["elbo"] == pytest.approx(one["elbo"], abs=LIMITS["elbo"])
    assert one["bytes"]["peak"] >= one["bytes"]["own"] > 0
    assert "/" not in json.dumps(measured["plan"])  # no path of this machine


def results() -> dict[str, Any]:
    """Results as `measure` returns them, from a machine whose times follow the model exactly."""
    plan = Plan()
    layouts = []
    for n, threads in ((1, 1), (2, 1), (4, 1), (1, 2)):
        seconds = {
            str(b): SLOWDOWN[n] * (ROW * b / n + FIXED) / threads + ALL_REDUCE[n]
            for b in plan.batches(n)
        }
        if n > 1:
            apart = SLOWDOWN[n] * (ROW * 128 + FIXED)
            seconds |= {"apart": apart, "all_reduce": ALL_REDUCE[n]}
        seconds["evaluation"] = 0.1 / n / threads
        passes = {
            "elbo": -120.5,
            "log_px": -550.0,
            "bytes": {"imported": 4e8, "peak": 9e8, "own": 3e8},
            "compile_seconds": 5.0,
            "seconds": {name: [0.9 * t, t, 1.1 * t] for name, t in seconds.items()},
            "difference": {
                "batches": {str(b): {"gradient": 1e-7, "loss": 1e-5} for b in plan.batches(n)},
                "elbo": 1e-6,
                "log_px": 0.0,
            },
        }
        layouts.append(merged(n, threads, [passes, passes], plan, ROUNDING))
    return {
        "kind": scaling.KIND,
        "schema": scaling.SCHEMA,
        "date": "2026-01-02",
        "environment": {"cores": 2, "device": "a CPU", "torch": "2", "python": "3"},
        "plan": asdict(plan),
        "parameters": 632_848,
        "rounding": ROUNDING,
        "images": {"train": 4000, "validation": 500, "test": 500},
        "limits": LIMITS,
        "layouts": layouts,
    }


def test_the_model_is_fitted_to_what_it_describes() -> None:
    model = fitted(results())
    assert model is not None
    assert model.row == pytest.approx(ROW)
    assert model.fixed == pytest.approx(FIXED)
    assert model.slowdown == pytest.approx(SLOWDOWN)
    assert model.all_reduce == pytest.approx(ALL_REDUCE)
    assert model.seconds(512, 4) == pytest.approx(2.3 * (ROW * 128 + FIXED) + 5e-3)


def test_the_page_names_the_fastest_and_what_grows() -> None:
    text = markdown(page(results()))
    # (40 µs · 64 + 1.5 ms) · 1.1 + 2 ms = 6.47 ms; one process 6.62 ms, half with two threads.
    assert "| 128 | 2 | 6.47 ± 0.65 ms | 1.02 | 2.00 ms | 31% | 6.47 ms (+0%) |" in text
    assert "At batch 128 the fastest is one process with two threads: 2.00 times it" in text
    assert "two processes are 1.95 times slower than two threads" in text
    assert "2,531,400 bytes" in text  # 4 · (632,848 + 2)
    assert "4 processes 1.74 times" in text  # 4 / 2.3
    assert FAILED not in text
    assert figure(results()).startswith(b"\x89PNG")


def test_what_fails_its_check_has_no_time_and_the_page_says_so() -> None:
    plan = Plan()
    record = results()["layouts"][1]
    names = (*map(str, plan.batches(2)), "apart", "all_reduce", "evaluation")
    passes = {
        **{name: record[name] for name in ("elbo", "log_px", "bytes", "difference")},
        "compile_seconds": 5.0,
        "seconds": {name: [1.0, 1.0] for name in names},
    }
    passes["difference"]["batches"]["512"]["gradient"] = 2e-6
    passes["difference"]["batches"]["2048"]["loss"] = None  # not finite
    layout = merged(2, 1, [passes, passes], plan, ROUNDING)
    assert layout["failed"] == ["512", "2048"]
    assert set(layout["seconds"]) == {"128", "1024", "apart", "all_reduce", "evaluation"}
    found = results()
    found["layouts"][1] = layout
    text = markdown(page(found))
    assert "failed: 512, 2048" in text
    assert "At batch 2,048 ranks are beyond 0.001 nats. There the last row is the limit" in text
    assert f"| 512 | 2 | {FAILED} |" in text
    assert figure(found).startswith(b"\x89PNG")
    # Where rounding alone moves the loss of one process further, that is the limit.
    passes["difference"]["batches"]["2048"]["loss"] = 4e-2
    assert merged(2, 1, [passes, passes], plan, ROUNDING)["failed"] == ["512"]
    found["layouts"][1]["difference"]["batches"]["2048"]["loss"] = 4e-2
    assert "At batch 2,048 the ranks are beyond 0.001 nats and below the" in markdown(page(found))

    passes["difference"]["elbo"] = 0.2
    assert merged(2, 1, [passes, passes], plan, ROUNDING)["seconds"] == {}


def found_of(processes: int = 2) -> dict[str, Any]:
    """A pass in which every check passed."""
    plan = Plan()
    names = (*map(str, plan.batches(processes)), "apart", "all_reduce", "evaluation")
    batches = {str(b): {"gradient": 0.0, "loss": 0.0} for b in plan.batches(processes)}
    return {
        "elbo": -120.0, "log_px": -500.0, "bytes": {}, "compile_seconds": 5.0,
        "seconds": {name: [1.0, 2.0, 3.0] for name in names},
        "difference": {"batches": batches, "elbo": 0.0, "log_px": 0.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("which", "limit", "lost"),
    [
        ("gradient", 1e-6, ["512"]),
        ("loss", 1e-3, ["512"]),
        ("elbo", 0.1, ["128", "512", "1024", "2048", "apart", "all_reduce", "evaluation"]),
        ("log_px", 1e-3, ["evaluation"]),
    ],
)
def test_a_difference_may_be_its_limit_and_no_more(
    which: str, limit: float, lost: list[str]
) -> None:
    for off, failed in ((0.99 * limit, []), (1.01 * limit, lost)):
        one = found_of()
        of_batch = which in ("gradient", "loss")
        (one["difference"]["batches"]["512"] if of_batch else one["difference"])[which] = off
        layout = merged(2, 1, [one, one], Plan(), ROUNDING)
        assert layout["failed"] == failed
        assert not set(failed) & layout["seconds"].keys()


def test_times_are_quartiles_over_the_rounds_of_all_passes() -> None:
    one, other = found_of(), found_of()
    other["seconds"]["128"], other["compile_seconds"] = [4.0, 5.0, 60.0], 2.0
    layout = merged(2, 1, [one, other], Plan(), ROUNDING)
    # Among 1, 2, 3, 4, 5 and 60 the quartiles are at positions 1.75, 3.5 and 5.25.
    assert layout["seconds"]["128"] == pytest.approx([1.75, 3.5, 5 + 0.25 * 55])
    assert layout["compile_seconds"] == [5.0, 2.0]


def test_a_run_whose_layouts_fail_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results()
    monkeypatch.setattr(scaling, "measure", lambda _: found)
    monkeypatch.setattr(scaling, "load", lambda *_: None)
    monkeypatch.setattr(scaling, "steps_of", lambda *_: 300)
    assert main(["--out", str(tmp_path)]) == 0
    found["layouts"][2]["failed"] = ["128"]
    assert main(["--out", str(tmp_path)]) == 1


def test_layouts_are_gone_through_forth_and_back_and_checked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched: list[tuple[int, int, bool]] = []

    def launch(_: Path, processes: int, threads: int, *, check: bool) -> dict[str, Any]:
        launched.append((processes, threads, check))
        return found_of(processes) | {"rounding": ROUNDING}

    split = SimpleNamespace(images=[0] * 7)
    digits = SimpleNamespace(train=split, validation=split, test=split)
    monkeypatch.setattr(scaling, "launch", launch)
    monkeypatch.setattr(scaling, "load", lambda *_: digits)
    found = measure(Plan())
    layouts = [(1, 1), (2, 1), (4, 1), (1, 2)]
    assert launched == [
        *((*layout, True) for layout in layouts),
        *((*layout, False) for layout in reversed(layouts)),
    ]
    assert [(of["processes"], of["threads"]) for of in found["layouts"]] == layouts
    assert found["parameters"] == sum(p.numel() for p in VAE("altosaar").parameters())


def test_every_number_of_the_pages_tables_is_in_its_column() -> None:
    text = markdown(page(results()))
    # 512 rows a process: 1.1·(40 µs·512 + 1.5 ms) + 2 ms = 26.18 ms against 21.98.
    assert "| 2 | 1,024 | 26.18 ± 2.62 ms | 39,117 | 84% |" in text
    assert "| 1 | 512 | 21.98 ± 2.20 ms | 23,294 | 100% |" in text
    assert "| 4 | 25.00 ± 2.50 ms | 4.00 | 0 |" in text  # evaluation: 0.1 s / 4
    assert "| 2 | 1.0e-07 | 1.0e-05 | -120.5000 (1.0e-06) | passed |" in text
    assert "| 2 | 381 MiB | 858 MiB | 286 MiB | 5.0 s | 5.0 s |" in text  # MiB are 2^20 bytes
    assert "12,000 bytes" in text  # three float64 for each test image
    assert "off by 0% in the middle and by +0% at worst" in text
    assert "| 1, weights rounded otherwise | 1.0e-05 | 1.0e-05 | 2.0e-03 | 5.0e-02 |" in text


def test_a_gpu_is_given_the_products_of_a_step_and_a_fixed_part() -> None:
    model = fitted(results())
    assert model is not None
    here, _, gpu, _ = clusters(model)
    assert (here.row, here.fixed) == (model.row, model.fixed)
    # 784-256-256-256, 128-256-256-784: forward and both gradients; the images need no gradient.
    layers = [(784, 256), (256, 256), (256, 256), (128, 256), (256, 256), (256, 784)]
    operations = 2 * (3 * sum(i * o for i, o in layers) - 784 * 256)
    assert gpu.row == pytest.approx(operations / 50e12)
    assert gpu.fixed == 100e-6


def test_the_weak_figures_ideal_is_in_proportion_to_the_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []

    def png(figure: Any) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(style, "png", png)
    figure(results())
    left, right = drawn[0].axes
    measured_rates, ideal = right.lines
    one = 512 / (ROW * 512 + FIXED)
    assert list(ideal.get_ydata()) == pytest.approx([one, 2 * one, 4 * one])
    assert measured_rates.get_ydata()[1] == pytest.approx(1024 / 26.178e-3)
    assert left.lines[0].get_ydata()[0] == pytest.approx(1e3 * (ROW * 128 + FIXED))


def test_differences_are_the_worst_tensor_and_the_worst_step() -> None:
    def found(gradients: list[list[float]], losses: list[float], elbo: float) -> dict[str, Any]:
        return {
            "gradients": {8: [torch.tensor(g) for g in gradients]},
            "losses": {8: torch.tensor(losses, dtype=torch.float64)},
            "elbo": elbo,
            "log_px": -500.0,
        }

    one = found([[3.0, 4.0], [1.0]], [500.0, 400.0], -200.0)
    off = difference(found([[3.0, 4.5], [1.01]], [500.0, 400.25], -200.5), one)
    assert off["batches"]["8"]["gradient"] == pytest.approx(0.1)  # 0.5 relative to a norm of 5
    assert off["batches"]["8"]["loss"] == pytest.approx(0.25)
    assert off["elbo"] == pytest.approx(0.5)
    lost = difference(found([[3.0, 4.0], [1.0]], [500.0, float("nan")], -200.0), one)
    assert lost["batches"]["8"]["loss"] is None


def test_a_cluster_pays_and_is_half_used_from_the_batches_it_names() -> None:
    size = 2_531_400
    cluster = Cluster("eight", 8, ROW, FIXED, bandwidth=1e9, latency=1e-5)
    # A ring of 8 sends 14 messages of an eighth each.
    assert cluster.all_reduce(size) == pytest.approx(14 * (size / 8 / 1e9 + 1e-5))
    pays, half = cluster.pays_from(size), cluster.half_from(size)
    assert cluster.speedup(round(1.01 * pays), size) > 1 > cluster.speedup(round(0.99 * pays), size)
    assert cluster.speedup(round(half), size) == pytest.approx(4, rel=1e-3)


def test_a_report_is_drawn_anew_from_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    assert main(["--report", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == markdown(page(results()))
    (tmp_path / "results.json").write_text('{"kind": "another"}')
    assert main(["--report", str(tmp_path)]) == 1
    assert "is not of bench.scaling" in capsys.readouterr().err


def test_a_worker_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert main(["--out", str(tmp_path), "--quick"]) == 1
    assert capsys.readouterr().err == ("bench.scaling: error: 1 process ended with status 1\n")
    assert not (tmp_path / "results.json").exists()
