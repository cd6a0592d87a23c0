"""The log of a GPU's clocks while rows are timed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import clocks, page
from tests.bench.gpu.journals import ID, SMI


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
