"""`python -m bench revisions`: both revisions run in turn, and are compared."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import revisions
from bench.process import ROOT
from tests.bench.suite_record import content, write

# A suite whose times are in a file of the revision. Every run is noted in the order of the runs.
CONFTEST = """
import os
from pathlib import Path
from tests.bench.suite_record import content

def pytest_benchmark_update_json(config, benchmarks, output_json):
    factor = float((Path(__file__).parent / "factor").read_text())
    order = Path(os.environ["ORDER"])
    with order.open("a") as lines:
        lines.write(f"{factor} {' '.join(config.invocation_params.args[:2])}\\n")
    groups = {
        f"op {i}, float32": {"eager": 1e-3, "compiled": 1e-3, "fallback": 1e-3 * factor}
        for i in range(3)
    }
    output_json.clear()
    output_json.update(content(groups, len(order.read_text()), noise=0.001))
"""
SUITE = "def test_op(benchmark):\n    benchmark.pedantic(lambda: None)\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two commits, of which the second takes twice as long; a third is not made."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_suite.py").write_text(SUITE)

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)

    git("init")
    for factor in ("1.0", "2.0"):
        (folder / "factor").write_text(factor)
        git("add", ".")
        git("commit", "-m", factor)
    (folder / "factor").write_text("3.0")
    monkeypatch.setattr(revisions, "ROOT", folder)
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)  # in a worker of xdist a child would run no benchmarks
    monkeypatch.setenv("ORDER", str(tmp_path / "order"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "kernels"))))
    return folder


def worktrees(repository: Path) -> list[str]:
    done = subprocess.run(
        ["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_commit_and_this_checkout_take_turns_and_the_slower_row_exits_with_1(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["HEAD~1", "--out", str(out), "--runs", "3", "--", "test_suite.py", "-q"]
    assert revisions.main(arguments) == 1
    order = [line.split() for line in (tmp_path / "order").read_text().splitlines()]
    assert [float(factor) for factor, *_ in order] == [1.0, 3.0, 3.0, 1.0, 1.0, 3.0]
    assert all(rest == ["test_suite.py", "-q"] for _, *rest in order)
    told = capsys.readouterr().out
    assert "3 and 3 runs" in told
    assert told.splitlines()[-1] == "slower: op 2, float32, fallback"
    assert "3.00 [" in told
    assert len(worktrees(repository)) == 1


def test_two_commits_can_be_compared(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def run(checked_out: Path, arguments: Sequence[str], out: Path) -> None:
        assert arguments == ["bench"]  # all, if nothing is said
        seen.append(float((checked_out / "factor").read_text()))
        groups = {"op, float32": {"eager": 1e-3, "fallback": 1e-3 * seen[-1]}}
        write(out, content(groups, len(seen), noise=0.001))

    monkeypatch.setattr(revisions, "run", run)
    arguments = ["HEAD", "--new", "HEAD~1", "--out", str(tmp_path / "out"), "--runs", "3"]
    assert revisions.main(arguments) == 0
    assert seen == [2.0, 1.0, 1.0, 2.0, 2.0, 1.0]


def test_a_run_that_fails_is_named_with_its_log_and_leaves_no_checkout(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert revisions.main(["HEAD", "--out", str(out), "--", "absent.py"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bench.revisions: error: ")
    assert f"see {out / 'old-1.log'}" in error
    assert "absent.py" in (out / "old-1.log").read_text()
    assert len(worktrees(repository)) == 1


@pytest.mark.parametrize("place", ["old", "new"])
def test_an_unknown_commit_is_named(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    commits = ["absent"] if place == "old" else ["HEAD", "--new", "absent"]
    assert revisions.main([*commits, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "git rev-parse --verify absent^{commit}: fatal: " in error
    assert error.count("\n") == 1
    assert len(worktrees(repository)) == 1


def test_a_side_needs_three_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        revisions.main(["HEAD", "--out", "out", "--runs", "2"])
    assert "--runs must be at least 3, got 2" in capsys.readouterr().err
