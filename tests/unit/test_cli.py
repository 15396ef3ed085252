"""The command line: exit codes, where output goes, and what mistakes are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fleetune
from fleetune.cli.app import COMMANDS
from fleetune.cli.entry import run_command_line
from fleetune.cli.output import safe
from fleetune.cli.words import duration, size
from tests.tiny import tiny_folder

Captured = pytest.CaptureFixture[str]
SLOW = ("torch", "transformers", "pandas", "altair", "sklearn", "scipy", "peft", "pyarrow")


def type_in(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleetune.cli", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_help_names_every_command_and_nothing_that_is_not_there(capsys: Captured):
    assert run_command_line(["--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert [line.split()[0] for line in listed.strip().splitlines()] == list(COMMANDS)
    assert "serve" not in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str, capsys: Captured):
    assert run_command_line([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "absent.toml"], ["run"], ["--version"]])
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str]):
    code = f"""
import sys
from fleetune.cli.entry import run_command_line
run_command_line({arguments!r})
found = [name for name in {SLOW!r} if name in sys.modules]
sys.stderr.write("HEAVY: " + ",".join(found))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.endswith("HEAVY: ")


def test_a_recipe_with_a_mistake_is_refused_before_anything_heavy_is_loaded(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('[data]\npath = "x.csv"\n[backbone]\nmodel = "m"\n[[method]]\nkind = "lora"\nrnk = 3\n')
    code = f"""
import sys
from fleetune.cli.entry import run_command_line
status = run_command_line(["check", {str(path)!r}])
print(status, [name for name in {SLOW!r} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "2 []\n"
    assert result.stderr == "error: r.toml: [[method]] 1 (lora).rnk is not a known key; did you mean 'rank'?\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "Missing"),
        (["runn"], "Did you mean 'run'?"),
        (["run", "r.toml", "--bogus"], "--bogus"),
        (["run", "absent.toml"], "fleetune init"),
        (["status", "absent"], "holds no run"),
        (["compare", "absent"], "holds no run"),
        (["report", "absent"], "holds no run"),
        (["export", "absent", "--to", "x"], "holds no run"),
        (["export", "absent"], "--to"),
        (["init", "absent.csv"], "absent.csv"),
        (["init"], "no data file"),
        (["predict", "absent", "a text"], "no bundle"),
        (["methods", "--method", "{"], "not JSON"),
        (["methods", "--method", '{"kind": "lroa"}'], "did you mean 'lora'"),
        (["methods", "--method", '{"kind": "lora", "rank": "x"}'], "a whole number was expected"),
        (["methods", "--model", "absent"], "config.json"),
        (["methods", "--num-labels", "0"], "--num-labels"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_input_is_exit_code_2_and_a_line_or_two(
    arguments: list[str],
    expected: str,
    as_json: bool,
    capsys: Captured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert run_command_line([*arguments, *(["--json"] if as_json else [])]) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert lines[0].startswith("error: ") and expected in printed.err
    assert len(lines) <= 2
    if as_json:
        assert json.loads(printed.out) == {"error": printed.err.strip().removeprefix("error: ")}
    else:
        assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_ours_is_one_line_and_a_way_to_its_trace(capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("one by nought\nand more")

    monkeypatch.setattr("fleetune.cli.commands.show_methods", broken)
    assert run_command_line(["methods"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == "error: ZeroDivisionError: one by nought" and "FLEETUNE_TRACEBACK=1" in lines[1] and len(lines) == 2
    )
    monkeypatch.setenv("FLEETUNE_TRACEBACK", "1")
    assert run_command_line(["methods"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_methods_lists_every_method_with_its_numbers(capsys: Captured):
    from fleetune.methods import all_baselines, all_methods

    assert run_command_line(["methods", "--model", str(tiny_folder("bert")), "--num-labels", "3", "--json"]) == 0
    found = {method["kind"]: method for method in json.loads(capsys.readouterr().out)["methods"]}
    assert list(found) == [*all_methods(), *all_baselines()]
    assert [found[kind]["parameters"]["trainable"] for kind in all_baselines()] == [0, 0, 0]
    assert {"kind", "settings", "source", "parameters"} <= found["lora"].keys()
    assert found["lora"]["parameters"]["adapter"] == 2 * 2 * 8 * (32 + 32)
    assert found["head"]["parameters"]["adapter"] == 0
    assert all(set(method["parameters"]) == {"adapter", "head", "trainable", "total"} for method in found.values())
    # What replaces a frozen value adds nothing to the model that is served; what is added beside it does.
    assert found["full"]["parameters"]["total"] == found["head"]["parameters"]["total"]
    assert (
        found["lora"]["parameters"]["total"]
        == found["head"]["parameters"]["total"] + found["lora"]["parameters"]["adapter"]
    )


def test_methods_shows_options_with_their_help(capsys: Captured):
    assert run_command_line(["methods", "--method", '{"kind": "lora", "rank": 3}']) == 0
    printed = capsys.readouterr().out
    assert "rank = 3" in printed and "Inner dimension of the update." in printed and "arXiv:2106.09685" in printed


def test_a_method_that_does_not_fit_the_model_is_listed_with_the_reason(capsys: Captured):
    arguments = ["methods", "--model", str(tiny_folder("llama"))]
    assert run_command_line([*arguments, "--json"]) == 0
    found = {method["kind"]: method for method in json.loads(capsys.readouterr().out)["methods"]}
    assert found["bitfit"]["parameters"] is None and "bias" in found["bitfit"]["misfit"]
    assert run_command_line([*arguments, "--method", '{"kind": "bitfit"}']) == 2
    assert "bias" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "fleetune.cli", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


def test_help_works_where_output_is_ascii(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for arguments in (["--help"], ["predict", "--help"], ["methods"], ["methods", "--json"]):
        result = type_in(*arguments)
        assert (result.returncode, result.stderr) == (0, ""), arguments


def test_plain_output_holds_no_colour(capsys: Captured):
    run_command_line(["methods"])
    run_command_line(["nothing"])
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err


def test_text_from_data_cannot_drive_the_terminal():
    assert safe("a\x1b[2Jb\x9bc\u202ed\r") == "a\\x1b[2Jb\\x9bc\\x202ed\\x0d"
    assert safe("naïve 漢字 😀\ttab") == "naïve 漢字 😀\ttab"


def test_numbers_in_words():
    assert [duration(value) for value in (0.04, 9.96, 59.4, 61, 3599.6, 7800)] == [
        "0.0 s", "10.0 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 10 min",
    ]  # fmt: skip
    assert [size(value) for value in (0, 1023, 1024, 5 * 1024**2, 3 * 1024**3)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 GiB",
    ]  # fmt: skip


def test_public_names_are_sorted_and_importable():
    assert fleetune.__all__ == sorted(fleetune.__all__)
    for name in fleetune.__all__:
        assert getattr(fleetune, name) is not None
        home = getattr(getattr(fleetune, name), "__module__", "fleetune")
        assert home.startswith("fleetune") or name == "__version__"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = fleetune.nothing_of_the_kind


def test_the_version_is_the_packages(capsys: Captured):
    import importlib.metadata

    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out == f"fleetune {importlib.metadata.version('fleetune')}\n"
    assert fleetune.__version__ == importlib.metadata.version("fleetune")


def test_init_writes_a_recipe_beside_any_folder(
    capsys: Captured, tmp_path: Path, write_texts: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    from fleetune.lab.recipe import load_recipe

    write_texts("my reviews.csv")
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["init", "--out", "recipes/r.toml", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["text"], seen["label"], seen["records"]) == ("text", "label", 120)
    recipe = load_recipe(tmp_path / "recipes" / "r.toml")
    assert (recipe.base / str(recipe.data[0].path)).resolve() == tmp_path / "my reviews.csv"
    assert run_command_line(["init", "my reviews.csv", "--out", "recipes/r.toml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run_command_line(["init", "my reviews.csv", "--out", "recipes/r.toml", "--force", "--model", "x/y"]) == 0
    assert load_recipe(tmp_path / "recipes" / "r.toml").backbones[0].model == "x/y"
    write_texts("others.csv")
    assert run_command_line(["init"]) == 2
    assert "2 data files" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="has no such names")
def test_a_file_name_adds_nothing_to_a_recipe_and_no_line_to_what_is_printed(
    capsys: Captured, tmp_path: Path, write_texts: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    data = write_texts("a\".csv\n[training]\nseeds = [666]\n# \u2028'x.csv")
    out = Path("r\n[backbone]\nmodel = 'theirs'\n.toml")
    assert run_command_line(["init", data.name, "--out", str(out), "--model", "x/y"]) == 0
    recipe = out.read_text("utf-8")
    document = tomllib.loads(recipe)
    assert (document["data"]["path"], document["backbone"]["model"]) == (data.name, "x/y")
    assert document["training"]["seeds"] == 3 and "\u2028" not in recipe.split("[data]")[0]
    printed = capsys.readouterr().out
    assert not [line for line in printed.splitlines() if line.startswith(("[training]", "[backbone]", "seeds"))]
    (tmp_path / "other.csv").write_text("")
    assert run_command_line(["init", "--out", "other.toml"]) == 2
    assert "2 data files" in (said := capsys.readouterr().err) and said.count("\n") == 2
