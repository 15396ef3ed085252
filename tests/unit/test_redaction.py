"""Tokens, passwords and logins are neither kept by a run nor printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fleetune.cli.entry import run_command_line
from fleetune.cli.output import print_error, print_note
from fleetune.errors import RecipeError
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.recipe import recipe_from
from fleetune.redaction import holds_login, redacted
from tests.conftest import WriteTexts

PLANTED = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHubXyz123",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_PASSWORD": "planted pass-word with $igns",
    "MLFLOW_TRACKING_TOKEN": "planted.tracking.token",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+access=key",
}
ADDRESS = "https://planted-user:planted-login@data.example.org/x.csv"
SECRETS = [*PLANTED.values(), "planted-login", "planted-user"]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"got {PLANTED['HF_TOKEN']}!", "got …!"),
        (f"the key {PLANTED['WANDB_API_KEY']}", "the key …"),
        (f"a {PLANTED['MLFLOW_TRACKING_PASSWORD']} b", "a … b"),
        (ADDRESS, "https://…@data.example.org/x.csv"),
        ("hf_abcdefghijklmnopqrstuv of nobody here", "… of nobody here"),
        ("Authorization: Bearer abcdef.ghijkl", "Authorization: Bearer …"),
        ("https://x.org/a?access_token=abc&b=1", "https://x.org/a?access_token=…&b=1"),
        ("password = 'abc'", "password = '…'"),
        ("a learning_rate of 0.1 at step 17", "a learning_rate of 0.1 at step 17"),
        ("max_tokens = 128, the tokenizer: bert", "max_tokens = 128, the tokenizer: bert"),
        ("write to me@example.org", "write to me@example.org"),
    ],
)
def test_secrets_are_taken_out_and_words_stay(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_short_values_are_words_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "fine")
    assert redacted("all is fine") == "all is fine"
    assert not holds_login("embedded:minilm")
    assert holds_login(ADDRESS)


@pytest.mark.usefixtures("planted")
def test_a_ledger_keeps_no_secret(tmp_path: Path) -> None:
    told = " and ".join([*PLANTED.values(), ADDRESS])
    ledger = Ledger(tmp_path)
    ledger.begin_attempt({"note": told})
    ledger.add_trials([_trial_row()])
    ledger.fail_trial("t", f"401 for {told}")
    ledger.note("said", told)
    ledger.close()
    with LedgerReader(tmp_path) as reader:
        assert reader.rows("SELECT reason FROM trials")[0][0].startswith("401 for …")
    assert_holds_no_secret(tmp_path)


def _trial_row() -> dict[str, object]:
    texts = dict.fromkeys(("name", "data", "backbone", "kind", "entry"), "x")
    numbers = {"position": 0, "fleet": 0, "seed": 0, "train_share": 1.0, "train_texts": 1}
    return {"id": "t", **texts, **numbers, "settings": {}, "training": {}, "parameters": {}}


def assert_holds_no_secret(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for secret in SECRETS:
            assert secret.encode() not in content, f"{path} holds {secret}"
            assert secret.encode("utf-16-le") not in content


@pytest.mark.parametrize("place", ["data", "backbone"])
def test_a_recipe_with_a_login_is_refused_and_not_quoted(tmp_path: Path, place: str) -> None:
    document: dict[str, dict[str, object]] = {"data": {"path": "x.csv"}, "backbone": {"model": "m"}}
    document[place]["path" if place == "data" else "model"] = ADDRESS
    with pytest.raises(RecipeError, match="login") as refused:
        recipe_from({**document, "method": [{"kind": "lora"}]}, tmp_path, "r.toml")
    assert "planted" not in str(refused.value)


@pytest.mark.usefixtures("planted")
def test_what_is_printed_holds_no_secret(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_note(ADDRESS)
    print_error(PLANTED["HF_TOKEN"])
    code = run_command_line(["check", str(tmp_path / "absent.toml"), "--set", f"data.path={ADDRESS}", "--json"])
    code = code and run_command_line(["check", f"absent {PLANTED['HF_TOKEN']}.toml", "--json"])
    out, err = capsys.readouterr()
    assert code == 2
    assert not [secret for secret in SECRETS if secret in out + err]


def test_no_file_of_a_run_and_nothing_printed_holds_a_secret(
    tmp_path: Path, write_texts: WriteTexts, tiny_bert: Path
) -> None:
    data, recipe, out = write_texts(), tmp_path / "r.toml", tmp_path / "run"
    recipe.write_text(
        f'[data]\npath = "{data.name}"\ntext = "text"\nlabel = "label"\n[backbone]\nmodel = "{tiny_bert}"\n'
        '[training]\nseeds = [0]\n[[method]]\nkind = "majority"\n'
    )
    typed = ["run", str(recipe), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "fleetune.cli", *typed],
        env={**os.environ, **PLANTED, "FLEETUNE_TRACEBACK": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert (out / "ledger.sqlite").exists() and (out / "report" / "index.html").exists()
    assert_holds_no_secret(out)
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    with LedgerReader(out) as reader:
        assert shlex.split(reader.meta()["command"])[:2] == ["fleetune", "run"]
