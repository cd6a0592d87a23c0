"""A page of headings, texts, tables and figures, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html as escaping
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


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
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
figure { margin: 1.5rem 0; } figure img { width: 100%; max-width: 52rem; height: auto; }
figcaption { color: #555; font-size: .92rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
         border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
.confirmed { color: #00664b; } .refuted { color: #a34700; } .unclear { color: #555; }
"""


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; figures are files beside the page."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text, code):
            return f"    {text}" if code else text
        case Figure(file, caption):
            return f"![{caption}]({file})\n\n*{caption}*"
        case Table(head, rows):
            lines = [head, tuple("---" for _ in head), *rows]
            return "\n".join("| " + " | ".join(_cell(c) for c in row) + " |" for row in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def html(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """One file with its pictures inside; it needs no network and runs no script."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(_html(block, pictures) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaping.escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_rich(text)}</h{level}>"
        case Text(text, code):
            return f"<pre>{escaping.escape(text)}</pre>" if code else f"<p>{_rich(text)}</p>"
        case Figure(file, caption):
            data = base64.b64encode(pictures[file]).decode()
            alt = escaping.escape(caption, quote=True)
            picture = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
            return f"<figure>{picture}<figcaption>{_rich(caption)}</figcaption></figure>"
        case Table(head, rows):
            return "\n".join(_html_table(head, rows))


def _html_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield '<div class="wide"><table>'
    yield "<tr>" + "".join(f"<th>{_rich(cell)}</th>" for cell in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{_rich(cell)}</td>" for cell in row) + "</tr>"
    yield "</table></div>"


def _rich(text: str) -> str:
    """Escaped, with **bold** as strong text: a verdict's word also names its colour."""

    def strong(match: re.Match[str]) -> str:
        return f'<strong class="{match[1]}">{match[1]}</strong>'

    return re.sub(r"\*\*(\w+)\*\*", strong, escaping.escape(text))
