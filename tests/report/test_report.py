"""The report: intervals, verdicts, and pages that show the content of results.json."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.study import fake_study
from vaez_fast.cli.main import main
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text, html, markdown
from vaez_fast.measures.intervals import interval, one_sided_p, paired
from vaez_fast.report import article as report
from vaez_fast.study.arrays import slug
from vaez_fast.system.files import OutputError
from vaez_fast.theory import record as theory

Results = dict[str, Any]


class TestIntervals:
    def test_it_is_students(self) -> None:
        # Student's table: 2.776 with four degrees of freedom.
        values = [1.0, 2.0, 3.0, 4.0, 5.0]
        found = interval(values)
        assert found.mean == 3.0
        assert found.half == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)
        assert found.text() == "3.0 ± 2.0"

    def test_it_holds_the_mean_in_19_of_20_samples(self) -> None:
        draws = torch.randn((4000, 5), generator=torch.Generator().manual_seed(0)).tolist()
        held = sum(abs(interval(row).mean) <= interval(row).half for row in draws)
        # Binomial: five standard deviations for 4,000 trials at 0.95 are 69.
        assert abs(held - 3800) < 69

    def test_pairs_cancel_what_they_share(self) -> None:
        shared = [10.0, 20.0, 35.0]
        difference = paired([s + 1.0 for s in shared], shared)
        assert (difference.mean, difference.half) == (1.0, 0.0)

    def test_a_mean_far_above_the_target_has_a_small_p(self) -> None:
        # Student's table, four degrees of freedom: 0.5 % lie above 4.604 and 1 % above 3.747. The
        # mean of 3 is 4.243 standard errors (each √½) above 0.
        values = [1.0, 2.0, 3.0, 4.0, 5.0]
        assert 0.005 < one_sided_p(values, 0.0) < 0.01
        assert 0.99 < one_sided_p(values, 6.0) < 0.995
        assert one_sided_p(values, 3.0) == 0.5

    def test_one_value_has_no_interval(self) -> None:
        with pytest.raises(ValueError, match="at least two"):
            interval([1.0])


@pytest.fixture(scope="module")
def record() -> Results:
    return theory.compute()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, record: Results) -> Iterator[Path]:
    """A study's folder with its report; the theory is computed once."""
    out = tmp_path_factory.mktemp("study")
    (out / "runs").mkdir()
    results = fake_study.results()
    (out / "results.json").write_text(json.dumps(results))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **fake_study.images())  # type: ignore[arg-type]
    for run in results["runs"]:
        (out / "runs" / f"{slug(run['arm'])}-seed{run['seed']}.npz").write_bytes(buffer.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory, "compute", lambda: record)
        report.write(out)
        yield out


class TestReport:
    def test_every_figure_of_the_page_is_there(self, folder: Path) -> None:
        page = (folder / "report.md").read_text()
        figures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
        assert len(figures) >= 18
        for name in figures:
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
        drawn = {path.name for path in folder.glob("*.png")}
        assert drawn == set(figures)

    def test_the_page_needs_no_network_and_runs_no_script(self, folder: Path) -> None:
        page = (folder / "report.html").read_text()
        assert "<script" not in page
        assert not re.search(r"(src|href)=\"(?!data:)", page)
        assert page.count("<figure>") == page.count("data:image/png;base64,")
        assert 'name="viewport"' in page

    def test_both_pages_open_with_the_verdicts_and_show_the_numbers(self, folder: Path) -> None:
        for name in ("report.md", "report.html"):
            page = (folder / name).read_text()
            assert page.index("verdict") < page.index("The KL term by itself")
            for number in ("206.10 ± 0.25", "0.01280", "-205.70"):
                assert number in page
            assert "vaez-fast article --data mnist-5k --binarize static" in page

    def test_drawn_again_it_is_the_same_to_the_last_byte(self, folder: Path) -> None:
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert main(["report", str(folder)]) == 0
        assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}

    def test_a_folder_without_a_study_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["report", str(tmp_path)]) == 1
        assert "vaez-fast report: error: cannot read" in capsys.readouterr().err
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(OutputError, match="holds no study"):
            report.write(tmp_path)


def test_a_page_escapes_what_a_name_may_hold() -> None:
    blocks: list[Block] = [
        Heading(1, "a < b"),
        Text("**refuted** & x"),
        Table(("p(x|z)",), [("<i>",)]),
    ]
    page = html([*blocks, Figure("f.png", 'say "x"')], {"f.png": b"png"})
    assert "<h1>a &lt; b</h1>" in page
    assert '<strong class="refuted">refuted</strong> &amp; x' in page
    assert "&lt;i&gt;" in page
    assert 'alt="say &quot;x&quot;"' in page
    assert r"| p(x\|z) |" in markdown(blocks)
