"""The tables that are printed at the end of a run of the benchmarks."""

from __future__ import annotations

from typing import Any

from bench.records.summary import Timed, summary


def row(provider: str, median: float, **info: Any) -> Timed:
    values = {
        "provider": provider,
        "floor_bytes": 1000,
        "gb_per_second": 2.0,
        "copy_gb_per_second": 8.0,
        "percent_of_copy": 25.0,
        "peak_memory_bytes": 2048,
        "check_error_over_tolerance": 0.5,
    }
    return "an op", values | info, median, median / 10


MACHINE = {"device": "a CPU", "threads": 2, "torch": "2", "triton": None}
ROWS = [
    row("eager", 4e-3, moved_bytes=10_310),
    row("compiled max-autotune", 1e-3, moved_bytes=None, peak_memory_bytes=None),
    row("from an older file", 2e-3),
]


def lines_of(markdown: bool) -> list[str]:
    return list(summary(ROWS, MACHINE, markdown))


def test_a_table_sets_bytes_against_the_floor() -> None:
    lines = lines_of(markdown=False)
    at = lines.index("an op (1000 B at the floor)")
    header, eager, autotuned, older = (line.split() for line in lines[at + 1 : at + 5])
    assert header[-5:] == ["of", "copy", "bytes/floor", "peak", "error"]
    assert " ".join(eager) == "eager 4.00 ms 200.0 µs 1.00 2.0 25% 10.31 2.0 KiB 0.50"
    assert autotuned[-3:] == ["–", "–", "0.50"]
    assert "4.00" in autotuned
    assert "–" in older
    assert max(map(len, lines)) <= 100
    assert len({len(line) for line in lines[at + 1 : at + 5]}) == 1


def test_markdown_has_the_cells_of_the_text() -> None:
    def cells(line: str) -> str:
        return "".join(line.replace("|", " ").split())

    text, markdown = lines_of(markdown=False), lines_of(markdown=True)
    table = [line for line in markdown if line.startswith("|")]
    at = text.index("an op (1000 B at the floor)")
    assert [cells(line) for line in table if "---" not in line] == [
        cells(line) for line in text[at + 1 : at + 5]
    ]
    assert table[1] == "| --- |" + " ---: |" * 8
    assert len({line.count("|") for line in table}) == 1


def test_products_stand_beside_the_processors_peak() -> None:
    """A step twice as long as its products, which reach 3 of the processor's 4 GFLOP/s."""
    products = {"operations": 3_000_000, "peak_operations_per_second": 4e9}
    rows = [
        row("engine float32", 2e-3, floor_bytes=None, step_over_products=2.0),
        row("products float32", 1e-3, floor_bytes=None, **products),
        row("on a gpu", 9e-3, floor_bytes=None, device_seconds=[2e-3], **products),
    ]
    lines = list(summary(rows, MACHINE))
    at = lines.index("an op")
    header, *cells = (line.split() for line in lines[at + 1 : at + 5])
    assert header[-6:] == ["step/products", "of", "peak", "FLOP/s", "peak", "error"]
    assert [found[-5:-3] for found in cells] == [["2.00", "–"], ["–", "75%"], ["–", "38%"]]
    assert len({len(line) for line in lines[at + 1 : at + 5]}) == 1


# The host takes 300 µs to launch, the GPU takes less. The textbook waits for the GPU.
ON_A_GPU = [
    row("eager", 300e-6, device_seconds=[90e-6, 40e-6, 39e-6]),
    row("triton", 20e-6, device_seconds=[5e-6, 4e-6]),
    row("textbook", 600e-6, device_seconds=None),
]


def test_a_gpus_table_has_the_callers_time_and_the_devices() -> None:
    lines = list(summary(ON_A_GPU, MACHINE))
    at = lines.index("an op (1000 B at the floor)")
    header, eager, triton, textbook = (line.split() for line in lines[at + 1 : at + 5])
    assert header[:6] == ["provider", "wall", "±IQR/2", "×", "device", "×"]
    assert " ".join(eager[:9]) == "eager 300.0 µs 15.0 µs 1.00 40.0 µs 1.00"
    assert " ".join(triton[:9]) == "triton 20.0 µs 1.0 µs 15.00 4.5 µs 8.89"
    assert " ".join(textbook[:8]) == "textbook 600.0 µs 30.0 µs 0.50 – –"
    assert len({len(line) for line in lines[at + 1 : at + 5]}) == 1
    assert any("wall is the time of calls back to back" in line for line in lines)
    assert not any("wall is" in line for line in lines_of(markdown=False))


def test_where_the_first_row_has_no_device_time_none_is_set_against_it() -> None:
    lines = list(summary(ON_A_GPU[::-1], MACHINE))
    at = lines.index("an op (1000 B at the floor)")
    assert lines[at + 3].split()[5:9] == ["30.00", "4.5", "µs", "–"]
