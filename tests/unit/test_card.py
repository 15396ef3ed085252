"""Model cards: accepted by the hub's own parser, true to the run, and harmless whatever names are in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy.special import softmax
from sklearn.metrics import precision_score

from fleetune.bundle.manifest import Manifest
from fleetune.calibration import fit_temperature
from fleetune.compare.summary import compare
from fleetune.errors import UserError
from fleetune.metrics import evaluate
from fleetune.report.card import render_card, write_card
from fleetune.report.markdown import code, code_block, escaped, one_line
from tests.unit.synthetic_runs import SyntheticRun, multi_class_run, multi_label_run, run, trial

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "`tick` **bold** [link](http://x.y) ![p](http://x/y.png)",
    "x\n---\n# head",
]


def manifest(of: SyntheticRun, place: int = 0, **changes: Any) -> Manifest:
    one = of.trials[place]
    temperature = fit_temperature(*one.predictions["validation"])
    scores = {split: evaluate(*one.predictions[split]) for split in one.predictions}
    fields = {
        "fleetune_version": "0.4.0",
        "form": "adapter",
        "labels": one.label_names,
        "multi_label": one.multi_label,
        "thresholds": [0.3] * len(one.label_names) if one.multi_label else None,
        "temperature": temperature,
        "pairs": False,
        "max_tokens": 64,
        "backbone": {
            "model": "google-bert/bert-base-uncased",
            "revision": None,
            "hash": "a" * 64,
            "model_type": "bert",
            "layout": "packed",
            "precision": "fp32",
        },
        "tokenizer": None,
        "head": ["classifier.weight"],
        "method": {"kind": one.kind, "settings": one.settings, "source": "a paper"},
        "training": {
            "trial": one.id,
            "name": one.method,
            "data": one.data,
            "seed": one.seed,
            "scores": scores,
            "training": one.training,
            "packages": {"torch": "2.9.1"},
        },
        "files": {},
    }
    return Manifest.model_validate(fields | changes)


def parsed(text: str) -> tuple[ModelCardData, str]:
    """Returns the metadata and the rendered HTML."""
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    return card.data, MarkdownIt("commonmark").enable("table").render(card.text)


@pytest.mark.parametrize("of", [multi_class_run(3), multi_label_run(3)], ids=["classes", "labels"])
def test_the_hubs_parser_reads_it_and_gives_it_back(of: SyntheticRun, tmp_path: Path) -> None:
    held = manifest(of)
    (tmp_path / "fleetune.json").write_bytes(held.to_bytes())
    card = ModelCard.load(write_card(tmp_path, of, compare(of.trials)))
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.base_model) == (
        "peft",
        "text-classification",
        "google-bert/bert-base-uncased",
    )
    assert {"fleetune", "lora", "bert"} <= set(data.tags or []) and data.language is None
    scores = held.training["scores"]["test"]
    results = {result.metric_name: result for result in data.eval_results or []}
    assert {name: result.metric_value for name, result in results.items()} == {
        name: pytest.approx(value) for name, value in zip(results, scores.values(), strict=True)
    }
    macro = results["F1 (macro)"]
    assert (macro.metric_type, macro.metric_args, macro.dataset_split) == ("f1", {"average": "macro"}, "test")
    assert (macro.dataset_name, macro.task_type) == ("tweets", "text-classification")
    again = ModelCardData(**yaml.safe_load(data.to_yaml()))
    assert again.to_dict() == data.to_dict()
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_means_over_seeds_are_of_what_each_seed_would_be_exported_as() -> None:
    of = multi_class_run(3)
    text = render_card(manifest(of), of, compare(of.trials))
    values = []
    for one in of.trials[:3]:
        labels, logits = one.predictions["test"]
        cooled = logits.astype(float) / fit_temperature(*one.predictions["validation"])
        values.append(evaluate(labels, cooled)["log_loss"])
    line = next(line for line in text.splitlines() if line.startswith("| log loss"))
    mean, interval = [cell.strip() for cell in line.split("|")[3:5]]
    low, high = map(float, interval.split(" to "))
    assert mean == f"{np.mean(values):.3f}" and low < np.mean(values) < high
    lower, upper = compare(of.trials[:3]).rows[0].interval or (0.0, 0.0)
    line = next(line for line in text.splitlines() if line.startswith("| F1 (macro)"))
    assert line.split("|")[4].strip() == f"{lower:.3f} to {upper:.3f}"
    assert "over 3 seeds" in text and "none is demonstrated to be the best" in text
    assert "one of 3 seeds" in text and "10 of the" not in text


def test_of_several_data_sets_a_card_says_what_holds_on_its_own() -> None:
    other = [replace(one, data="reviews", id=f"{one.id}-2") for one in multi_class_run(3).trials if one.kind != "full"]
    of = run([*multi_class_run(3).trials, *other])
    comparison = compare(of.trials)
    text = render_card(manifest(of), of, comparison)
    assert "Of the 6 configurations on its data none is demonstrated to be the best." in text
    reviews = comparison.verdicts["reviews"].reason
    assert comparison.verdicts["tweets"].reason != reviews and reviews[:60] not in text


def test_the_table_of_labels_follows_the_bundles_threshold() -> None:
    of = run([trial("lora", 0, ["no", "yes"])])
    held = manifest(of, positive_threshold=0.9)
    text = render_card(held, of)
    labels, logits = of.trials[0].predictions["test"]
    chosen = softmax(logits.astype(float) / held.temperature, axis=1)[:, 1] >= 0.9
    (line,) = [line for line in text.splitlines() if line.startswith("| yes |")]
    assert f"| 0.900 | {precision_score(labels, chosen):.3f} |" in line
    assert "one seed" in text and "| no | – |" in text


def test_data_of_the_run_are_on_the_card() -> None:
    of = multi_class_run()
    _, page = parsed(render_card(manifest(of), of))
    for wanted in (
        "1,360",
        "fleetune run recipe.toml",
        "embedded:tweets",
        "stand with more than one label",
        "arxiv.org/abs/1706.04599",
    ):
        assert wanted in page, wanted
    assert "2.9.1" in page and "222,723" in page


def test_without_its_run_it_says_what_the_bundle_knows() -> None:
    data, page = parsed(render_card(manifest(multi_class_run())))
    assert data.eval_results and "Nothing is written down of it." in page
    bare, page = parsed(render_card(manifest(multi_class_run(), training={}, temperature=1.0)))
    assert bare.eval_results is None and "No scores are known" in page and "not divided" in page


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("/home/somebody/secret/models/tiny", None),
        ("embedded:minilm", None),
        ("C:\\m\\x", None),
    ],
)
def test_only_a_name_on_the_hub_is_a_base_model_and_no_path_is_told(model: str, base: str | None) -> None:
    held = manifest(multi_class_run())
    held = held.model_copy(update={"backbone": held.backbone.model_copy(update={"model": model})})
    text = render_card(held)
    assert parsed(text)[0].base_model == base
    assert "somebody" not in text


@pytest.mark.parametrize(
    ("form", "library"),
    [("adapter", "peft"), ("merged", "transformers"), ("parameters", "fleetune"), ("delta", "fleetune")],
)
def test_each_form_says_who_can_load_it(form: str, library: str) -> None:
    text = render_card(manifest(multi_class_run(), form=form))
    assert parsed(text)[0].library_name == library
    assert ("PeftModel" in text) == (form == "adapter") and text.count("```python") == (1 if form == "delta" else 2)
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(block, "card", "exec")


def test_a_hub_data_set_has_its_name_there() -> None:
    of = replace(multi_class_run(), recipe_text='[[data]]\nname = "tweets"\nhf = "user/corpus/small"\n')
    result = (parsed(render_card(manifest(of), of))[0].eval_results or [])[0]
    assert (result.dataset_type, result.dataset_config) == ("user/corpus", "small")


def test_a_card_of_another_run_is_refused() -> None:
    of = multi_class_run()
    with pytest.raises(UserError, match="which run 'demo' does not have"):
        render_card(manifest(of), replace(of, trials=of.trials[1:]))


def test_hostile_names_stay_text() -> None:
    trials = [trial("lora", seed, HOSTILE, method=HOSTILE[0], data=HOSTILE[3]) for seed in range(2)]
    of = replace(run(trials), recipe_text=f"# ```\n{HOSTILE[0]}", command=HOSTILE[2], name=HOSTILE[0])
    of.audits[0].update(name=HOSTILE[3], warnings=[HOSTILE[2]])
    text = render_card(manifest(of), of, compare(of.trials))
    data, page = parsed(text)
    assert data.eval_results and data.model_name == one_line(f"{HOSTILE[0]} on {HOSTILE[3]}")
    assert "<script" not in page and "<img" not in page and "http://x" not in "".join(re.findall(r'href="[^"]*', page))
    assert re.findall(r"<h1>(.*)</h1>", page) == ["&lt;script&gt;alert(1)&lt;/script&gt; on x --- # head"]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)]
    assert "a|b" in [row[0] for row in rows if row]
    assert "<strong>" not in page


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for made in (str(escaped(text)), str(code(text))):
        tokens = reader.parse(f"| h |\n| --- |\n| {made} |\n")
        cells = [token for token in tokens if token.type == "inline"]
        assert len(cells) == 2, made
        shown = "".join(child.content for child in cells[1].children or [])
        assert shown.strip() == one_line(text).strip(), made
        assert {child.type for child in cells[1].children or []} <= {"text", "text_special", "code_inline"}


@given(st.text(alphabet="`~\n #a", max_size=40))
@settings(max_examples=100, deadline=None)
def test_nothing_ends_a_block_of_code(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"{code_block(text)}\n")
    assert [token.type for token in tokens] == ["fence"]
    assert tokens[0].content.rstrip() == text.rstrip()
