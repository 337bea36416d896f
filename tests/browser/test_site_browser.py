"""The static pages in headless Chromium, opened from their files with the network cut: they load
nothing, and frame sliders move.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import chromium, find_chromium
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ci"))
from make_site import build  # noqa: E402

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: install chromium, or name it in CHROMIUM")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1200, "height": 900}
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "site"
    build(ROOT / "notebooks", out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def opened(browser: Browser, path: Path, size: dict[str, int], trouble: list[str]) -> Page:
    """The page of a file, offline. trouble: filled with failed requests, requests that leave the
    folder, and console errors.
    """
    page = browser.new_context(viewport=size, offline=True).new_page()
    inside = (path.parent.as_uri() + "/", "data:")

    def note(bad: bool, words: str) -> None:
        trouble.extend([words] if bad else [])

    page.on("requestfailed", lambda asked: note(True, f"failed: {asked.url}"))
    page.on("request", lambda asked: note(not asked.url.startswith(inside), f"out: {asked.url}"))
    page.on("console", lambda said: note(said.type in ("error", "warning"), said.text))
    page.on("pageerror", lambda error: note(True, str(error)))
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("name", ["index", *NOTEBOOKS])
def test_page_is_whole_and_its_sliders_move(browser: Browser, site: Path, name: str) -> None:
    trouble: list[str] = []
    page = opened(browser, site / f"{name}.html", PHONE, trouble)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) <= PHONE["width"], "the page scrolls sideways on a phone"
    assert page.evaluate("""[...document.images].filter(i => !i.complete || !i.naturalWidth)
        .map(i => i.src)""") == []
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("""[...document.querySelectorAll('math')]
        .filter(m => m.getBoundingClientRect().width < 2).map(m => m.textContent)""") == []
    assert page.evaluate(width) <= PHONE["width"], "it does so with the solutions open"
    for figure in page.locator("figure.frames").all():
        slider, said = figure.locator("input"), figure.locator("output")
        shown = figure.locator("img:not([hidden])")
        last = int(slider.get_attribute("max"))
        seen = []
        slider.focus()
        for key in ("Home", "ArrowRight", "End"):
            page.keyboard.press(key)
            assert shown.count() == 1 and shown.is_visible()
            assert said.inner_text() == shown.get_attribute("data-value")
            assert slider.get_attribute("aria-valuetext") == shown.get_attribute("alt")
            seen.append(shown.screenshot())
        final = figure.locator("img").nth(last).get_attribute("data-value")
        assert len(set(seen)) == 3 and shown.get_attribute("data-value") == final
        box = slider.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert 0 < int(slider.input_value()) < last and shown.screenshot() not in seen
    page.context.close()
    assert trouble == []


def test_play_button_runs_to_the_end_and_stops(browser: Browser, site: Path) -> None:
    trouble: list[str] = []
    page = opened(browser, site / f"{NOTEBOOKS[0]}.html", DESK, trouble)
    figure = page.locator("figure.frames:has(button)").first
    button, slider = figure.locator("button"), figure.locator("input")
    last = int(slider.get_attribute("max"))
    slider.focus()
    page.keyboard.press("End")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    button.click()
    page.wait_for_function("([s, n]) => s.valueAsNumber === n", arg=[slider.element_handle(), last])
    page.wait_for_function("b => b.getAttribute('aria-pressed') === 'false'",
                           arg=button.element_handle())
    button.click()  # at the end: from the beginning again
    page.wait_for_function("([s, n]) => s.valueAsNumber < n", arg=[slider.element_handle(), last])
    slider.focus()
    page.keyboard.press("Home")  # a hand on the slider stops it, even where it is already
    assert button.get_attribute("aria-pressed") == "false" and slider.input_value() == "0"
    page.context.close()
    assert trouble == []
