"""`control ui` over the tiny bundle in a real Chromium: two rankers side by side, by keyboard, wide
and narrow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.triton, pytest.mark.slow]
# Elements whose boxes must not lie on each other, and none may leave the window.
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('.line > *, nav button, #state, ol .title, ol .p, ol .moved, #job > *')]
    .map((one) => [one, one.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
  const told = [];
  for (const [one, a] of boxes) {
    if (a.right > innerWidth + 1 || a.left < -1) told.push(`outside: ${one.textContent}`);
    for (const [other, b] of boxes) {
      const apart = a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
      const inside = document.querySelector('#job').contains(one) !== document.querySelector('#job').contains(other);
      if (one !== other && !apart && !inside) told.push(`${one.textContent} | ${other.textContent}`);
    }
  }
  return told;
}"""


@pytest.fixture(scope="module")
def url(tiny: Any) -> Iterator[str]:
    command = [sys.executable, "-m", "slmrank.cli.main", "ui", tiny.spec, tiny.spec]
    command += ["--set", "engine.openvino.precision=bfloat16", "--port", "0"]
    command += ["--artifacts", tiny.artifacts]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), line
        yield line.split()[-1]
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 390])
def test_a_query_is_ranked_and_a_job_shown(
    browser: Any, url: str, width: int, tmp_path: Any
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on(
        "request", lambda one: told.append(one.url) if not one.url.startswith(url[:-3]) else None
    )
    page.goto(url)
    page.wait_for_selector("nav button")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("nurse shift lead")
    page.keyboard.press("Enter")
    page.wait_for_selector("#job mark")
    assert "ranked in" in page.inner_text("#state")
    scores = [float(text) for text in page.locator(".side").first.locator(".p").all_inner_texts()]
    assert len(scores) == 24
    assert scores == sorted(scores, reverse=True)
    assert page.locator(".side").count() == 2
    assert "engine" in page.inner_text(".side p")

    first = page.inner_text("#job h2")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    current = page.locator('.side:first-child ol button[aria-current="true"]')
    current.locator(".place", has_text="2").wait_for()
    assert current.locator(".place").inner_text() == "2"
    title = current.locator(".title").evaluate("(one) => one.firstChild.textContent")
    page.locator("#job h2", has_text=title).wait_for()
    assert page.locator("#job h2").evaluate("(one) => one.textContent") == title
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.side") == "1"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert first
    assert told == []
    page.close()


@pytest.mark.long
def test_a_query_without_a_job_and_a_shared_link(browser: Any, url: str) -> None:
    page = browser.new_page()
    page.goto(f"{url}#q=pilot+lead")
    page.wait_for_selector("ol button")
    assert page.input_value("#query") == "pilot lead"
    page.fill("#query", "zzzz")
    page.keyboard.press("Enter")
    page.locator("#state", has_text="no job shares").wait_for()
    page.fill("#query", "nurse " * 70)
    page.keyboard.press("Enter")
    page.wait_for_selector(".side .fault")
    assert "tokens, the limit is" in page.inner_text(".side .fault")
    page.close()
