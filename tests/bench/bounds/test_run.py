"""`python -m bench bounds`: its rows, its page, and a record beside the estimates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.bounds import run
from bench.bounds.builds import reason_to_skip
from tests.bench.suite_record import content, write
from vaez_kernels import interpreting
from vaez_kernels.backend import triton

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels"),
    pytest.mark.skipif(
        triton is not None and bool(reason_to_skip("sm_90")), reason="this triton has no backend"
    ),
]

TITLE = "latent op, forward+backward, 8,192 × 128, float32"


@pytest.fixture
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [call for call in run.calls() if "8,192 × 128" in call.title]
    assert len(wanted) == 2
    monkeypatch.setattr(run, "calls", lambda: iter(wanted))


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "bounds.json").read_text())["rows"]
    return found


@pytest.mark.usefixtures("few_calls")
def test_the_latent_op_is_bound_by_bytes_in_float32_and_by_instructions_in_bfloat16(
    tmp_path: Path,
) -> None:
    """A number costs as many instructions in both, and half the bytes in bfloat16."""
    assert run.main(["--out", str(tmp_path)]) == 0
    found = {(row["title"].split()[-1], row["kernel"]): row for row in rows(tmp_path)}
    float32 = found["float32", "latent_forward_kernel"]
    assert float32["by"] == "bandwidth"
    assert float32["moved"] == 8192 * (3 * 4 * 128 + 4)
    assert float32["seconds"] == pytest.approx(float32["moved"] / 3.0e12)
    assert found["bfloat16", "latent_forward_kernel"]["by"] == "issue"
    assert found["float32", "latent_backward_kernel"]["moved"] == 8192 * (5 * 4 * 128 + 4)
    page = (tmp_path / "README.md").read_text()
    assert "# What bounds the kernels on an H100 SXM" in page
    assert f"| {TITLE} | latent_forward |" in page


@pytest.mark.usefixtures("few_calls")
def test_a_faster_memory_changes_the_bandwidth_alone(tmp_path: Path) -> None:
    found = {}
    for gpu in ("h100", "h200"):
        assert run.main(["--gpu", gpu, "--out", str(tmp_path / gpu)]) == 0
        found[gpu] = rows(tmp_path / gpu)
    for slow, fast in zip(found["h100"], found["h200"], strict=True):
        ratio = slow["bound"]["bandwidth"] / fast["bound"]["bandwidth"]
        assert ratio == pytest.approx(4.3 / 3.0)
        assert slow["bound"]["issue"] == fast["bound"]["issue"]
        assert slow["bound"]["latency"] == fast["bound"]["latency"]


@pytest.mark.usefixtures("few_calls")
def test_a_record_stands_beside_the_estimates(tmp_path: Path) -> None:
    medians = {TITLE: {"eager": 90e-6, "triton": 28e-6}}
    record = write(tmp_path / "record.json", content(medians, seed=0, noise=0.0))
    assert run.main(["--measured", str(record), "--out", str(tmp_path / "out")]) == 0
    seconds = sum(row["seconds"] for row in rows(tmp_path / "out") if row["title"] == TITLE)
    page = (tmp_path / "out" / "README.md").read_text()
    bound = f"{seconds * 1e6:.1f} µs"
    assert f"| {TITLE} | {bound} | 28.0 µs | {28e-6 / seconds:.2f} |" in page


def test_every_call_names_the_bytes_of_all_its_kernels() -> None:
    for call in run.calls():
        assert len(call.moved) == (2 if "backward" in call.title else 1)
        assert all(moved > 0 for moved in call.moved)


def test_a_file_that_is_no_record_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]")
    assert run.main(["--measured", str(wrong), "--out", str(tmp_path / "out")]) == 2
    assert "bench.bounds: error:" in capsys.readouterr().err
    assert not (tmp_path / "out" / "bounds.json").exists()
