"""Code in a model card: it runs as it stands, in the bundle's folder."""

from __future__ import annotations

from dataclasses import dataclass

from fleetune.bundle.manifest import Manifest
from fleetune.engine.embedded import PREFIX

FLEETUNE_TEXTS = '["Type a text here."]'
FLEETUNE_PAIRS = '[("Type a text here.", "And its second text here.")]'


@dataclass(frozen=True)
class Usage:
    """How to use a bundle.

    Attributes:
        fleetune: Code with Fleetune.
        plain: Code with the libraries of the field alone, None where they do not know the method.
        libraries: Their names.
        remarks: What is to be known of the plain code.
    """

    fleetune: str
    plain: str | None
    libraries: str
    remarks: list[str]


def how_to_use(manifest: Manifest) -> Usage:
    """Returns code that predicts with the bundle, by Fleetune and, where they can, by PEFT or transformers."""
    fleetune = f"""\
from fleetune import TextClassifier

classifier = TextClassifier.load(".")  # this folder
texts = {FLEETUNE_PAIRS if manifest.pairs else FLEETUNE_TEXTS}
labels = classifier.predict(texts)
probabilities = classifier.predict_proba(texts)  # calibrated, in the order of classifier.classes_
"""
    rounded = manifest.backbone.quantize != "none" and manifest.form != "merged"
    if manifest.form == "delta":
        return Usage(fleetune, None, "", ["Neither PEFT nor transformers know this method; Fleetune alone reads it."])
    if rounded:
        remark = f"It belongs to weights that {manifest.backbone.quantize} rounded; Fleetune rounds them the same way."
        return Usage(fleetune, None, "", [remark])
    libraries = "PEFT and transformers" if manifest.form == "adapter" else "transformers"
    return Usage(fleetune, _plain_code(manifest), libraries, _remarks(manifest))


def _remarks(manifest: Manifest) -> list[str]:
    remarks = []
    if manifest.temperature != 1.0:
        remarks.append(
            "A pipeline of transformers does not divide by the temperature: its labels are the same, its scores are "
            "not calibrated."
            if not manifest.multi_label and manifest.positive_threshold is None
            else "A pipeline of transformers knows neither the temperature nor the thresholds."
        )
    if manifest.long_texts.long_texts != "head":
        remarks.append("This code cuts a long text at its beginning; Fleetune reads it as in training.")
    return remarks


def _plain_code(manifest: Manifest) -> str:
    return "\n".join([*_imports(manifest), "", *_model(manifest), "", *_prediction(manifest), ""])


def _imports(manifest: Manifest) -> list[str]:
    lines = ["import json", "from pathlib import Path", "", "import torch"]
    match manifest.form:
        case "adapter":
            lines += ["from peft import PeftModel"]
        case "parameters":
            lines += ["from safetensors.torch import load_file"]
        case _:
            pass
    config = [] if manifest.form == "merged" else ["AutoConfig"]
    names = ", ".join([*config, "AutoModelForSequenceClassification", "AutoTokenizer"])
    lines += [f"from transformers import {names}"]
    if _is_embedded(manifest):
        lines += ["from fleetune.engine.embedded import embedded_folder"]
    return lines


def _is_embedded(manifest: Manifest) -> bool:
    return manifest.form != "merged" and manifest.backbone.model.startswith(PREFIX)


def _model(manifest: Manifest) -> list[str]:
    lines = ['folder = "."  # this folder', 'facts = json.loads((Path(folder) / "fleetune.json").read_text("utf-8"))']
    if manifest.form == "merged":
        return [
            *lines,
            "model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()",
            *_tokenizer(manifest, "folder"),
        ]
    name = 'facts["backbone"]["model"]'
    revision = ', revision=facts["backbone"]["revision"]' if manifest.backbone.revision else ""
    lines += [
        f"backbone = {f'embedded_folder({name})' if _is_embedded(manifest) else name}  # a hub name or a folder",
        'config = AutoConfig.from_pretrained(Path(folder) / "model_config.json")',
        "model = AutoModelForSequenceClassification.from_pretrained(",
        f"    backbone, config=config, dtype=torch.float32{revision}",
        ")",
    ]
    if manifest.form == "adapter":
        lines += ["model = PeftModel.from_pretrained(model, folder).eval()"]
    else:
        lines += [
            'weights = load_file(Path(folder) / "parameters.safetensors")',
            "model.load_state_dict(weights, strict=False)",
            "model.eval()",
        ]
    return lines + _tokenizer(manifest, "backbone")


def _tokenizer(manifest: Manifest, otherwise: str) -> list[str]:
    place = otherwise if manifest.tokenizer is None else "folder"
    return [f"tokenizer = AutoTokenizer.from_pretrained({place})"]


def _prediction(manifest: Manifest) -> list[str]:
    texts = '["Type a text here."]'
    given = f'{texts}, ["And its second text here."]' if manifest.pairs else texts
    lines = [
        "inputs = tokenizer(",
        f"    {given},",
        "    truncation=True,",
        '    max_length=facts["max_tokens"],',
        "    padding=True,",
        '    return_tensors="pt",',
        ")",
        "with torch.no_grad():",
        '    logits = model(**inputs).logits.double() / facts["temperature"]',
    ]
    if manifest.multi_label:
        return [
            *lines,
            "probabilities = logits.sigmoid()",
            'limits = list(zip(facts["labels"], facts["thresholds"]))',
            "labels = [",
            "    [name for (name, limit), probability in zip(limits, row) if probability >= limit]",
            "    for row in probabilities.tolist()",
            "]",
        ]
    lines += ["probabilities = logits.softmax(-1)"]
    if manifest.positive_threshold is not None:
        return [
            *lines,
            'limit = facts["positive_threshold"]',
            'labels = [facts["labels"][int(row[1] >= limit)] for row in probabilities.tolist()]',
        ]
    return [*lines, 'labels = [facts["labels"][place] for place in probabilities.argmax(-1).tolist()]']
