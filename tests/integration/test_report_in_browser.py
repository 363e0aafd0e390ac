"""The pages of a run and of a search in a real browser: nothing is cut off, unreadable or fetched."""

from __future__ import annotations

import pytest

from growtas import api
from tests.browser import PROGRAM, Browser
from tests.report_helpers import write_whole_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="needs Chromium or Chrome, which is not installed here")]

# The colours of every text and of what lies behind it, with the contrast as WCAG 2.1 defines it.
CONTRASTS = """(() => {
  const channels = colour => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const luminance = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = element => { for (let e = element; e; e = e.parentElement) {
    const c = channels(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c } return [255, 255, 255, 1] };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || element.closest('title, desc, style')) continue;
    const style = getComputedStyle(element), colour = channels(element.closest('svg') ? style.fill : style.color);
    const [high, low] = [luminance(colour), luminance(behind(element))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), text, parseFloat(style.fontSize)]);
  }
  return found })()"""

# What stands out of the window, or out of its drawing; tables may scroll inside the page.
OUTSIDE = """(() => {
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const box = element.getBoundingClientRect();
    if (!element.closest('.wide, .skip, svg') && (box.right > innerWidth + 0.5 || box.left < -0.5))
      found.push(element.outerHTML.slice(0, 80));
    const drawing = element.closest('svg');
    if (!drawing || drawing === element || !box.width || element.closest('title, desc')) continue;
    const outer = drawing.getBoundingClientRect();
    if (box.left < outer.left - 1 || box.right > outer.right + 1 || box.top < outer.top - 1 || box.bottom > outer.bottom + 1)
      found.push(element.outerHTML.slice(0, 120));
  }
  return found })()"""

# Texts of one drawing that cover each other.
COVERED = """(() => {
  const found = [];
  for (const drawing of document.querySelectorAll('svg')) {
    const texts = [...drawing.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([one, a], index) => texts.slice(index + 1).forEach(([other, b]) => {
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (width > 1 && height > 4) found.push([one, other]);
    }));
  }
  return found })()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    run = write_whole_run(tmp_path_factory.mktemp("whole"))
    return {"run": api.report(run), "search": run.path / "search" / "report.html"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["run", "search"])
def test_a_page_is_readable(browser, pages, tmp_path, name, width, dark):
    browser.open(pages[name], width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true })")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(COVERED) == []
    contrasts = browser.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [entry for entry in contrasts if entry[0] < 4.5] == []
    page = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page == "rgb(255, 255, 255)") is not dark
    boxes = browser.evaluate(
        "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert len(boxes) == {"run": 10, "search": 3}[name]
    assert min(width for width, _ in boxes) > 300
    assert min(height for _, height in boxes) > 60
    # The smallest text of a drawing is still readable on a phone.
    scale = min(width for width, _ in boxes) / 400
    assert min(size for _, _, size in contrasts) * scale >= 9
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    noise = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert [event for event in browser.events if event["method"] in noise] == []
    fetched = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in fetched if not url.startswith("data:")] == [pages[name].resolve().as_uri()]


def test_a_page_is_walked_through_with_the_keyboard(browser, pages):
    browser.open(pages["run"], 1280)
    focused = "document.activeElement.matches(':focus-visible') && getComputedStyle(document.activeElement).outlineStyle"
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    assert browser.evaluate(focused) == "solid"
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.textContent") == "Summary"
    assert browser.evaluate(focused) == "solid"
    seen = set()
    for _ in range(60):
        browser.press("Tab")
        seen.add(browser.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()"))
        if browser.evaluate("document.activeElement === document.body"):
            break
    assert {"Commands that repeat it", "Found", "Measurements"} <= seen


def test_a_screen_reader_gets_landmarks_and_names(browser, pages):
    browser.open(pages["run"], 1280)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"] and "role" in node
    ]
    roles = [role for role, _ in named]
    for landmark in ("banner", "main", "navigation", "contentinfo"):
        assert roles.count(landmark) == 1
    pictures = [name for role, name in named if role in ("image", "img")]
    assert len(pictures) == 10
    assert all(pictures)
    tables = [name for role, name in named if role == "table"]
    assert tables
    assert all(tables)
    headings = [name for role, name in named if role == "heading"]
    assert headings[1:4] == ["Summary", "Training", "Search"]
