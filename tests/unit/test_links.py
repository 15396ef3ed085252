"""A run from a stranger may hold links: nothing outside of its folder is written or deleted by way of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleetune.cli.entry import run_command_line
from fleetune.data.links import refuse_links
from fleetune.errors import RunError
from fleetune.lab.folder import RunFolder
from fleetune.lab.kept_files import remove_partials
from fleetune.lab.ledger import Ledger
from fleetune.lab.recipe import Recipe, load_recipe
from fleetune.lab.runner import run
from fleetune.lab.test_uses import log_test_use
from fleetune.report.html import write_report
from tests.unit.synthetic_runs import run as synthetic_run
from tests.unit.synthetic_runs import trial
from tests.unit.test_runner import FakeExecutor

MINE = ("index.html", "mine.svg", "score.svg", "state-1.safetensors", "audit.json.1.partial", "deep/note.partial")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Returns a folder of somebody else, with names that a run has, too."""
    for name in MINE:
        (tmp_path / "outside" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outside" / name).write_text("mine")
    return tmp_path / "outside"


@pytest.fixture
def finished(write_recipe: Callable[..., Path], tmp_path: Path) -> tuple[Recipe, Path]:
    recipe = load_recipe(write_recipe())
    run(recipe, tmp_path / "run", executor=FakeExecutor())
    return recipe, tmp_path / "run"


def assert_untouched(outside: Path) -> None:
    found = {path.relative_to(outside).as_posix(): path.read_text() for path in outside.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(MINE, "mine")


def put_link(place: Path, outside: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        place.rename(place.with_name(f"{place.name} before"))
    place.unlink(missing_ok=True)
    place.symlink_to(outside)


@pytest.mark.parametrize("name", ["report", "report/figures", "report/index.html"])
def test_a_report_is_not_written_through_a_link(
    finished: tuple[Recipe, Path], outside: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished[1]
    place = folder / name
    put_link(place, outside / "index.html" if name.endswith("html") else outside)
    for arguments in (["report", str(folder)], ["report", "--compare", str(folder), str(folder)]):
        assert run_command_line(arguments) == 1
        said = capsys.readouterr().err
        assert f"{place} is a link" in said and said.count("\n") == 2
    assert_untouched(outside)


def test_two_runs_go_to_a_page_that_the_user_names(finished: tuple[Recipe, Path], outside: Path) -> None:
    folder = finished[1]
    put_link(folder / "report", outside)
    page = folder.parent / "elsewhere" / "page.html"
    assert run_command_line(["report", "--compare", str(folder), str(folder), "--out", str(page)]) == 0
    assert page.exists()
    assert_untouched(outside)


def test_a_report_removes_only_figures_that_the_page_before_it_had(outside: Path, tmp_path: Path) -> None:
    out, run_of_one = tmp_path / "report", synthetic_run([trial("head", 0, ["no", "yes"], losses=[], history=[])])
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "mine.svg").write_text("mine")
    write_report(run_of_one, out)
    assert (out / "figures" / "mine.svg").read_text() == "mine"
    (out / "figures").rename(tmp_path / "figures")
    put_link(out / "figures", outside)
    with pytest.raises(RunError, match="figures is a link"):
        write_report(run_of_one, out)
    assert_untouched(outside)


LINKS = ["trials", "data", "report", "report/figures", "data/tokens.1.partial", "tensorboard", "ledger.lock",
         "recipe.toml.7.partial"]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_run_does_not_go_on_through_a_link(finished: tuple[Recipe, Path], outside: Path, name: str) -> None:
    recipe, folder = finished
    put_link(folder / name, outside if "." not in name else outside / "index.html")
    with pytest.raises(RunError, match="is a link") as refused:
        run(recipe, folder, executor=FakeExecutor())
    assert str(folder / name) in str(refused.value) and len(str(refused.value).splitlines()) == 2
    assert_untouched(outside)


def test_a_folder_of_a_trial_that_is_a_link_is_refused(finished: tuple[Recipe, Path], outside: Path) -> None:
    recipe, folder = finished
    place = next((folder / "trials").iterdir())
    put_link(place, outside)
    with pytest.raises(RunError, match=f"{place.name} is a link"):
        run(recipe, folder, executor=FakeExecutor())
    assert_untouched(outside)


@pytest.mark.parametrize("name", ["data", "data/tokens.1.partial", "data/reviews"])
def test_what_was_left_half_written_is_not_removed_through_a_link(tmp_path: Path, outside: Path, name: str) -> None:
    folder = tmp_path / "run"
    put_link(folder / name, outside)
    ledger = Ledger(folder)
    with pytest.raises(RunError, match="is a link"):
        remove_partials(ledger, folder / "data")
    ledger.close()
    assert_untouched(outside)


def test_a_run_is_used_where_its_own_folder_is_reached_by_a_link(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    (tmp_path / "latest").symlink_to(folder)
    RunFolder(tmp_path / "latest").refuse_links()
    assert run(recipe, tmp_path / "latest", executor=FakeExecutor()).skipped == 4


def test_a_look_is_not_noted_in_the_ledger_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    Ledger(tmp_path / "other").close()
    put_link(tmp_path / "run" / "ledger.sqlite", tmp_path / "other" / "ledger.sqlite")
    assert log_test_use(tmp_path / "other", "compare", "accuracy", 1)
    assert not log_test_use(tmp_path / "run", "compare", "accuracy", 1)


def test_what_leads_out_without_being_a_link_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a junction of Windows does."""
    (tmp_path / "report").mkdir()
    refuse_links(tmp_path, "report")
    real = "fleetune.data.links.os.path.realpath"
    monkeypatch.setattr(real, lambda path: "/elsewhere" if Path(path).name == "report" else str(path))
    with pytest.raises(RunError, match="report is a link"):
        refuse_links(tmp_path, "report")
