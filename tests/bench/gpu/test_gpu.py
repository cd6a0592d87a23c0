"""The parts for a CUDA machine, as far as they can be seen without one.

tests/rehearsal runs all of them, on a stand-in.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import clocks, page
from bench.gpu.comparison import CASES
from bench.gpu.journal import Journal, planned, rows, settled
from bench.gpu.parts import PARTS, group_of, in_order
from bench.gpu.plugin import _failed_a_value_check
from bench.gpu.processes import run, workers
from bench.gpu.results import benchmarks, comparison, found
from bench.records.records import parse
from bench.timing import building
from bench.timing.accuracy import Check
from bench.timing.rows import Bench, Group, Rival
from tests.bench.suite_record import MACHINE, content, on_a_gpu
from vaez_fast.compare import Row
from vaez_fast.comparison import OPS
from vaez_fast.config import LOG_PX_SAMPLES, TrainConfig
from vaez_fast.data import DataError
from vaez_fast.training.phases import STEPS_PER_REPLAY

ROOT = Path(__file__).parents[3]
ID = "00000000:1b:00.0"
SESSION = {"machine": MACHINE | {"device": "a GPU"}, "code": "c0de", "dry_run": False, "gpu": ""}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that these tests start are no workers of the tests' own."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


def journal(out: Path, part: str = "ops", **session: Any) -> Journal:
    """A part's journal in which a run has begun."""
    begun = Journal(out / f"{part}.jsonl")
    begun.write("run", **(SESSION | session))
    return begun


def ended(of: Journal, *outcomes: tuple[str, str], problems: tuple[str, ...] = ()) -> None:
    of.write("plan", worker="0", rows=[row for row, _ in outcomes])
    for row, outcome in outcomes:
        if outcome != "missing":
            of.write("row", worker="0", id=row, outcome=outcome, why=f"why {row}", seconds=1.0)
    of.write("end", seconds=7.0, problems=problems)


class TestCommand:
    def test_without_a_gpu_it_says_so_and_writes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if torch.cuda.is_available():
            pytest.skip("a CUDA device is here")
        for part in ([], ["ops"], ["ops", "--dry-run"]):
            assert command.main([*part, "--out", str(tmp_path / "out")]) == 2
            assert capsys.readouterr().err == "bench.gpu: error: no CUDA device is here\n"
        assert not (tmp_path / "out").exists()

    @pytest.fixture
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """A machine with a GPU on which every worker ends at once; what each was called with."""
        calls: list[list[str]] = []

        def work(args: list[str], of: Journal, _: Path, names: list[str], __: float) -> list[str]:
            calls.append([*args, *names])
            ended(of, ("row", self.outcome))
            return self.problems

        self.outcome, self.problems = "passed", list[str]()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(command, "environment", lambda _: SESSION["machine"])
        monkeypatch.setattr(command, "workers", work)
        monkeypatch.setattr(command, "load", lambda *_: None)
        monkeypatch.setattr(clocks, "pci_id", lambda: ID)
        return calls

    @pytest.mark.parametrize(
        ("outcome", "problems", "status"),
        [
            ("passed", [], 0),
            ("skipped", [], 0),
            ("failed", [], 1),
            ("crashed", [], 1),
            ("missing", [], 1),
            ("passed", ["cut off at the time limit"], 1),
        ],
    )
    def test_what_did_not_pass_or_was_not_run_fails_the_call(
        self, outcome: str, problems: list[str], status: int, begun: Any, tmp_path: Path
    ) -> None:
        self.outcome, self.problems = outcome, problems
        assert command.main(["correctness", "--out", str(tmp_path)]) == status

    def test_without_a_name_all_parts_run_in_their_order(
        self, begun: list[list[str]], tmp_path: Path
    ) -> None:
        assert command.main(["--out", str(tmp_path), "--data-root", str(tmp_path)]) == 0
        timed = [call for call in begun if "--ahead" not in call]
        assert [call[call.index("--part") + 1] for call in timed] == list(PARTS)
        assert all((ROOT / name).exists() for call in begun for name in call if ".py" in name)
        # Kernels are compiled in parallel before rows are timed by one process.
        several = max(1, (os.cpu_count() or 2) // 2)
        ahead = [call for call in begun if "--ahead" in call]
        assert [call[call.index("--part") + 1] for call in ahead] == ["ops", "training", "rivals"]
        assert all(
            call[-several:] == [f"{call[-several][:-8]}-{i}-ahead" for i in range(several)]
            for call in ahead
        )
        assert [call[-1] for call in timed] == [f"correctness-{several - 1}", *list(PARTS)[1:]]

    def test_without_digits_training_says_how_to_bring_them(
        self, begun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        def load(*_: Any) -> None:
            raise DataError("run `python -m vaez_fast.data mnist-5k.npz`")

        monkeypatch.setattr(command, "load", load)
        assert command.main(["training", "--out", str(tmp_path)]) == 1
        assert "run `python -m vaez_fast.data" in (tmp_path / "README.md").read_text()
        assert not begun

    @pytest.mark.parametrize("change", [{"code": "other"}, {"dry_run": True}])
    def test_rows_of_other_code_or_of_a_dry_run_are_not_continued(
        self, change: dict[str, Any], begun: Any, tmp_path: Path, capsys: Any
    ) -> None:
        journal(tmp_path, "rivals", **({"code": command._code()} | change))
        assert command.main(["ops", "--out", str(tmp_path)]) == 1
        assert "name another folder" in capsys.readouterr().err
        assert not begun

    def test_the_page_is_written_again_without_a_gpu(self, tmp_path: Path) -> None:
        ended(journal(tmp_path), ("row", "passed"))
        assert command.main(["page", "--out", str(tmp_path)]) == 0
        assert "| ops | passed | 1 of 1 |" in (tmp_path / "README.md").read_text()


class TestOrder:
    def ops(self) -> list[str]:
        sizes = {
            "latent": ("128x20", "524288x128"),
            "linear": ("1x128x256x784", "64x1024x256x784"),
        }
        return [
            f"bench/bench_{op}.py::test_{op}[{dtype}-{size}-{direction}"
            for op in sizes
            for dtype in ("float32", "bfloat16")
            for size in sizes[op]
            for direction in ("forward", "forward+backward")
        ]

    def test_each_op_has_its_turn_and_the_largest_size_with_gradients_comes_first(self) -> None:
        order = in_order(self.ops(), PARTS["ops"])
        assert sorted(order) == sorted(self.ops())
        assert [group.partition("[")[2] for group in order[:4]] == [
            "float32-524288x128-forward+backward",
            "float32-64x1024x256x784-forward+backward",
            "float32-128x20-forward+backward",
            "float32-1x128x256x784-forward+backward",
        ]
        assert all("bfloat16" in group for group in order[4:8])
        assert all(group.endswith("-forward") for group in order[8:])

    def test_steps_come_before_whole_trainings_and_jax_before_max_autotune(self) -> None:
        for part, first, last in (("training", "step", "training"), ("rivals", "jax", "autotuned")):
            given = [f"bench/bench_{name}.py::test[{i}" for name in (last, first) for i in "ab"]
            names = [group.partition("::")[0] for group in in_order(given, PARTS[part])]
            assert names == [f"bench/bench_{name}.py" for name in (first, first, last, last)]

    def test_rows_of_a_group_differ_in_their_provider_alone(self) -> None:
        row = "bench/ops/bench_latent.py::test_latent[float32-128x20-forward+backward-eager graph]"
        assert group_of(row, "eager graph").endswith("[float32-128x20-forward+backward")
        assert group_of("tests/cuda/test_numbers.py::test_x[1]", None).endswith("[1]")

    def test_a_comparison_begins_with_a_case_of_each_op(self) -> None:
        assert [case.op for case in CASES[: len(OPS)]] == list(OPS)


class TestJournal:
    def test_a_line_that_a_kill_left_half_written_is_left_out(self, tmp_path: Path) -> None:
        of = journal(tmp_path)
        of.write("row", worker="0", id="a", outcome="passed", why="", seconds=math.nan)
        with of.path.open("a") as file:
            file.write('{"kind": "row", "id": "b", "outc')
        (line,) = rows(of.lines()).values()
        assert (line["id"], line["seconds"]) == ("a", None)

    def test_a_line_after_half_a_line_is_whole(self, tmp_path: Path) -> None:
        of = journal(tmp_path)
        with of.path.open("a") as file:
            file.write('{"kind": "row", "id": "b", "outc')
        of.write("row", worker="0", id="c", outcome="passed", why="")
        assert list(rows(of.lines())) == ["c"]
        assert "" not in of.path.read_text().splitlines()  # whole lines get no empty ones

    def test_a_line_that_does_not_fit_on_the_disk_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        of = journal(tmp_path)
        write = os.write
        monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:9]))
        with pytest.raises(OSError, match="only 9 of"):
            of.write("end", seconds=1.0, problems=[])

    def test_the_next_run_tries_again_what_failed_and_keeps_what_passed(
        self, tmp_path: Path
    ) -> None:
        of = journal(tmp_path)
        outcomes = ("passed", "skipped", "dry run", "failed", "crashed", "missing")
        ended(of, *((outcome, outcome) for outcome in outcomes))
        assert settled(of.lines()) == set(outcomes) - {"missing"}
        of.write("run", **SESSION)
        assert settled(of.lines()) == {"passed", "skipped", "dry run"}
        of.write("row", worker="0", id="failed", outcome="failed", why="again")
        assert "failed" in settled(of.lines())
        assert planned(of.lines()) == list(outcomes)

    def test_a_crash_takes_what_was_at_stake_and_has_no_row_yet(self, tmp_path: Path) -> None:
        of = journal(tmp_path)
        of.write("begin", worker="0", rows=["a", "b", "c"])
        of.write("begin", worker="1", rows=["d"])
        of.write("row", worker="0", id="a", outcome="passed", why="")
        assert of.crash("0", "killed") == ["b", "c"]
        found = rows(of.lines())
        assert {row: line["outcome"] for row, line in found.items()} == {
            "a": "passed",
            "b": "crashed",
            "c": "crashed",
        }
        assert of.crash("0", "killed") == []
        of.write("run", **SESSION)
        assert of.crash("1", "of a run before") == []


class TestProcesses:
    def test_what_outlives_the_limit_is_interrupted_and_its_log_kept(self, tmp_path: Path) -> None:
        code = (
            "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "print('begun', flush=True)\n"
            "try: time.sleep(60)\nexcept KeyboardInterrupt: print('told to stop')"
        )
        begin = time.monotonic()
        outcome = run(["-c", code], tmp_path / "log", begin + 2)
        assert time.monotonic() - begin < 20
        assert (outcome.status, outcome.at_the_limit) == (None, True)
        assert (tmp_path / "log").read_text() == "begun\ntold to stop\n"

    def test_what_says_nothing_is_stopped_before_the_limit(self, tmp_path: Path) -> None:
        begin = time.monotonic()
        outcome = run(
            ["-c", "import time; time.sleep(60)"], tmp_path / "log", begin + 60, stall=1.0
        )
        assert time.monotonic() - begin < 20
        assert (outcome.finished, outcome.why) == (False, "it said nothing for 1 s")

    def test_how_a_process_ended_is_told_and_its_children_end_with_it(self, tmp_path: Path) -> None:
        code = (
            "import bench, vaez_kernels, os, signal, subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(child.pid, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGSEGV)"
        )
        outcome = run(["-c", code], tmp_path / "log", time.monotonic() + 60)
        assert (outcome.status, outcome.why) == (-11, "the process was killed by SIGSEGV")
        child = int((tmp_path / "log").read_text().splitlines()[0])
        for _ in range(50):
            if _state(child) in ("", "Z"):  # a zombie has nobody who asks for its status
                break
            time.sleep(0.1)
        assert _state(child) in ("", "Z")

    def test_rows_that_kill_their_process_or_lose_the_device_take_no_others_with_them(
        self, tmp_path: Path
    ) -> None:
        of = journal(tmp_path)
        flags = [
            "-p",
            "tests.bench.gpu.failing_rows",
            "-p",
            "bench.gpu.plugin",
            "-p",
            "no:cacheprovider",
        ]
        flags += ["-q", "-s", "--tb=short", "--part", "ops", "--journal", str(of.path)]
        arguments = ["-m", "pytest", "bench/ops/bench_noise.py", "--benchmark-only", *flags]
        deadline = time.monotonic() + 240
        assert workers(arguments, of, tmp_path, ["ops"], deadline) == []
        log = (tmp_path / "ops.txt").read_text()
        ends = {row.partition("[")[2]: line for row, line in rows(of.lines()).items()}
        assert {row: line["outcome"] for row, line in ends.items()} == {
            "16384-torch.randn]": "crashed",
            "16384-normal]": "passed",
            "1048576-torch.randn]": "passed",
            "1048576-normal]": "crashed",
        }, log
        assert ends["16384-torch.randn]"]["why"] == "the process was killed by SIGKILL"
        assert "an illegal memory access" in ends["1048576-normal]"]["why"]
        times = ends["16384-normal]"]["benchmark"]["stats"]["data"]
        assert len(times) >= 11
        assert all(seconds > 0 for seconds in times)
        assert "prepared_seconds" in ends["16384-normal]"]
        # The largest size came first, and all is planned.
        assert "1048576" in planned(of.lines())[0]
        assert set(planned(of.lines())) == set(rows(of.lines()))


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


# A GPU at 1,980 MHz that is slowed down from the second line on; and a line cut off.
SMI = """\
2026/11/25 10:00:00.000, 1980, 2619, 310.25, 45, 0x0000000000000000
2026/11/25 10:00:00.100, 1410, 2619, 699.50, 71, 0x0000000000000004
2026/11/25 10:00:00.200, 1500, 2619, [N/A], 72, 0x0000000000000044
2026/11/25 10:00:09.000, 1980, 2619, 120.00, 50, 0x0000000000000001
2026/11/25 10:00:0"""


class TestClocks:
    def samples(self, tmp_path: Path) -> list[clocks.Sample]:
        (tmp_path / page.CLOCKS).write_text(SMI)
        return clocks.read(tmp_path / page.CLOCKS)

    def test_a_rows_record_has_what_the_gpu_did_meanwhile(self, tmp_path: Path) -> None:
        samples = self.samples(tmp_path)
        begin = samples[0].time
        assert clocks.during(samples, begin + 0.05, begin + 0.25) == {
            "samples": 3,
            "sm_mhz": {"min": 1410, "median": 1500, "max": 1980},
            "memory_mhz": {"min": 2619, "median": 2619, "max": 2619},
            "watts": {"min": 310.25, "median": 504.875, "max": 699.5},
            "celsius": {"min": 45, "median": 71, "max": 72},
            "throttled": ["power cap", "temperature, by hardware"],
        }

    def test_an_idle_gpu_is_not_throttled_and_no_sample_is_no_record(self, tmp_path: Path) -> None:
        samples = self.samples(tmp_path)
        idle = clocks.during(samples, samples[3].time, samples[3].time + 1)
        assert idle is not None
        assert idle["throttled"] == []
        assert clocks.during(samples, samples[0].time + 3, samples[0].time + 4) is None

    def test_nvidia_smi_writes_until_the_block_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        smi = tmp_path / "nvidia-smi"
        line = SMI.splitlines()[0]
        loop = f"import sys, time\nwhile True: print({line!r}, flush=True); time.sleep(0.02)"
        smi.write_text(f"#!{sys.executable}\n{loop}\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        file = tmp_path / "clocks.csv"
        with clocks.sampled(file, ID):
            for _ in range(200):
                if clocks.read(file):
                    break
                time.sleep(0.05)
        size = file.stat().st_size
        assert clocks.read(file)[0].sm_mhz == 1980
        time.sleep(0.2)
        assert file.stat().st_size == size

    def test_without_nvidia_smi_the_block_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with clocks.sampled(tmp_path / "clocks.csv", ID):
            pass
        assert clocks.read(tmp_path / "clocks.csv") == []
        assert clocks.gpu(ID) == ""


TIMED = ("eager", "triton")


class TestPage:
    def timed(self, out: Path) -> Journal:
        """Two timed rows, a failed, a crashed and a missing one, and clocks."""
        (out / page.CLOCKS).write_text(SMI)
        began = clocks.read(out / page.CLOCKS)[0].time
        of = journal(out)
        of.write("plan", worker="0", rows=[*TIMED, "wrong", "fatal", "late"])
        medians = {"latent op, forward, 128 × 20, float32": {"eager": 4e-3, "triton": 1e-3}}
        for row in on_a_gpu(content(medians, seed=1))["benchmarks"]:
            row["extra_info"]["load"] = {
                "seconds": 0.2,
                "ended": began + 0.25,
                "own": 1.0,
                "others": 0.0,
                "load_average": 0.1,
                "processors": 16,
            }
            provider = row["extra_info"]["provider"]
            values = {"worker": "0", "why": "", "seconds": 1.0, "benchmark": row}
            of.write("row", id=provider, outcome="passed", **values)
        of.write("row", worker="0", id="wrong", outcome="failed", why="off by 3", seconds=1.0)
        of.write("row", worker="0", id="fatal", outcome="crashed", why="killed by SIGSEGV")
        return of

    def test_it_shows_what_is_there_and_names_what_is_not(self, tmp_path: Path) -> None:
        self.timed(tmp_path).write("end", seconds=7.0, problems=["cut off at the time limit"])
        page.write(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert text.startswith("# The ops on a GPU\n")
        state = "1 failed; 1 crashed; 1 missing; cut off at the time limit"
        assert f"| ops | {state} | 2 of 5 | 0 | 7 |" in text
        assert "| training | not run | 0 of 0 | 0 | – |" in text
        assert "- `wrong`: failed: off by 3" in text
        assert "- `fatal`: crashed: killed by SIGSEGV" in text
        assert "- `late`" in text.partition("missing: not run before the end")[2]
        assert "**latent op, forward, 128 × 20, float32" in text
        assert "2 of 2 rows were timed on a throttled GPU" in text
        assert "| eager, triton | 1410 | 1500 |" in text
        assert "**power cap, temperature, by hardware**" in text

    def test_a_run_that_was_killed_is_told_from_one_that_ended(self, tmp_path: Path) -> None:
        self.timed(tmp_path)
        page.write(tmp_path)
        assert "1 missing; it was killed" in (tmp_path / "README.md").read_text()

    def test_rows_of_a_group_that_were_timed_apart_have_their_own_clocks(
        self, tmp_path: Path
    ) -> None:
        of = self.timed(tmp_path)
        again = rows(of.lines())["triton"]
        again["benchmark"]["extra_info"]["load"]["ended"] += 8.8
        again["benchmark"]["extra_info"]["graph_fits_l2"] = True
        of.write(**{name: value for name, value in again.items() if name != "time"})
        page.write(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "1 of 2 rows were timed on a throttled GPU" in text
        assert "| eager | 1410 |" in text
        assert "| triton | 1980 |" in text
        warm = text.partition("## Graphs whose tensors fit in the L2 cache")[2]
        assert "float32, triton\n" in warm.partition("## Clocks")[0]
        assert "float32, eager\n" not in warm.partition("## Clocks")[0]

    def test_other_tools_read_the_rows_and_their_clocks(self, tmp_path: Path) -> None:
        self.timed(tmp_path)
        page.write(tmp_path)
        record = parse(tmp_path / "ops.json", json.loads((tmp_path / "ops.json").read_text()))
        assert [row.provider for row in record.rows] == list(TIMED)
        assert record.rows[0].info["gpu"]["sm_mhz"]["min"] == 1410

    def test_a_dry_run_is_no_measurement(self, tmp_path: Path) -> None:
        of = journal(tmp_path, dry_run=True)
        row = content({"g": {"eager": 1.0}}, seed=1)["benchmarks"][0]
        of.write("plan", worker="0", rows=["eager"])
        values = {"worker": "0", "why": "", "seconds": 1.5, "prepared_seconds": 0.5}
        of.write("row", id="eager", outcome="dry run", benchmark=row, **values)
        of.write("end", seconds=2.0, problems=[])
        (ops,) = (part for part in page.write(tmp_path) if part.part.name == "ops")
        assert ops.passed
        text = (tmp_path / "README.md").read_text()
        assert text.startswith("# DRY RUN on a GPU: no times and no checks")
        assert "| ops | dry run | 1 of 1 |" in text
        assert "| eager | 1 | 1.5 | 0.5 |" in text
        assert benchmarks(ops, []) is None
        assert not (tmp_path / "ops.json").exists()

    def test_a_line_sums_the_seconds_of_a_tests_rows_and_names_the_slowest(
        self, tmp_path: Path
    ) -> None:
        of = journal(tmp_path, dry_run=True)
        values = {"worker": "0", "outcome": "dry run", "why": ""}
        of.write("row", id="a.py::test[1]", seconds=1.5, prepared_seconds=0.25, **values)
        of.write("row", id="b.py::test[1]", seconds=2.5, **values)
        of.write("row", id="a.py::test[2]", seconds=4.0, prepared_seconds=0.5, **values)
        # A row that crashed has no seconds.
        of.write("row", worker="0", id="a.py::test[3]", outcome="crashed", why="killed")
        page.write(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "| a.py::test | 3 | 5.5 | 0.8 | [2] | 4.0 |" in text
        assert "| b.py::test | 1 | 2.5 | 0.0 | [1] | 2.5 |" in text


ROW = Row("rsample", "z", "cuda", "float32", "1×7×20", 1e-7, 1e-7, 1.0, 1e-7, 1e-6, 1e-7, True)


class TestComparison:
    def compared(self, out: Path, compared: list[Row]) -> dict[str, Any]:
        of = journal(out, "correctness")
        for i, row in enumerate(compared):
            values = {"worker": "0", "why": "", "seconds": 1.0, "comparison": [asdict(row)]}
            of.write("row", id=str(i), outcome="passed", **values)
        got = comparison(found(out, PARTS["correctness"]))
        assert got is not None
        return got[1]

    def test_it_passes_where_every_op_was_compared(self, tmp_path: Path) -> None:
        every = self.compared(tmp_path, [replace(ROW, op=op) for op in OPS])
        assert (every["passed"], every["missing"], len(every["rows"])) == (True, [], len(OPS))

    def test_an_op_that_was_not_compared_is_missing_and_does_not_pass(self, tmp_path: Path) -> None:
        others = self.compared(tmp_path, [replace(ROW, op=op) for op in OPS if op != "rsample"])
        assert (others["passed"], others["missing"]) == (False, ["rsample"])

    def test_a_row_without_numbers_does_not_pass_and_is_shown(self, tmp_path: Path) -> None:
        lacking = replace(ROW, absolute=math.nan, relative=math.nan, ulp=math.nan, passed=False)
        every = [replace(ROW, op=op) for op in OPS if op != ROW.op]
        record = self.compared(tmp_path, [*every, lacking])
        assert not record["passed"]
        assert record["rows"][-1]["absolute"] is None
        page.write(tmp_path)
        assert "nan" in (tmp_path / "README.md").read_text()


class TestDryRun:
    """What a dry run forgives, and what it does not."""

    def outcome(self, fail: Callable[[], None]) -> bool:
        return _failed_a_value_check(pytest.CallInfo.from_call(fail, "call"))

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
        # Its marker belongs to pytest-benchmark, which may be switched off.
        monkeypatch.setitem(vars(pytest.mark), "benchmark", lambda **_: lambda test: test)
        bench_training = importlib.import_module("bench.training.bench_training")
        took: list[TrainConfig] = []

        def trained(config: TrainConfig, _: Group) -> Rival:
            took.append(config)
            return Rival(None, Check(0.0, "nothing"))

        class Ahead(building.Watcher):
            short = True

            def done(self) -> None:
                pytest.skip("compiled")

        monkeypatch.setattr(bench_training, "_trained", trained)
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
