"""Recipes, data files, bundles and ledgers of random nonsense: an error for the user, or a result, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fleetune.bundle import load_bundle
from fleetune.bundle.loading import _read_tensors
from fleetune.bundle.manifest import MANIFEST, digest_of, read_manifest
from fleetune.engine.tokenizer_files import read_tokenizer
from fleetune.errors import FleetuneError, UserError
from fleetune.lab.recipe import load_recipe, recipe_from, resolved
from fleetune.lab.results import load_results
from tests.data_files import LABELS, read
from tests.fuzz.fuzzing import ODD_VALUES, assert_short, executions, fuzz, mutated, mutated_document
from tests.integration.test_bundle import rewrite, saved
from tests.integration.test_tokenizer_trust import tokenized, word_pieces, written

RECIPE = {
    "track": ["tensorboard"],
    "data": [{"path": "x.csv", "text": "text", "label": "label", "split": {"validation": 0.1, "test": 0.2},
              "where": {"lang": "en"}, "slices": ["lang"], "max_tokens": 64, "max_bad_rows": 3}],
    "backbone": [{"model": "embedded:minilm", "quantize": "none"}],
    "training": {"seeds": [0, 1], "epochs": 2.0, "learning_rate": [1e-3, 1e-4], "metric": "f1_macro", "patience": 2},
    "method": [{"kind": "lora", "rank": [4, 8], "target_modules": ["query"]}, {"kind": "full", "learning_rate": 1e-5},
               {"kind": "peft", "type": "loha", "options": {"r": 8}}, {"kind": "tfidf"}],
    "compare": {"cost": "serving"},
}  # fmt: skip
RECIPE_TEXT = b"""track = ["tensorboard"]
[data]
path = "x.csv"
text = "text"
label = "label"
split = { validation = 0.1, test = 0.2 }
[[backbone]]
model = "embedded:minilm"
[training]
seeds = [0, 1]
learning_rate = [1e-3, 1e-4]
[[method]]
kind = "lora"
rank = [4, 8]
"""
TOML_PIECES = [
    *(b"[", b"]", b"[[", b"=", b"'", b'"', b'"""', b"{", b"}", b"\n", b"\0", b"\xff", b"nan", b"inf", b"-", b"."),
    *(b"1e999", b"9" * 500, b"0x", b"2026-01-01", b"[method]\n", b"a.b.c = 1\n", b"\\ud800", b"[" * 300),
    *(b"[" * 5_000, b"9" * 5_000, b"0x" + b"f" * 5_000, b"1000000000", b"a." * 20_000, b"\\u0000", b"~nobody-at-all/"),
    *(b"-oops", b"rank = [" + b"1," * 2_000 + b"1]\n", b"epochs = [" + b"1," * 2_000 + b"1]\n", b"[[data]]\n" * 2_000),
]
CSV_PIECES = [
    *(b'"', b'""', b"'", b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\\"),
    *(b"a\n" * 20_000, b"positive", b"=1", b"\x1f\x8b", b"PAR1", b"x" * 3000, b"\xe2\x80\xa8"),
]
JSON_PIECES = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"',
        b"null",
        b"NaN",
        b"1e999",
        b"\\ud800",
        b"\\u0000",
        b"\n",
        b"\0",
        b"\xff",
    ),
    *(b"[],[]," * 20_000, b'"a":[' + b"[]," * 500 + b"[]],"),
    *(b'"text"', b'"label"', b"[" * 2000, b"9" * 5000, b"-", b"true"),
]


@executions(few=300, many=20_000)
def test_any_tables_are_a_recipe_or_an_error_for_the_user(executions: int, tmp_path: Path) -> None:
    def check(document: dict[str, Any]) -> None:
        try:
            resolved(recipe_from(document, tmp_path, "r.toml"))
        except UserError as error:
            assert_short(error)

    fuzz(mutated_document(RECIPE), executions, check)


@executions(few=300, many=20_000)
def test_any_bytes_are_a_recipe_or_an_error_for_the_user(executions: int, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            load_recipe(path)
        except UserError as error:
            assert_short(error)

    fuzz(mutated(RECIPE_TEXT, TOML_PIECES), executions, check)


def _table(suffix: str) -> bytes:
    rows = [(f"text {number} of, some \"words\" and 'more'", LABELS[number % len(LABELS)]) for number in range(9)]
    if suffix == "jsonl":
        return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()
    lines = ['"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in rows]
    return ("text,label\n" + "".join(lines)).encode()


@pytest.mark.parametrize(("suffix", "pieces"), [("csv", CSV_PIECES), ("jsonl", JSON_PIECES)])
@executions(few=300, many=20_000)
def test_any_bytes_are_data_or_an_error_for_the_user(
    executions: int, tmp_path: Path, suffix: str, pieces: list[bytes]
) -> None:
    path = tmp_path / f"file.{suffix}"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read(path)

    fuzz(mutated(_table(suffix), pieces), executions, check)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("fuzz") / "bundle", "lora")


@executions(few=300, many=14_000)
def test_any_manifest_is_read_or_refused(executions: int, bundle: Path, tmp_path: Path) -> None:
    whole = json.loads((bundle / MANIFEST).read_text())
    whole.pop("sha256")

    def check(document: dict[str, Any]) -> None:
        try:
            text = json.dumps({**document, "sha256": digest_of(document)})
        except RecursionError:
            return
        (tmp_path / MANIFEST).write_text(text)
        try:
            read_manifest(tmp_path)
        except UserError as error:
            assert_short(error)

    fuzz(mutated_document(whole), executions, check)


@executions(few=30, many=1_000)
def test_any_bundle_is_loaded_or_refused(executions: int, bundle: Path, tmp_path: Path) -> None:
    """The signed manifest, the model's configuration and PEFT's, changed together."""
    names = (MANIFEST, "model_config.json", "adapter_config.json")
    documents = {name: json.loads((bundle / name).read_text()) for name in names}
    documents[MANIFEST].pop("sha256")
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))

    def check(changed: dict[str, Any]) -> None:
        for name in names:
            (folder / name).write_text(json.dumps(changed.get(name, {})))
        try:
            rewrite(folder)
        except (KeyError, TypeError, AttributeError, OSError, ValueError):
            return
        try:
            load_bundle(folder)
        except UserError as error:
            assert_short(error)

    fuzz(mutated_document(documents), executions, check)


@executions(few=100, many=2_000)
def test_any_tokenizer_is_read_or_refused(executions: int, tmp_path: Path) -> None:
    whole = word_pieces()

    def check(document: dict[str, Any]) -> None:
        try:
            folder = written(tmp_path, document)
            read_tokenizer(folder)
        except (UserError, ValueError) as error:
            assert_short(error)
            return
        try:
            tokenized(folder, "good text", "a" * 1_000)
        except UserError as error:
            assert_short(error)

    fuzz(mutated_document(whole), executions, check)


@executions(few=200, many=5_000)
def test_any_tensor_file_is_read_or_refused(executions: int, bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    path = bundle / "adapter_model.safetensors"
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))

    def check(content: bytes) -> None:
        (folder / path.name).write_bytes(content)
        try:
            found = _read_tensors(folder, loaded.manifest, loaded.method, loaded.shape)
        except UserError:
            return
        assert found.keys() == loaded.tensors.keys()
        assert all(math.isfinite(float(tensor.sum())) for tensor in found.values())

    def with_header(header: dict[str, Any]) -> bytes:
        text = json.dumps(header).encode("utf-8", "replace")
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    headers = mutated_document(json.loads(whole[8 : 8 + size])).map(with_header)
    pieces = [b"\0", b"\xff" * 8, b"[", b"{", b'"F32"', b'"BF16"', b"9" * 20, b"\0\0\xc0\x7f"]
    fuzz(st.one_of(headers, mutated(whole, pieces)), executions, check)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A finished run of a baseline, without its report."""
    from fleetune.lab.runner import run

    folder = tmp_path_factory.mktemp("run")
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(60)))
    document = {
        "data": {"path": "texts.csv", "text": "text", "label": "label"},
        "backbone": {"model": str(tiny_bert)},
        "training": {"seeds": [0]},
        "method": [{"kind": "majority"}],
    }
    run(recipe_from(document, folder, "r.toml"), folder / "run")
    return folder / "run"


@executions(few=100, many=4_000)
def test_any_ledger_rows_are_results_or_a_clear_error(executions: int, run_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        # A seal would refuse whatever is changed.
        db.execute("DELETE FROM meta WHERE key = 'seal'")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        tables = {name: [column[1] for column in db.execute(f"PRAGMA table_info({name})")]
                  for name in ("meta", "trials", "attempts", "metrics", "artifacts")}  # fmt: skip
        documents = [json.loads(row[0]) for row in db.execute("SELECT value FROM meta")]
    whole = (folder / "ledger.sqlite").read_bytes()
    places = [(table, column) for table, columns in tables.items() for column in columns]
    texts = ["", "{", "[]", "{}", "null", "NaN", "3", '"x"', "[" * 5_000, "../../x", "/etc", "\0", "9" * 5_000]
    texts += [json.dumps(value) for value in ODD_VALUES] + [json.dumps(document)[:-1] for document in documents]
    numbers: list[Any] = [None, -1, 2**62, 0.5, 1e308, float("inf")]
    edits = st.lists(st.tuples(st.sampled_from(places), st.sampled_from([*texts, *numbers])), min_size=1, max_size=3)

    def check(changes: list[tuple[tuple[str, str], Any]]) -> None:
        (folder / "ledger.sqlite").write_bytes(whole)
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
            for (table, column), value in changes:
                try:
                    db.execute(f"UPDATE {table} SET {column} = ?", (value,))
                except (sqlite3.Error, OverflowError, UnicodeEncodeError):
                    continue
        try:
            load_results(folder)
        except FleetuneError as error:
            assert_short(error)

    fuzz(edits, executions, check)


@executions(few=100, many=3_000)
def test_any_bytes_are_a_ledger_or_a_clear_error(executions: int, run_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    whole = (folder / "ledger.sqlite").read_bytes()

    def check(content: bytes) -> None:
        (folder / "ledger.sqlite").write_bytes(content)
        try:
            load_results(folder)
        except FleetuneError as error:
            assert_short(error)

    fuzz(mutated(whole, [b"\0" * 64, b"\xff" * 64, b"{", b"SQLite format 3\0"]), executions, check)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path: Path, suffix: str) -> None:
    """Four times the file and a constant: its bytes, its text, the records, and each record's own text."""
    path = tmp_path / f"large.{suffix}"
    rows = [(f"text {number} " + "word " * 200, LABELS[number % len(LABELS)]) for number in range(8_000)]
    lines = [json.dumps({"text": a, "label": b}) if suffix == "jsonl" else f"{a},{b}" for a, b in rows]
    path.write_text(("" if suffix == "jsonl" else "text,label\n") + "\n".join(lines))
    code = f"""
import tracemalloc
from tests.data_files import read
from pathlib import Path
tracemalloc.start()
from fleetune.data.config import DataConfig
from fleetune.data.files import read_file
read_file(Path({str(path)!r}), "large", DataConfig(path={str(path)!r}, text="text", label="label"))
print(tracemalloc.get_traced_memory()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=250)
    peak, size = int(done.stdout), path.stat().st_size
    print(f"{suffix}: {size:,} bytes in the file, {peak:,} at the peak: {peak / size:.2f} times")
    assert peak < 4 * size + (64 << 20)


@pytest.mark.parametrize(
    ("suffix", "content", "bad"),
    [
        ("csv", "text,label\n" + "a\n" * 200_000, 200_000),
        ("jsonl", "[" + "[]," * 1_500_000 + '[]]\n{"text":"a","label":"b"}\n', 1),
        ("jsonl", '{"x":[' + "[]," * 1_500_000 + "[]]}", 1),
        ("jsonl", ('{"text":[' + "[]," * 5_000 + '[]],"label":"a"}\n') * 300, 0),
        ("jsonl", ('{"text":"a","label":[' + "[]," * 5_000 + "[]]}\n") * 300, 0),
        ("jsonl", ('{"text":{"a":[' + "[]," * 5_000 + '[]]},"label":"a"}\n') * 300, 0),
    ],
    ids=["ragged", "list", "unwanted", "text", "label", "table"],
)
def test_memory_of_a_hostile_file_is_bounded_too(tmp_path: Path, suffix: str, content: str, bad: int) -> None:
    """Rows of a letter, and values of two signs, took up to a hundred times the file."""
    path = tmp_path / f"hostile.{suffix}"
    path.write_text(content)
    code = f"""
import tracemalloc
from pathlib import Path
from fleetune.data.config import DataConfig
from fleetune.data.files import read_file
from fleetune.errors import DataError
config = DataConfig(path={str(path)!r}, text="text", label="label")
tracemalloc.start()
try:
    print(read_file(Path({str(path)!r}), "hostile", config).quarantine.number)
except DataError as error:
    print(error)
print(tracemalloc.get_traced_memory()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=250)
    *said, peak = done.stdout.splitlines()
    assert said == [str(bad)], "it must be read to its end"
    most, size = int(peak), path.stat().st_size
    print(f"{suffix}: {size:,} bytes in the file, {most:,} at the peak: {most / size:.2f} times")
    assert most < 4 * size + (64 << 20)
