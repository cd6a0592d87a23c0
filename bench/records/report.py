"""A report of one or more runs of the suite: `python -m bench report FILE ... --out DIR`.

Writes report.md and report.html, a single file with the pictures inside that opens without a
network. Both show every op beside the measured speed of the memory, every provider beside the first
of its group, and the tables of all rows. `pytest bench --benchmark-only --benchmark-json=FILE`
writes a FILE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.command import Parser
from bench.records import figures
from bench.records.records import Record, RecordError, Row, family, on_device, part_of_name, read
from bench.records.summary import notes, tables
from bench.timing.busy import busy_line
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text, html, markdown
from vaez_fast.system.files import OutputError, prepare_files, write_atomically

ROOFLINE = (
    "Bytes a second over the bytes of a call, counting only those that the op must move at least.",
    "The line is the speed of a plain copy of 256 MiB in the same run (64 MiB in a quick run); "
    "what fits into a cache can exceed it. A dotted line is a constant time: all points on it take "
    "that long a call, however few bytes they move.",
)
TRAFFIC = (
    "The same speeds over the useful part of the bytes that are moved.",
    "A provider that moves ten times the floor cannot exceed a tenth of the copy's speed, the "
    "sloping line, unless some of its data stays in a cache. A provider far below the line is "
    "bound by something other than the memory. Rows whose moved bytes are unknown are not drawn.",
)
PROVIDERS = (
    "In the figures of providers a point is the median of the first row over that of the provider, "
    "both timed in turn in the same run. Bars are 95 % intervals from the rounds of the run, "
    "resampled in blocks; they do not include what differs from run to run."
)


def draw(records: Sequence[Record]) -> tuple[list[Block], dict[str, bytes]]:
    """The blocks of the page, and its pictures by file name."""
    pictures: dict[str, bytes] = {}
    blocks: list[Block] = [Heading(1, "Benchmarks: the ops, the training step, and their rivals")]
    for i, record in enumerate(records):
        suffix = f"-{i + 1}" if i else ""
        blocks += _of_record(record, suffix, pictures)
    infos = [row.info for record in records for row in record.rows]
    blocks.append(Text(" ".join(notes(infos))))
    return blocks, pictures


def _of_record(record: Record, suffix: str, pictures: dict[str, bytes]) -> Iterator[Block]:
    device = record.machine["device"]
    yield Heading(2, f"{device}, {record.date[:10]}")
    quick = " A quick run: few rounds." if record.quick else ""
    copy = f" A plain copy moves {record.copy:,.1f} GB/s, read plus written." if record.copy else ""
    python = record.machine.get("python", "–")
    yield Text(f"{record.where()}, Python {python}.{copy}{quick} Repeat it with:")
    yield Text(record.command or "pytest bench --benchmark-only", code=True)
    busy = busy_line(row.info for row in record.rows)
    if busy:
        yield Text(busy)
    yield from _rooflines(record, suffix, pictures)
    yield Text(PROVIDERS)
    families: dict[str, list[str]] = {}
    for title in record.groups:
        families.setdefault(family(title), []).append(title)
    listed = list(tables([row.as_summary() for row in record.rows]))
    for name, titles in families.items():
        yield Heading(3, name.capitalize())
        groups = [record.groups[title] for title in titles]
        yield from _providers(groups, name, device, suffix, pictures)
        by_device = [rows for rows in map(on_device, groups) if rows]
        yield from _providers(by_device, f"{name} by device time", device, suffix, pictures)
        for table in listed:
            if table.title.startswith(tuple(titles)):
                yield Heading(4, table.title)
                yield Table(tuple(column for column, _ in table.columns), table.rows)


def _providers(
    groups: Sequence[dict[str, Row]],
    name: str,
    device: str,
    suffix: str,
    pictures: dict[str, bytes],
) -> Iterator[Block]:
    if any(len(group) > 1 for group in groups):
        file = f"providers-{part_of_name(name)}{suffix}.png"
        pictures[file] = figures.providers(groups, f"{name}, {device}")
        yield Figure(file, f"{name.capitalize()}: times as fast as the first row.")


def _rooflines(record: Record, suffix: str, pictures: dict[str, bytes]) -> Iterator[Block]:
    rows = [row for row in record.rows if row.info.get("floor_bytes")]
    if not rows or record.copy is None:
        return
    device = record.machine["device"]
    title = f"Every op and provider, {device}"
    pictures[f"roofline{suffix}.png"] = figures.roofline(rows, record.copy, title)
    caption, explanation = ROOFLINE
    yield Figure(f"roofline{suffix}.png", caption)
    yield Text(explanation)
    counted = [row for row in rows if row.info.get("moved_bytes")]
    if counted:
        pictures[f"traffic{suffix}.png"] = figures.traffic(counted, record.copy, title)
        caption, explanation = TRAFFIC
        yield Figure(f"traffic{suffix}.png", caption)
        yield Text(explanation)


def write_page(out: Path, blocks: Sequence[Block], pictures: dict[str, bytes]) -> None:
    """Write report.md, report.html and the figures.

    Raises:
        OutputError: `out` cannot be written.
    """
    prepare_files(out, *pictures, "report.md", "report.html")
    for name, picture in pictures.items():
        write_atomically(out / name, picture)
    write_atomically(out / "report.md", markdown(blocks).encode())
    write_atomically(out / "report.html", html(blocks, pictures).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the output failed, 2 a file is bad."""
    parser = Parser("report", __doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="written by --benchmark-json"
    )
    parser.add_out_folder()
    options = parser.parse_args(argv)
    try:
        write_page(options.out, *draw([read(file) for file in options.files]))
    except (RecordError, OutputError) as error:
        return parser.failed(error, 2 if isinstance(error, RecordError) else 1)
    print(f"wrote {options.out / 'report.html'}, report.md and their figures")
    return 0
