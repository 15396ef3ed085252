"""Writes docs/methods.md from what the methods say of themselves: `python -m tools.document_methods`."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from fleetune.lab.catalog import MethodEntry, Option, list_methods

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BERT_BASE = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
HEAD = """# Methods

Made by `python -m tools.document_methods` from the methods themselves; `fleetune methods` prints the same, and
`fleetune methods --model FOLDER` counts parameters for your model. Every option is a key of a `[[method]]` in a recipe,
and a list there is an axis of the grid. The head is trained and saved with every method.

Parameters are those of BERT-base (110 M) with two labels, the method's defaults, head included.
"""


def page() -> str:
    """Returns the text of docs/methods.md."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(BERT_BASE))
        entries = list_methods(Path(folder), num_labels=2)
    rows = [f"| [`{one.kind}`](#{one.kind}) | {one.summary} | {_count(one)} |" for one in entries]
    table = ["| kind | what it does | trainable |", "| --- | --- | ---: |", *rows]
    return "\n".join([HEAD, *table, "", *(_section(entry) for entry in entries)]).rstrip() + "\n"


def _count(entry: MethodEntry) -> str:
    return "–" if entry.parameters is None else f"{entry.parameters['trainable']:,}"


def _section(entry: MethodEntry) -> str:
    lines = [f"## {entry.kind}", entry.summary, ""]
    if entry.description:
        lines += [entry.description, ""]
    lines += [f"Source: {entry.source}.", ""]
    if entry.options:
        lines += ["| option | default | what it does |", "| --- | --- | --- |", *map(_row, entry.options), ""]
    return "\n".join(lines)


def _row(option: Option) -> str:
    default = "–" if option.default is None else f"`{json.dumps(option.default)}`"
    words = f" One of {', '.join(f'`{word}`' for word in option.choices)}." if option.choices else ""
    return f"| `{option.name}` | {default} | {_escaped(option.help)}{words} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} written")
