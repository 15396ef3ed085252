"""A decoder whose model or tokenizer knows no padding classifies padded batches rightly, here and elsewhere."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fleetune.bundle import load_bundle, save_bundle
from fleetune.data.dataset import Dataset
from fleetune.data.tokens import Tokens, tokenize_in_memory
from fleetune.engine.backbone import load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.engine.evaluation import trial_logits
from fleetune.errors import BackboneError
from fleetune.methods import get
from tests.integration.test_bundle import trained
from tests.tiny import tiny_folder

WORDS = ["good", "bad", "film", "book", "the", "a", "was", "very"]
TEXTS = ["the film was good", "a bad book", "good", "the book was very very very bad", "a film", "very good film"]
LABELS = ["no", "maybe", "yes"]
USUAL = {"bos_token": "<s>", "eos_token": "</s>"}
CASES: dict[str, tuple[dict[str, str], bool, str]] = {
    "none, texts end openly": (USUAL, False, "</s>"),
    "none, texts end in </s>": (USUAL, True, "<s>"),
    "the token that texts end in": ({**USUAL, "pad_token": "</s>"}, True, "<s>"),
    "none, but one is set aside": ({**USUAL, "extra": "<|right_pad|>"}, True, "<|right_pad|>"),
    "one beyond the embeddings": ({**USUAL, "pad_token": "<far>"}, True, "<s>"),
    "one of its own": ({**USUAL, "pad_token": "<unk>"}, True, "<unk>"),
}
"""What the tokenizer has to pad with: its special tokens, whether texts end in `</s>`, and what is to be chosen."""


def make_model(folder: Path, architecture: str, special: dict[str, str], ends: bool, padding: int | None) -> Path:
    """Returns a tiny decoder with a word-level tokenizer."""
    shutil.copytree(tiny_folder(architecture), folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "pad_token_id": padding}))
    names = ["<unk>", "<s>", "</s>", "<|right_pad|>"]
    vocabulary = {word: number for number, word in enumerate([*names, *WORDS])}
    if special.get("pad_token") == "<far>":
        vocabulary["<far>"] = 100
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    first = [special["bos_token"]] if "bos_token" in special else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *(["</s>"] if ends else [])],
        special_tokens=[(name, vocabulary[name]) for name in names[1:3]],
    )
    extra = [special[name] for name in special if name == "extra"]
    own = {name: token for name, token in special.items() if name != "extra"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=extra, padding_side="left", **own
    ).save_pretrained(folder)
    return folder


def tokens_of(tokenizer: Any) -> Tokens:
    nothing = np.zeros(len(TEXTS), dtype=np.int64)
    dataset = Dataset("texts", TEXTS, None, LABELS, nothing, {}, nothing, nothing, ["texts"])
    return tokenize_in_memory(dataset, tokenizer, 32)


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize("case", CASES)
def test_a_bundle_classifies_padded_batches_elsewhere(tmp_path: Path, case: str, merge: bool) -> None:
    """transformers#34055, #35352, #35909."""
    special, ends, chosen = CASES[case]
    padding = 2 if "pad_token" in special else None
    folder = make_model(tmp_path / "m", "llama", special, ends, padding)
    config = BackboneConfig(model=str(folder))
    backbone, tokenizer, method = load_backbone(config, 3, "fp32"), load_tokenizer(config), get("lora")()
    assert (tokenizer.pad_token, tokenizer.padding_side) == (chosen, "right")
    tokens, tensors = tokens_of(tokenizer), trained(backbone, method)
    expected = trial_logits(backbone, method, tensors, tokens)
    save_bundle(tmp_path / "b", backbone, method, tensors, LABELS, tokenizer=tokenizer, probe=tokens, merge=merge)

    reloaded = load_bundle(tmp_path / "b")
    assert tokens_of(reloaded.open_tokenizer()).input_ids.tolist() == tokens.input_ids.tolist()
    own = trial_logits(reloaded.open_backbone("fp32"), reloaded.method, reloaded.tensors, tokens)
    np.testing.assert_allclose(own, expected, atol=1e-5)
    model = elsewhere(tmp_path / "b", folder)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    for side in ("right", "left"):
        theirs.padding_side = side
        inputs = theirs(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
        assert not inputs["attention_mask"].all()
        with torch.no_grad():
            np.testing.assert_allclose(model(**inputs).logits.numpy(), expected, atol=2e-5, err_msg=side)


def elsewhere(bundle: Path, backbone: Path) -> Any:
    """Returns the bundle's model as transformers and PEFT put it together."""
    kind = transformers.AutoModelForSequenceClassification
    if not (bundle / "adapter_config.json").exists():
        return kind.from_pretrained(bundle).eval()
    config = transformers.AutoConfig.from_pretrained(bundle / "model_config.json")
    model = kind.from_pretrained(backbone, config=config, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, bundle).eval()


def test_a_tokenizer_without_any_padding_says_so(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "llama", {"eos_token": "</s>"}, True, None)
    with pytest.raises(BackboneError, match="no other special token to pad with"):
        load_tokenizer(BackboneConfig(model=str(folder)))


def test_an_encoder_keeps_its_padding(tiny_bert: Path) -> None:
    assert load_tokenizer(BackboneConfig(model=str(tiny_bert))).pad_token == "[PAD]"


def test_a_folder_without_a_tokenizer_is_not_given_one_that_knows_no_words() -> None:
    """transformers makes up a tokenizer of five special tokens, for which every text is [UNK]."""
    with pytest.raises(BackboneError, match=r"holds no tokenizer \(tokenizer\.json\)"):
        load_tokenizer(BackboneConfig(model=str(tiny_folder("bert"))))


def test_a_tokenizer_of_special_tokens_alone_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("bert"), tmp_path / "m")
    (tmp_path / "m" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(BackboneError, match="knows no words"):
        load_tokenizer(BackboneConfig(model=str(tmp_path / "m")))


@pytest.mark.parametrize("architecture", ["deberta-v2", "albert"])
def test_a_sentencepiece_tokenizer_loads_from_its_fast_form_and_says_what_the_slow_one_needs(
    architecture: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder(architecture), tmp_path / "m")
    slow = "spm.model" if architecture == "deberta-v2" else "spiece.model"
    (tmp_path / "m" / slow).write_bytes(b"\x0a\x00")
    if find_spec("sentencepiece") is None:
        with pytest.raises(BackboneError, match=rf"{slow} alone.*\n.*pip install sentencepiece"):
            load_tokenizer(BackboneConfig(model=str(tmp_path / "m")))
    pieces = [("[PAD]", 0.0), ("[UNK]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[MASK]", 0.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in WORDS]
    backend = Tokenizer(models.Unigram(pieces, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    template = {"special_tokens": [("[CLS]", 2), ("[SEP]", 3)]}
    backend.post_processor = processors.TemplateProcessing(single=["[CLS]", "$A", "[SEP]"], **template)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path / "m")
    tokenizer = load_tokenizer(BackboneConfig(model=str(tmp_path / "m")))
    assert tokenizer("good film")["input_ids"] == [2, 6, 8, 3]
