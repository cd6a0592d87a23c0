"""The command `python -m bench.gpu` without a GPU: what it runs, what it refuses, its exit status.

tests/rehearsal runs all parts on a stand-in for CUDA.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import clocks
from bench.gpu.journal import Journal
from bench.gpu.parts import PARTS
from tests.bench.gpu.journals import ID, SESSION, ended, journal
from vaez_fast.data import DataError

ROOT = Path(__file__).parents[3]


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
        """Pretend that a GPU is here and that every worker ends at once; return their arguments."""
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
        # Several processes compile kernels before one process times the rows.
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
        (tmp_path / "of this code").mkdir()
        assert command.main(["ops", "--out", str(tmp_path / "of this code")]) == 0
        (run,) = (
            line
            for line in Journal(tmp_path / "of this code" / "ops.jsonl").lines()
            if line["kind"] == "run"
        )
        begun.clear()
        journal(tmp_path, "rivals", **({"code": run["code"]} | change))
        assert command.main(["ops", "--out", str(tmp_path)]) == 1
        assert "name another folder" in capsys.readouterr().err
        assert not begun

    def test_the_page_is_written_again_without_a_gpu(self, tmp_path: Path) -> None:
        ended(journal(tmp_path), ("row", "passed"))
        assert command.main(["page", "--out", str(tmp_path)]) == 0
        assert "| ops | passed | 1 of 1 |" in (tmp_path / "README.md").read_text()
