"""Tokens, passwords and logins are neither kept by a run nor printed."""

from __future__ import annotations

import html
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleetune.cli.entry import run_command_line
from fleetune.cli.output import print_error, print_note
from fleetune.errors import RecipeError
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.recipe import recipe_from
from fleetune.redaction import holds_login, redacted, redacted_facts
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
        ("password = 'two words', then", "password = '…', then"),
        ('{"password": "two \\"quoted\\" words", "b": 1}', '{"password": "…", "b": 1}'),
        (r"{\"password\": \"two words\", \"b\": 1}", r"{\"password\": \"…\", \"b\": 1}"),
        ("passphrase: 'no end to it", "passphrase: '…"),
        ("api_key=ab'cd ef", "api_key=… ef"),
        ("password%3Dabc of", "password%3D… of"),
        ("see wandb_v1_abcdefghijklmnopqrstuvwxyz0123", "see …"),
        (r"x\nhf_abcdefghijklmnopqrstuv", r"x\n…"),
        ("to%3Dhf_abcdefghijklmnopqrstuv", "to%3D…"),
        ("https%3A%2F%2Fme%3Apw%40host%2Fx&y=1", "https%3A%2F%2F…%40host%2Fx&y=1"),
        (r"https:\/\/me:pw@host\/x", r"https:\/\/…@host\/x"),
        ("https://cdn.example.org/pkg@1.0/x.csv", "https://cdn.example.org/pkg@1.0/x.csv"),
        ("https://example.org:8080/x.csv me@example.org", "https://example.org:8080/x.csv me@example.org"),
        ("http://[::1]:8080/x@1.csv", "http://[::1]:8080/x@1.csv"),
    ],
)
def test_secrets_are_taken_out_and_words_stay(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_short_values_are_words_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "fine")
    assert redacted("all is fine") == "all is fine"
    assert not holds_login("embedded:minilm")
    assert holds_login(ADDRESS)


PRINTABLE = st.characters(min_codepoint=33, exclude_categories=["C", "Z"])
NO_END = st.characters(min_codepoint=33, exclude_categories=["C", "Z"], exclude_characters="/?#@:[")


@given(user=st.text(NO_END), password=st.text(PRINTABLE, min_size=1), path=st.sampled_from(["", "/x", "/a/b.csv?c=1"]))
@example(user="user", password="p@ss", path="/x")
@example(user="user", password="pa/ss", path="")
@example(user="user", password="1/2?3#4:5", path="/x")
def test_no_login_in_an_address_is_shown_or_accepted(user: str, password: str, path: str) -> None:
    address = f"https://{user}:{password}@host.example.org{path}"
    assert redacted(f"got {address} there") == f"got https://…@host.example.org{path} there"
    assert holds_login(address)


HARD = "pläne/ted+\"wörd\" 'of' & <some> \\ 😀\tkind%"
"""A value with a sign of each kind that is written otherwise somewhere."""


@pytest.mark.parametrize("name", ["GIT_TOKEN", "KEY_PASSPHRASE", "GITHUB_PAT", "DB_PASS", "DB_PWD"])
def test_values_are_hidden_by_their_variables_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"{HARD}\n")
    assert redacted(f"got {HARD}!") == "got …!"


@pytest.mark.parametrize(
    "written",
    [str, quote, quote_plus, lambda text: quote(text, safe="").lower(), json.dumps,
     lambda text: json.dumps(text, ensure_ascii=False), lambda text: json.dumps(json.dumps(text)), repr, ascii,
     html.escape],
)  # fmt: skip
def test_values_of_the_environment_are_hidden_however_they_are_written(
    written: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TOKEN", f"{HARD}\n")
    assert redacted(f"got {written(HARD)}!").strip("\"'\\") in ("got …!", 'got "…"!', "got '…'!", r'got "\"…\""!')


@pytest.mark.parametrize("name", ["PATH", "PWD", "SSH_AUTH_SOCK", "PATTERN", "COMPASS"])
def test_values_of_other_names_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/some/folder")
    assert redacted("in /some/folder") == "in /some/folder"


def test_facts_are_redacted_and_stay_json() -> None:
    facts = {"password": "two words", "n": [1, ADDRESS, None], "a": "password = 'two", "it's": {"tokenizers": "0.2"}}
    assert redacted_facts(facts) == {
        "password": "…", "n": [1, "https://…@data.example.org/x.csv", None], "a": "password = '…",
        "it's": {"tokenizers": "0.2"},
    }  # fmt: skip


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


@pytest.mark.parametrize("address", [ADDRESS, "https://planted:p@ss@host/x", "https://planted:pa/ss@host"])
@pytest.mark.parametrize("place", ["data", "backbone"])
def test_a_recipe_with_a_login_is_refused_and_not_quoted(tmp_path: Path, place: str, address: str) -> None:
    document: dict[str, dict[str, object]] = {"data": {"path": "x.csv"}, "backbone": {"model": "m"}}
    document[place]["path" if place == "data" else "model"] = address
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
