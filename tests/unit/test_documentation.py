"""What the documentation says exists, and what exists is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fleetune
from fleetune.cli.app import app
from fleetune.lab.recipe import load_recipe
from fleetune.methods import all_baselines, all_methods
from tools.document_methods import PAGE, page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_readme_lists_the_commands_that_there_are():
    listed = set(re.findall(r"^\| `fleetune (\w+)", section("Commands"), flags=re.MULTILINE))
    assert listed == {command.callback.__name__ for command in app.registered_commands if command.callback}


def test_the_readme_lists_the_methods_that_there_are():
    listed = re.findall(r"^\| `(\w+)` \|", section("Methods"), flags=re.MULTILINE)
    assert sorted(listed) == sorted([*all_methods(), *all_baselines()])


def test_the_page_of_methods_is_what_the_methods_say():
    assert PAGE.read_text("utf-8") == page(), "type: python -m tools.document_methods"


@pytest.mark.parametrize("recipe", blocks("toml"))
def test_a_recipe_in_the_readme_is_valid(recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(recipe, encoding="utf-8")
    assert load_recipe(file, []).methods


def test_a_name_imported_in_the_readme_is_exported():
    imports = [node for code in blocks("python") for node in ast.walk(ast.parse(code))]
    names = [alias.name for node in imports if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert names
    assert [name for name in names if not hasattr(fleetune, name)] == []


def test_each_dependency_has_its_line():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = pyproject[pyproject.index("\ndependencies = [") : pyproject.index("[tool.")]
    distributions = set(re.findall(r'"([a-z][\w-]*)(?:[><=~]=?[\d.]+)?"', lists))
    assert len(distributions) > 30
    assert [name for name in sorted(distributions) if name not in text] == []


def test_links_between_files_lead_somewhere():
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {path for file in documents for path in re.findall(r"`((?:docs|tools)/[\w./]+\.\w+)`", file.read_text())}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
