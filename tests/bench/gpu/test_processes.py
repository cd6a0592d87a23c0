"""Processes that run rows: their time limits, their ends, and crashes that cost one row alone."""

from __future__ import annotations

import time
from pathlib import Path

from bench.gpu.journal import planned, rows
from bench.gpu.processes import run, workers
from tests.bench.gpu.journals import journal


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
            if _state(child) in ("", "Z"):  # it stays a zombie if no parent collects its status
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
        # The largest size came first, and the plan has all rows.
        assert "1048576" in planned(of.lines())[0]
        assert set(planned(of.lines())) == set(rows(of.lines()))


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
