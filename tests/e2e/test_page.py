"""The report in a browser: it sorts, tells, keeps its theme, asks the network for nothing and shuts no reader out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from fleetune.report.html import render, rendered
from fleetune.report.side_by_side import TEMPLATE, build_side_by_side
from tests.unit.synthetic_runs import (
    SyntheticRun,
    grid_run,
    multi_class_run,
    multi_label_run,
    troubled_run,
    with_tests,
    with_texts,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (360, 768, 1440)
SERIOUS = ("serious", "critical")


def page_of(synthetic: SyntheticRun) -> str:
    return render(synthetic, with_tests(synthetic))


TWO_RUNS = (with_texts(multi_class_run(seeds=2)), with_texts(replace(multi_class_run(seeds=3), name="again")))
PAGES: dict[str, Callable[[], str]] = {
    "grid": lambda: page_of(grid_run(seeds=2, evaluations=4)),
    "emotions": lambda: page_of(multi_label_run()),
    "troubled": lambda: page_of(troubled_run()),
    "two-runs": lambda: rendered(TEMPLATE, build_side_by_side(*TWO_RUNS)),
}


@dataclass
class Watched:
    """A page with what its browser complained of and asked for."""

    page: Any
    path: Path
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


@pytest.fixture(scope="module", params=PAGES)
def watched(
    request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """Each run's page, drawn on a telephone's width first and shared by the tests that leave it as it is."""
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    shown = opened(browser, path)
    yield shown
    shown.page.close()


@pytest.fixture(scope="module")
def grid(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of twelve configurations for the tests that use it as a reader does."""
    path = tmp_path_factory.mktemp("grid") / "grid.html"
    path.write_text(PAGES["grid"](), encoding="utf-8")
    page = opened(browser, path, width=1440).page
    yield page
    page.close()


def opened(browser: Any, path: Path, width: int = WIDTHS[0]) -> Watched:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
    watched = Watched(page, path)
    page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(DRAWN)
    return watched


DRAWN = """() => [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg')
    || chart.textContent.includes('could not be drawn'))"""
NAMES = "() => [...document.querySelectorAll('.overview tbody th')].map(th => th.dataset.value)"
CUT = """() => [...document.querySelectorAll('.chart')]
    .filter(chart => chart.getBoundingClientRect().right > innerWidth + 1).map(chart => chart.parentNode.id)"""
# To assistive technology each drawing is one picture with words, so axe has no business inside.
LOOKED_AT = "{ exclude: [['.chart svg']] }"
# Opens the tables of numbers and leaves three rows in each: the rows below are made alike, and there are thousands.
SHORTENED = """() => {
    document.querySelectorAll('details').forEach(one => { one.open = true });
    document.querySelectorAll('.numbers tbody tr:nth-child(n+4)').forEach(row => row.remove());
}"""
SORTED_BY = "(n) => [...document.querySelectorAll('.overview tbody')].map(b => b.rows[0].cells[n].dataset.value)"


def test_the_page_draws_every_figure_without_complaint_and_asks_for_nothing(watched: Watched) -> None:
    charts = watched.page.locator(".chart").count()
    assert (
        charts >= (1 if watched.path.stem == "two-runs" else 8) and watched.page.locator(".chart svg").count() == charts
    )
    assert watched.complaints == []
    assert watched.requests == [watched.path.as_uri()]


def test_the_page_is_no_wider_than_the_screen(watched: Watched) -> None:
    for width in WIDTHS:
        watched.page.set_viewport_size({"width": width, "height": 900})
        watched.page.wait_for_timeout(150)
        assert watched.page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert watched.page.evaluate(CUT) == []


def test_axe_finds_nothing_serious(watched: Watched) -> None:
    page = watched.page
    page.evaluate(SHORTENED)
    page.evaluate(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8"))
    for theme, rules in (("light", "{}"), ("dark", "{ runOnly: ['color-contrast'] }")):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme }", theme)
        found = page.evaluate(f"() => axe.run({LOOKED_AT}, {rules})")
        assert found["passes"]
        serious = [
            f"{one['id']}: {one['nodes'][0]['html'][:160]} {one['nodes'][0]['failureSummary'][:300]}"
            for one in found["violations"]
            if one["impact"] in SERIOUS
        ]
        assert serious == [], theme


def test_a_click_and_a_key_sort_the_table(grid: Any) -> None:
    means = [float(value) for value in grid.evaluate(SORTED_BY, 1)]
    assert len(means) == 12 and means == sorted(means, reverse=True)
    trained = grid.locator(".overview thead button", has_text="Trained")
    trained.click()
    costs = [float(value) for value in grid.evaluate(SORTED_BY, 4)]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    assert trained.locator("..").get_attribute("aria-sort") == "descending"
    trained.focus()
    grid.keyboard.press("Enter")
    assert [float(value) for value in grid.evaluate(SORTED_BY, 4)] == sorted(costs)
    assert trained.locator("..").get_attribute("aria-sort") == "ascending"
    for key in ("Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", " "):
        grid.keyboard.press(key)
    names = grid.evaluate(NAMES)
    assert grid.locator(".overview th[aria-sort=ascending]").inner_text().startswith("Configuration")
    assert [name.split()[0] for name in names] == ["bitfit"] * 3 + ["ia3"] * 3 + ["lora"] * 6
    assert grid.locator(".overview th[aria-sort=none]").count() == grid.locator(".overview th[aria-sort]").count() - 1


def test_what_is_not_known_is_sorted_last_either_way(grid: Any) -> None:
    grid.evaluate("() => { document.querySelectorAll('.overview tbody')[3].rows[0].cells[6].dataset.value = '' }")
    time = grid.locator(".overview thead button", has_text="Time")
    for _ in range(2):
        time.click()
        values = grid.evaluate(SORTED_BY, 6)
        assert values[-1] == "" and "" not in values[:-1]


def test_a_table_of_tests_is_sorted_too(grid: Any) -> None:
    values = (
        "() => [...document.querySelectorAll('#tests tbody tr')].map(row => parseFloat(row.cells[2].dataset.value))"
    )
    grid.locator("#tests thead button", has_text="Difference").click()
    found = grid.evaluate(values)
    assert len(found) == 11 and found == sorted(found, reverse=True)


def test_a_point_tells_what_it_is(grid: Any) -> None:
    tooltip = grid.locator("#vg-tooltip-element")
    assert not tooltip.is_visible()
    grid.locator("#figure-cost-trainable .mark-symbol path").first.hover(force=True)
    grid.wait_for_selector("#vg-tooltip-element.visible")
    assert "configuration" in tooltip.inner_text() and "trained parameters" in tooltip.inner_text()


def test_key_points_lead_to_their_numbers(grid: Any) -> None:
    links = grid.locator(".points a")
    assert links.count() == 3
    for index in range(links.count()):
        target = links.nth(index).get_attribute("href")
        assert grid.locator(target).count() == 1


def test_the_theme_changes_and_is_kept(grid: Any) -> None:
    background = "() => getComputedStyle(document.body).backgroundColor"
    text = "() => getComputedStyle(document.querySelector('.chart text')).fill"
    light, light_text = grid.evaluate(background), grid.evaluate(text)
    grid.get_by_role("button", name="Dark theme").click()
    dark = grid.evaluate(background)
    assert dark != light and grid.evaluate(text) != light_text
    grid.reload()
    assert grid.evaluate(background) == dark
    grid.get_by_role("button", name="Light theme").click()
    assert grid.evaluate(background) == light
