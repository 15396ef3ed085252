"""The report in a browser: it sorts, tells, keeps its theme, asks the network for nothing and shuts no reader out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fleetune.report.html import render
from tests.unit.synthetic_runs import SyntheticRun, grid_run, multi_label_run, tested, troubled_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (360, 768, 1440)
SERIOUS = ("serious", "critical")


def few_seeds() -> SyntheticRun:
    return grid_run(seeds=2, evaluations=4)


RUNS = {"grid": few_seeds, "emotions": multi_label_run, "troubled": troubled_run}


@dataclass
class Watched:
    """A page with what its browser complained of and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox cannot start as root; the page is ours and there is no network in it.
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name, run in RUNS.items():
        synthetic = run()
        made[name] = folder / f"{name}.html"
        made[name].write_text(render(synthetic, tested(synthetic)), encoding="utf-8")
    return made


def opened(browser: Any, path: Path, width: int = 1440, theme: str = "light") -> Watched:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    watched = Watched(page)
    page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(DRAWN)
    return watched


DRAWN = """() => [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg')
    || chart.textContent.includes('could not be drawn'))"""
NAMES = "() => [...document.querySelectorAll('.overview tbody th')].map(th => th.dataset.value)"
OVERFLOW = """() => [document.documentElement.scrollWidth, innerWidth]"""


def column(page: Any, number: int) -> list[str]:
    """The sorted-by values of the overview's column with that number from 0, which is the name's."""
    found: list[str] = page.evaluate(
        "(n) => [...document.querySelectorAll('.overview tbody')].map(b => b.rows[0].cells[n].dataset.value)", number
    )
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_page_draws_every_figure_without_complaint_and_asks_for_nothing(
    browser: Any, files: dict[str, Path], name: str
) -> None:
    watched = opened(browser, files[name])
    charts = watched.page.locator(".chart")
    assert charts.count() >= 8
    assert watched.page.locator(".chart svg").count() == charts.count()
    assert watched.complaints == []
    assert watched.requests == [files[name].as_uri()]
    watched.page.close()


def test_a_click_and_a_key_sort_the_table(browser: Any, files: dict[str, Path]) -> None:
    page = opened(browser, files["grid"]).page
    means = [float(value) for value in column(page, 1)]
    assert len(means) == 12 and means == sorted(means, reverse=True)
    trained = page.locator(".overview thead button", has_text="Trained")
    trained.click()
    costs = [float(value) for value in column(page, 3)]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    assert trained.locator("..").get_attribute("aria-sort") == "descending"
    trained.focus()
    page.keyboard.press("Enter")
    assert [float(value) for value in column(page, 3)] == sorted(costs)
    assert trained.locator("..").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press(" ")
    names = page.evaluate(NAMES)
    assert page.locator(".overview th[aria-sort=ascending]").inner_text().startswith("Configuration")
    assert names[0].startswith("bitfit") and names[-1].startswith("lora")
    assert page.locator(".overview th[aria-sort=none]").count() == page.locator(".overview th[aria-sort]").count() - 1
    page.close()


def test_what_is_not_known_is_sorted_last_either_way(browser: Any, files: dict[str, Path]) -> None:
    page = opened(browser, files["troubled"]).page
    page.evaluate("() => { document.querySelectorAll('.overview tbody')[1].rows[0].cells[5].dataset.value = '' }")
    time = page.locator(".overview thead button", has_text="Time")
    for _ in range(2):
        time.click()
        values = column(page, 5)
        assert values[-1] == "" and "" not in values[:-1]
    problems = page.evaluate(
        "() => [...document.querySelectorAll('.overview tbody')].map(b => b.rows.length > 1 ? b.innerText : '')"
    )
    assert any("lora" in text and "Seed 0 failed" in text for text in problems)
    page.close()


def test_a_table_of_tests_is_sorted_too(browser: Any, files: dict[str, Path]) -> None:
    page = opened(browser, files["grid"]).page
    values = (
        "() => [...document.querySelectorAll('#tests tbody tr')].map(row => parseFloat(row.cells[2].dataset.value))"
    )
    page.locator("#tests thead button", has_text="Difference").click()
    found = page.evaluate(values)
    assert len(found) == 11 and found == sorted(found, reverse=True)
    page.close()


def test_a_point_tells_what_it_is(browser: Any, files: dict[str, Path]) -> None:
    page = opened(browser, files["grid"]).page
    tooltip = page.locator("#vg-tooltip-element")
    assert not tooltip.is_visible()
    page.locator("#cost-trainable .mark-symbol path").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    told = tooltip.inner_text()
    assert "configuration" in told and "trained parameters" in told
    page.close()


def test_the_theme_changes_and_is_kept(browser: Any, files: dict[str, Path]) -> None:
    page = opened(browser, files["grid"]).page
    colour = "() => getComputedStyle(document.body).backgroundColor"
    light, drawn = page.evaluate(colour), "() => getComputedStyle(document.querySelector('.chart text')).fill"
    light_text = page.evaluate(drawn)
    page.get_by_role("button", name="Dark theme").click()
    dark = page.evaluate(colour)
    assert dark != light and page.evaluate(drawn) != light_text
    page.reload()
    assert page.evaluate(colour) == dark
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(colour) == light
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_no_wider_than_the_screen(browser: Any, files: dict[str, Path], name: str, width: int) -> None:
    page = opened(browser, files[name], width).page
    needed, there = page.evaluate(OVERFLOW)
    assert needed <= there
    cut = page.evaluate(
        "() => [...document.querySelectorAll('.chart')].filter(c => c.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert cut == 0
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", RUNS)
def test_axe_finds_nothing_serious(browser: Any, files: dict[str, Path], name: str, theme: str) -> None:
    import axe_core_python

    page = opened(browser, files[name], theme=theme).page
    page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true })")
    page.evaluate((Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")["violations"]
    serious = [
        f"{one['id']}: {one['nodes'][0]['html'][:160]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found
        if one["impact"] in SERIOUS
    ]
    assert serious == []
    page.close()
