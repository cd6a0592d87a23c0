"""The report of runs and the history of runs: they show every row, with its true numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.records import figures, history, report
from bench.records.bootstrap import log_median
from bench.records.records import Record, parse, read
from bench.records.summary import rows_of_json, summary
from bench.timing import rivals
from tests.bench.suite_record import content, on_a_gpu, write
from vaez_fast.drawing import style

PNG = b"\x89PNG"
REPORTS = Path(__file__).parents[3] / "reports"
GROUPS = {
    "an op, forward, 8 × 128, float32": {"eager": 2e-3, "compiled": 1e-3, "triton": 5e-4},
    "an op, forward+backward, 8 × 128, float32": {"eager": 4e-3, "triton": 1e-3, "unheard": 9e-4},
    "noise, 64 normals": {"torch.randn": 1e-3, "normal": 2e-3},
}


def record(name: str = "bench.json", **options: Any) -> Record:
    return parse(Path(name), content(GROUPS, 1, **options))


def without_floor(run: dict[str, Any]) -> dict[str, Any]:
    for benchmark in run["benchmarks"]:
        benchmark["extra_info"] |= {"floor_bytes": None, "moved_bytes": None}
        del benchmark["extra_info"]["copy_gb_per_second"]
    return run


@pytest.mark.parametrize("file", sorted(REPORTS.glob("*/bench.json")), ids=lambda f: f.parent.name)
def test_a_committed_run_is_read_whole(file: Path) -> None:
    """The rows that the reader returns print the same tables as the file's own JSON."""
    run = json.loads(file.read_text())
    rows = [row.as_summary() for row in read(file).rows]
    told = list(summary(rows, run["machine_info"]))
    assert told == list(summary(rows_of_json(run), run["machine_info"]))
    assert len(rows) == len(run["benchmarks"])


class TestReport:
    def test_it_has_every_row_machine_versions_date_and_command(self, tmp_path: Path) -> None:
        file = write(tmp_path / "bench.json", content(GROUPS, 1))
        assert report.main([str(file), "--out", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out" / "report.md").read_text()
        assert "a CPU, 2 threads, torch 2.15.0, triton None, 2026-11-02 07:11, " in text
        assert "revision c9ddd57," in text
        assert "    pytest bench --benchmark-only\n" in text
        for title, providers in GROUPS.items():
            table = text.partition(f"#### {title}")[2].partition("####")[0]
            assert re.findall(r"^\| ([\w.]+) \|", table, re.M)[1:] == list(providers)

    def test_it_is_one_file_with_its_pictures_inside(self, tmp_path: Path) -> None:
        report.write_page(tmp_path, *report.draw([record()]))
        page = (tmp_path / "report.html").read_text()
        names = {path.name for path in tmp_path.glob("*.png")}
        assert names == {
            *("roofline.png", "traffic.png", "providers-an-op.png", "providers-noise.png"),
        }
        assert page.count("data:image/png;base64,") == len(names)
        assert not re.search(r"<script|https?://|<link", page)
        markdown = (tmp_path / "report.md").read_text()
        assert set(re.findall(r"\]\(([\w-]+\.png)\)", markdown)) == names

    def test_what_a_copy_moves_and_a_quick_run_are_said(self, tmp_path: Path) -> None:
        report.write_page(tmp_path, *report.draw([record()]))
        text = (tmp_path / "report.md").read_text()
        assert "A plain copy moves 25.0 GB/s, read plus written." in text
        assert "A quick run" not in text
        quick = parse(Path("f"), content(GROUPS, 1) | {"quick": True})
        report.write_page(tmp_path, *report.draw([quick]))
        assert "A quick run: few rounds." in (tmp_path / "report.md").read_text()

    def test_rows_whose_moved_bytes_nobody_counted_are_not_in_the_traffic(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = content(GROUPS, 1)
        run["benchmarks"][1]["extra_info"]["moved_bytes"] = None
        drawn: dict[str, int] = {}

        def count(name: str) -> Any:
            def draw(rows: Any, copy: float, _: str) -> bytes:
                assert copy == 25.0
                drawn[name] = len(rows)
                return PNG

            return draw

        for name in ("roofline", "traffic"):
            monkeypatch.setattr(figures, name, count(name))
        report.draw([parse(Path("f"), run)])
        assert drawn == {"roofline": 8, "traffic": 7}

    def test_two_runs_keep_their_figures_apart(self) -> None:
        _, pictures = report.draw([record(), record(threads=1)])
        assert {"roofline.png", "roofline-2.png", "providers-noise-2.png"} <= pictures.keys()
        assert all(picture.startswith(PNG) for picture in pictures.values())

    def test_a_gpus_providers_are_drawn_by_either_time(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        step = {"training step, a": {"textbook": 9e-4, "engine": 3e-5}}
        run = parse(Path("f"), on_a_gpu(content(GROUPS | step, 1)))
        drawn: dict[str, list[float]] = {}

        def providers(groups: Any, title: str) -> bytes:
            rows = [row for group in groups for row in group.values()]
            drawn[title] = [row.median for row in rows]
            assert all(row.median in row.seconds for row in rows)  # 61 rounds, an odd number
            return PNG

        monkeypatch.setattr(figures, "providers", providers)
        report.write_page(tmp_path, *report.draw([run]))
        # The textbook has no device time, so no other row is compared with it.
        assert set(drawn) == {
            *("an op, a CPU", "noise, a CPU", "training step, a CPU"),
            *("an op by device time, a CPU", "noise by device time, a CPU"),
        }
        # With a scatter of 2 %, the median of 61 rounds is within 1 %.
        device = pytest.approx([2e-3, 1e-3, 5e-4, 4e-3, 1e-3, 9e-4], rel=0.01)
        assert drawn["an op by device time, a CPU"] == device
        assert drawn["training step, a CPU"] == pytest.approx([9e-4, 250e-6], rel=0.01)
        assert "(providers-an-op-by-device-time.png)" in (tmp_path / "report.md").read_text()
        assert "Device is what the GPU takes" in (tmp_path / "report.md").read_text()

    def test_rows_without_a_floor_have_no_roofline(self) -> None:
        run = parse(Path("f"), without_floor(content(GROUPS, 1)))
        _, pictures = report.draw([run])
        assert set(pictures) == {"providers-an-op.png", "providers-noise.png"}

    def test_a_bad_file_is_named_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report.main([str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("bench.report: error: ")
        assert "none.json" in error
        assert error.count("\n") == 1

    def test_an_output_that_cannot_be_written_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = write(tmp_path / "bench.json", content(GROUPS, 1))
        assert report.main([str(file), "--out", str(file)]) == 1
        assert "cannot write" in capsys.readouterr().err


class TestFigures:
    @pytest.mark.parametrize("gpu", [False, True])
    def test_a_point_of_the_roofline_is_the_rows_bytes_a_second(
        self, gpu: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[tuple[list[float], list[float]]] = []

        def png(figure: Any) -> bytes:
            points = [(line.get_xdata(), line.get_ydata()) for line in figure.axes[0].lines]
            x, y = zip(*points[: len(rows)], strict=True)
            drawn.append(([float(at[0]) for at in x], [float(at[0]) for at in y]))
            return PNG

        monkeypatch.setattr(style, "png", png)
        # On a GPU the speed is bytes over the GPU's own time, however long the caller waits.
        run = content(GROUPS, 1)
        rows = parse(Path("f"), on_a_gpu(run, launches=0.1) if gpu else run).rows
        figures.roofline(rows, 25.0, "an op")
        figures.traffic(rows, 25.0, "an op")
        (sizes, speeds), (parts, again) = drawn
        assert speeds == again == pytest.approx([row.info["gb_per_second"] for row in rows])
        assert set(sizes) == {1e7}
        assert set(parts) == {1 / 3}

    def test_a_speed_up_is_that_of_the_tables(self) -> None:
        group = record().groups["an op, forward, 8 × 128, float32"]
        ratio = figures.speed_up(group["triton"], group)
        assert ratio.value == pytest.approx(group["eager"].median / group["triton"].median)
        assert ratio.low < 4 < ratio.high
        assert figures.speed_up(group["eager"], group).low == 1.0

    def test_providers_of_one_group_differ_in_colour(self) -> None:
        groups: list[list[str]] = [[*rivals.CUDA_PROVIDERS, *rivals.GRAPHS]]
        for file in REPORTS.glob("*/bench.json"):
            groups += map(list, read(file).groups.values())
        for names in groups:
            assert len({figures.colour(name) for name in names}) == len(names)

    def test_rounds_of_a_row_are_read_in_the_order_they_were_taken(self) -> None:
        run = content(GROUPS, 1)
        row = parse(Path("f"), run).rows[0]
        assert list(row.seconds) == run["benchmarks"][0]["stats"]["data"]
        assert log_median(row.seconds).estimate().value == pytest.approx(row.median)


class TestHistory:
    @pytest.fixture
    def reports(self, tmp_path: Path) -> Path:
        folder = tmp_path / "reports"
        faster = {g: dict(of) | {"triton": of.get("triton", 1) / 2} for g, of in GROUPS.items()}
        write(folder / "b" / "bench.json", content(GROUPS, 2))
        write(folder / "a" / "bench.json", content(faster, 5, device="an NVIDIA H100"))
        machine = {"device": "a CPU", "threads": 1, "torch": "2.15.0", "revision": None}
        run = {"arm": "elbo/analytic/joint", "config": {"model": "burda"}, "environment": machine}
        speed = {"train_seconds": 8.0, "steps": 2000}
        write(folder / "train" / "metrics.json", run | {"speed": speed})
        write(folder / "study.json", {"data": "mnist"})
        return folder

    def test_runs_are_in_the_order_of_their_dates(self, reports: Path, tmp_path: Path) -> None:
        assert history.main([str(reports), "--out", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out" / "report.md").read_text()
        runs = re.findall(r"^\| (\d) \| ([\d-]+) .*\| ([\w/.]+) \|$", text, re.M)
        assert runs == [("1", "2026-11-03", "b/bench.json"), ("2", "2026-11-06", "a/bench.json")]
        (line,) = re.findall(r"^\| forward, 8 × 128, float32 \| triton \| (.*) \|$", text, re.M)
        first, second = (float(cell.split()[0]) for cell in line.split(" | "))
        # eager over triton is 4, then 8, from medians of 61 rounds that scatter by 2 %.
        assert first == pytest.approx(4, rel=0.03)
        assert second == pytest.approx(8, rel=0.03)
        assert (tmp_path / "out" / "history-an-op.png").read_bytes().startswith(PNG)

    def test_other_files_tell_their_times_or_are_named(self, reports: Path, tmp_path: Path) -> None:
        history.main([str(reports), "--out", str(tmp_path / "out")])
        text = (tmp_path / "out" / "report.md").read_text()
        assert "training burda, elbo/analytic/joint, 2,000 steps: 8.0 s, 4.00 ms a step" in text
        assert "a CPU, 1 thread |" in text
        assert "These tell no time, or no machine: study.json." in text

    @pytest.mark.parametrize(
        ("file", "what"),
        [
            (
                {"mean_train_seconds": 6.25, "target": -97.1, "textbook_over_ours": 59.6},
                "training to log p(x) -97.1 nats: 6.2 s, textbook 60 × as long",
            ),
            (
                {
                    "rows": {
                        "batch": [
                            {"batch": 1000, "seconds": {"textbook": 6e-3, "engine": 2e-3}},
                            {"batch": 32, "seconds": {"textbook": 6e-3}},
                        ]
                    }
                },
                "a step, textbook over ours, by batch: 1,000: 3.00",
            ),
            (
                {"config": {"model": "m"}, "runs": [{"train_seconds": 90.0}] * 4},
                "4 trainings of m: 6 min together",
            ),
            (
                {"models": [{"model": "m", "seconds": 9.0, "images": 10_000}]},
                "log p(x) of 10,000 images: m 9 s",
            ),
        ],
    )
    def test_a_file_of_another_kind_tells_its_time(
        self, file: dict[str, Any], what: str, tmp_path: Path
    ) -> None:
        write(tmp_path / "bench.json", content(GROUPS, 2))
        machine = {"device": "a CPU", "threads": 1, "torch": "2"}
        write(tmp_path / "a" / "other.json", file | {"environment": machine, "date": "2026-11-20"})
        _, (timing,), _ = history.collect(tmp_path)
        assert (timing.file, timing.date, timing.what) == ("a/other.json", "2026-11-20", what)

    def test_a_row_that_a_run_lacks_is_a_dash_in_that_runs_column(
        self, reports: Path, tmp_path: Path
    ) -> None:
        short = {g: {p: t for p, t in of.items() if p != "triton"} for g, of in GROUPS.items()}
        write(reports / "c" / "bench.json", content(short, 3, noise=0.0))
        history.main([str(reports), "--out", str(tmp_path / "out")])
        text = (tmp_path / "out" / "report.md").read_text()
        (line,) = re.findall(r"^\| forward, 8 × 128, float32 \| triton \| (.*) \|$", text, re.M)
        # By date: b, then c, which has no such row, then a.
        assert line.split(" | ")[1] == "–"

    def test_an_output_that_cannot_be_written_exits_with_1(
        self, reports: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert history.main([str(reports), "--out", str(reports / "study.json")]) == 1
        assert capsys.readouterr().err.startswith("bench.history: error: ")

    def test_it_draws_ours_and_with_backward_where_that_is_timed(self) -> None:
        titles = history.key_groups([record()])
        assert titles == ["an op, forward+backward, 8 × 128, float32", "noise, 64 normals"]
        ours = parse(Path("f"), content({"training": {"elbo/analytic/joint": 1.0}}, 1))
        assert history.key_groups([ours]) == []

    def test_committed_records_are_told(self) -> None:
        _, timings, silent = history.collect(REPORTS)
        told = {timing.file: timing.what for timing in timings}
        assert told["speedrun/cpu-bfloat16.json"].endswith("6.2 s, textbook 60 × as long")
        assert "128: 2.52" in told["training/growth.json"]
        assert "bfloat16 2.30 ms" in told["training/parts.json"]
        assert "altosaar 119 s" in told["likelihood/results.json"]
        assert told["article-mnist/results.json"].startswith("75 trainings of altosaar")
        assert "article-mnist/study.json" in silent

    def test_a_folder_without_runs_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert history.main([str(tmp_path), "--out", str(tmp_path)]) == 2
        assert "holds no run of the suite" in capsys.readouterr().err
        assert history.main([str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
        assert "no such folder" in capsys.readouterr().err
