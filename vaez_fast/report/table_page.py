"""The page of a study whose report is one figure and one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..drawing.page import Block, html, markdown
from ..system.files import OutputError, prepare_files, read_json, reading, write_atomically

Results = dict[str, Any]


def files(name: str) -> tuple[str, str, str]:
    """The names of the figure and the two pages of `write`."""
    return f"{name}.png", f"{name}.md", f"{name}.html"


def write(
    out: Path,
    name: str,
    schema: int,
    figure: Callable[[Results], bytes],
    blocks: Callable[[Results], Iterator[Block]],
) -> Results:
    """Write NAME.md, NAME.html and NAME.png into `out`; returns the content of results.json.

    Args:
        name: of the command that wrote results.json.
        schema: of its record.

    Raises:
        OutputError: `out` holds no such results, or cannot be written.
    """
    path, (drawing, plain, page) = out / "results.json", files(name)
    results = read_json(path)
    prepare_files(out, drawing, plain, page)
    if (results.get("kind"), results.get("schema")) != (f"vaez-fast {name}", schema):
        raise OutputError(f"{path} holds no {name}, schema {schema}")
    with reading(path, name):
        pictures = {drawing: figure(results)}
        content = list(blocks(results))
    write_atomically(out / drawing, pictures[drawing])
    write_atomically(out / plain, markdown(content).encode())
    write_atomically(out / page, html(content, pictures).encode())
    return results
