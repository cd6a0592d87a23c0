"""A page of headings, texts, tables and figures, as Markdown and as one HTML file.

Texts may come from a record, and a record may be untrusted. So tags, links and pictures in a text
have no effect, and invisible characters are shown escaped. The only markup of a text is **bold**.
"""

from __future__ import annotations

import base64
import html as escaping
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..system.errors import printable


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    text: str
    code: bool = False


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Figure:
    file: str
    caption: str


Block = Heading | Text | Table | Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1.1rem; margin-top: 2rem; } h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
figure { margin: 1.5rem 0; } figure img { width: var(--width); max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .92rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
         border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
.short { white-space: nowrap; }
.confirmed { color: #00664b; } .refuted { color: #a34700; } .unclear { color: #555; }
@media (max-width: 40rem) {
  /* Text would shrink with a wide figure: so far, then it scrolls. */
  figure img { width: max(100%, calc(.53 * var(--width))); max-width: none; }
  th:first-child, td:first-child { position: sticky; left: 0; background: #fff; max-width: 9.5rem;
                                   white-space: normal; }
  .long { min-width: 13rem; }
}
"""
# A figure of 1,120 pixels is shown at 832, others in proportion, so that all text has one size.
SHOWN = 832 / 1120
# Characters of a table cell: a number with its interval must not wrap, a sentence must.
SHORT, LONG = {"th": 12, "td": 24}, 60


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; figures are files beside the page."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_inert(text)}"
        case Text(text, code):
            return f"    {printable(text)}" if code else _inert(text)
        case Figure(file, caption):
            return f"![{_inert(caption)}]({file})\n\n*{_inert(caption)}*"
        case Table(head, rows):
            lines = [head, tuple("---" for _ in head), *rows]
            return "\n".join("| " + " | ".join(_cell(c) for c in row) + " |" for row in lines)


def plain(table: Table) -> Iterator[str]:
    """A table as lines for a terminal, its columns aligned; all but the first to the right."""
    rows = (table.head, *table.rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells)


def _cell(text: str) -> str:
    return _inert(text).replace("|", "\\|")


# The start of a tag or an entity, and the characters that turn brackets into a link or a picture.
ALIVE = re.compile(r"[\\<]|&(?=#?\w+;)|(?<=\])[(\[:]")


def _inert(text: str) -> str:
    return ALIVE.sub(r"\\\g<0>", printable(text))


def html(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """One file with its pictures inside; it needs no network and runs no script."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(_html(block, pictures) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_rich(text)}</h{level}>"
        case Text(text, code):
            return f"<pre>{_escaped(text)}</pre>" if code else f"<p>{_rich(text)}</p>"
        case Figure(file, caption):
            data = base64.b64encode(pictures[file]).decode()
            alt = _escaped(caption)
            width = f"{SHOWN * _pixels(pictures[file]):.0f}px"
            picture = (
                f'<img style="--width: {width}" alt="{alt}" src="data:image/png;base64,{data}">'
            )
            caption = f"<figcaption>{_rich(caption)}</figcaption>"
            return f'<figure><div class="wide">{picture}</div>{caption}</figure>'
        case Table(head, rows):
            return "\n".join(_html_table(head, rows))


def _pixels(png: bytes) -> int:
    # A PNG file has its width at bytes 16 to 19.
    return int.from_bytes(png[16:20], "big")


def _html_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield '<div class="wide"><table>'
    yield "<tr>" + "".join(_html_cell(cell, "th") for cell in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(_html_cell(cell, "td") for cell in row) + "</tr>"
    yield "</table></div>"


def _html_cell(cell: str, tag: str) -> str:
    kind = "short" if len(cell) <= SHORT[tag] else "long" if len(cell) > LONG else ""
    opening = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
    return f"{opening}{_rich(cell)}</{tag}>"


def _rich(text: str) -> str:
    """Escaped text, with **bold** as strong text; its word is its class, which gives its colour."""

    def strong(match: re.Match[str]) -> str:
        return f'<strong class="{match[1]}">{match[1]}</strong>'

    return re.sub(r"\*\*(\w+)\*\*", strong, _escaped(text))


def _escaped(text: str) -> str:
    return escaping.escape(printable(text), quote=True)
