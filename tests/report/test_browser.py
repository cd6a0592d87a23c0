"""Every HTML report in a real browser, without a network, as wide as a telephone and a desktop.

Needs Playwright (the extra "browser") and an installed Chromium, such as Debian's package chromium.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.records import history, report
from bench.records.records import parse
from tests.bench.suite_record import content, write
from vaez_fast.drawing import style
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text, html

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")

REPORTS = Path(__file__).parents[2] / "reports"
WIDTHS = {"telephone": (390, 844), "desk": (1280, 800)}
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SMALLEST_FONT = 12.0  # CSS pixels

# Everything that the page knows about itself, in one call.
LOOK = """() => {
  const root = document.documentElement;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const sizes = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.textContent.trim())
      sizes.push(parseFloat(getComputedStyle(node.parentElement).fontSize));
  }
  return {
    wide: root.scrollWidth, room: root.clientWidth, font: Math.min(...sizes), texts: sizes.length,
    images: [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt]),
    scripts: document.scripts.length,
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages that the current code writes; committed pages may be older."""
    folder = tmp_path_factory.mktemp("pages")
    groups = {
        f"an op, forward+backward, {size:,} × 128 × 784, bfloat16": {
            "eager": 4e-3,
            "compiled max-autotune": 2e-3,
            "triton": 1e-3,
        }
        for size in (8, 8192)
    }
    run = content(groups, 1, device="a processor whose name takes (R) more than a line (TM)")
    file = write(folder / "reports" / "cpu" / "bench.json", run)
    report.write_page(folder / "bench", *report.draw([parse(file, run)]))
    history.write(folder / "reports", folder / "history")
    (folder / "hard.html").write_text(_hard_page())
    return {
        "bench": folder / "bench" / "report.html",
        "history": folder / "history" / "report.html",
        "hard": folder / "hard.html",
    }


def _hard_page() -> str:
    """A page with all kinds of content that could be wider than the window."""
    with style.figure(width=14.0) as (drawn, _):
        picture = style.png(drawn)
    row = ("elbo/sticking-the-landing/simultaneous", *["−123.456 ± 0.123"] * 12, "a sentence " * 20)
    blocks: list[Block] = [
        Heading(
            1, "elbo/sticking-the-landing/simultaneous/beta=0.0001/k=5000, and all of its rest"
        ),
        Text("vaez-fast article " + "--an-option value " * 20, code=True),
        Table(("arm", *["a quantity and its unit"] * 12, "why"), [row] * 3),
        Figure("wide.png", "wide"),
    ]
    return html(blocks, {"wide.png": picture})


def look(browser: Any, page_file: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Open a file offline; return the results of LOOK, the console's errors and the requests."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    context.set_offline(True)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url[:80]))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    seen: dict[str, Any] = page.evaluate(LOOK)
    context.close()
    return seen | {
        "complaints": complaints,
        "requests": [url for url in requests if not url.startswith("data:")],
    }


def holds(seen: dict[str, Any], page_file: Path) -> None:
    assert seen["complaints"] == []
    assert seen["requests"] == [page_file.as_uri()]
    assert seen["scripts"] == 0
    assert seen["wide"] <= seen["room"], "the page scrolls sideways"
    assert seen["texts"] > 0
    assert seen["font"] >= SMALLEST_FONT
    for complete, natural, shown, alternative in seen["images"]:
        assert complete
        assert natural > 0
        assert shown >= 300, "a figure is too small to be read"
        assert alternative


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "page_file",
    sorted(REPORTS.rglob("*.html")),
    ids=lambda file: file.relative_to(REPORTS).as_posix(),
)
def test_a_committed_page_opens_offline_and_fits(browser: Any, page_file: Path, width: str) -> None:
    holds(look(browser, page_file, WIDTHS[width]), page_file)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["bench", "history", "hard"])
def test_a_fresh_page_opens_offline_and_fits(
    browser: Any, written: dict[str, Path], name: str, width: str
) -> None:
    seen = look(browser, written[name], WIDTHS[width])
    holds(seen, written[name])
    assert seen["images"]


def test_the_browser_sees_what_is_wrong(browser: Any, tmp_path: Path) -> None:
    """A page that asks for the network, throws, is too wide and too small: each fault is seen."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body style="width: 3000px; font-size: 8px">small<img src="https://example.org/a.png">'
        "<script>console.error('complaint'); throw new Error('thrown')</script>"
    )
    seen = look(browser, bad, WIDTHS["telephone"])
    assert any("complaint" in text for text in seen["complaints"])
    assert any("thrown" in text for text in seen["complaints"])
    assert "https://example.org/a.png" in seen["requests"]
    assert seen["wide"] > seen["room"]
    assert seen["font"] < SMALLEST_FONT
    assert seen["images"][0][1] == 0
