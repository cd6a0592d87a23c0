"""Words of a path or a record reach terminals and pages as text, never as commands or tags."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench.records import report as bench_report
from bench.records import summary as bench_summary
from tests.system.fake_run import make_run
from vaez_fast.cli.main import main
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text, html, markdown
from vaez_fast.system.errors import printable

# A terminal would obey each of these (set its title, clear it, begin a line, reverse the text), or
# it is not valid text.
OBEYED = ["\x1b]0;owned\x07", "\x9b2J", "\r", "\n", "\u202e", "\u2066", "\u200b", "\x7f", "\udcff"]
TAGS = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.mark.parametrize("word", OBEYED)
def test_what_is_obeyed_is_shown_as_in_a_string(word: str) -> None:
    shown = printable(f"a{word}b")
    assert shown.isprintable()
    assert shown.isascii()
    assert eval(f"'{shown}'") == f"a{word}b"  # Python's own escape


def test_letters_of_every_language_stay() -> None:
    letters = "Größe σ² ≤ Ж 漢字 العربية हिन्दी ไทย 한국어 🎲 – “…”"
    assert printable(letters) == letters


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that a command prints; each line must be printable text."""
    main(words)
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).splitlines():
        assert line.isprintable(), line
    return captured.out + captured.err


@pytest.mark.parametrize("word", [word for word in OBEYED if word not in "\r\n"])
@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "{}"],
        ["report", "{}"],
        ["sample", "{}", "--out", "x"],
        ["latents", "{}", "--out", "x"],
        ["train", "--resume", "{}"],
        ["train", "--config", "{}", "--out", "x"],
        ["train", "--out", "/proc/{}"],
        ["theory", "--out", "/proc/{}"],
        ["compare", "--ops", "{}"],
        ["env", "--data-root", "{}"],
        ["train", "--{}"],
        ["{}"],
    ],
    ids=" ".join,
)
def test_a_path_is_named_without_being_obeyed(
    words: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = word.encode("unicode_escape").decode()
    assert shown in said([one.format(f"a{word}b") for one in words], capsys)


@pytest.mark.parametrize("word", ["\x1b[2J", "\u202e", "\udcff"])
def test_what_a_command_wrote_is_listed_without_being_obeyed(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / f"a{word}b")
    shown = word.encode("unicode_escape").decode()
    assert shown in said(["report", str(run)], capsys)
    assert shown in said(["sample", str(run), "--out", str(run / "s"), "--count", "2"], capsys)


@pytest.mark.parametrize("program", [bench_summary, bench_report])
def test_a_record_of_the_suite_is_named_without_being_obeyed(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a\x1b[2Jb"] + (["--out", str(tmp_path)] if program is bench_report else [])
    assert program.main(words) == 2
    assert capsys.readouterr().err.strip().isprintable()


# Pages.


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(text: str) -> str:
    """Markdown as a reader sees it, without the backslashes that escape a character."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def alive(text: str) -> list[str]:
    """The parts that a Markdown renderer would turn into a tag, an entity or a link."""
    without = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)
    return re.findall(r"<[a-z/!?]|&#?\w+;|\]\(|\]\[|\]:", without, re.IGNORECASE)


BAD = [
    TAGS,
    "\\<b>not\\\\<i>so",
    "&lt;b&#62;&amp;",
    "![x](http://example.org/p.png)",
    "[x](javascript:alert(1))",
    "[x]: http://example.org",
    "[x][y]",
    "a | b \\| c",
]


@pytest.mark.parametrize("bad", BAD)
def test_words_in_a_page_are_words(bad: str) -> None:
    caption = f"of {bad}"
    blocks: list[Block] = [
        Heading(1, bad), Text(bad), Text(bad, code=True), Figure("f.png", caption),
        Table((bad, "b"), [(bad, "2")]),
    ]  # fmt: skip
    page = Tags(html(blocks, {"f.png": bytes(24)}))
    assert page.tags <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "p", "pre", "figure", "div"),
        *("img", "figcaption", "table", "tr", "th", "td"),
    }
    assert all(source.startswith("data:image/png;") for source in page.sources)
    assert page.text.count(bad) == 7  # title, heading, text, code, caption, two cells
    heading, text, code, figure, _, *table = markdown(blocks).split("\n\n")
    assert code == f"    {bad}"
    assert figure.endswith("](f.png)")
    for part in (heading, text, figure.removesuffix("](f.png)"), *table):
        assert alive(part) == []
        assert bad in rendered(part)
    for row in table[0].strip().splitlines():
        # After an odd number of backslashes, a bar does not end the cell.
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3


@pytest.mark.parametrize("word", OBEYED)
def test_words_in_a_page_begin_no_line_and_are_text(word: str) -> None:
    bad = f"a{word}b"
    blocks: list[Block] = [
        Heading(1, bad),
        Text(bad),
        Text(bad, code=True),
        Table(("a", bad), [(bad, "b")]),
    ]
    for page in (markdown(blocks), html(blocks, {})):
        assert all(line.isprintable() for line in page.split("\n"))
        page.encode()
    plain: list[Block] = [
        Heading(1, "a"), Text("a"), Text("a", code=True), Table(("a", "b"), [("a", "b")]),
    ]  # fmt: skip
    assert markdown(blocks).count("\n") == markdown(plain).count("\n")


def test_bold_words_of_ours_stay_bold() -> None:
    blocks: list[Block] = [Heading(1, "a"), Text("**confirmed** it is")]
    assert "\n**confirmed** it is\n" in markdown(blocks)
    assert '<strong class="confirmed">confirmed</strong> it is' in html(blocks, {})


def test_the_report_of_a_run_from_elsewhere_holds_no_tag_of_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    record = json.loads((run / "metrics.json").read_text())
    picture = "![x](http://example.org/p.png)"
    record["arm"] = f"{TAGS}{picture}\udcff\x1b[2J"
    record["config"]["data_root"] = os.fsdecode(b"\xff\x1b") + TAGS
    record["environment"] |= {"device": TAGS, "revision": picture, "cpu": "a\n\n<b>"}
    (run / "metrics.json").write_text(json.dumps(record))
    assert main(["report", str(run)]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
    page = Tags((run / "report.html").read_text())
    assert not {"script", "b"} & page.tags
    assert all(source.startswith("data:image/png;") for source in page.sources)
    assert TAGS in page.text
    text = (run / "report.md").read_text()
    own = re.sub(r"!\[[^\n]*\]\((curve|samples)\.png\)", "", text)
    assert alive(own) == []
    assert all(line.isprintable() for line in text.split("\n"))
