"""What a frozen model says of continuations and sentences, against plain Hugging Face loops without padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fleetune.data.arrays import GivenTexts
from fleetune.engine.backbone import load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.engine.vocabulary import load_vocabulary
from fleetune.engine.zero_shot import FrozenModel
from fleetune.errors import MethodError
from tests.tiny import tiny_folder

Folders = Callable[[str], Path]
PROMPTS = ["good film , it is", "the meal was very nasty and dull , it is", "we", "good film , it is"]
NAMES = [" good", " good film", " bad", " very sad day"]
PAIRS = GivenTexts(["a good day", "bad"], ["we found it very dull", "the place"])
TEXTS = GivenTexts([*PROMPTS, "happy"], None)


def frozen(folder: Path, max_tokens: int = 32, precision: str = "float64", layout: str = "auto") -> FrozenModel:
    config = BackboneConfig.model_validate({"model": str(folder), "layout": layout})
    return FrozenModel(load_backbone(config, 2, precision), load_tokenizer(config), max_tokens)


def plain_log_likelihood(model: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    """One text at a time, every logit in memory; `[CLS]`, which the tokenizer puts first, comes first here too."""
    first = tokenizer.cls_token_id
    before = [first, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    whole = [first, *tokenizer(prompt + continuation, add_special_tokens=False)["input_ids"]]
    assert whole[: len(before)] == before
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(dim=-1)
    return float(sum(logits[place - 1, whole[place]] for place in range(len(before), len(whole))))


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3", "mistral"])
def test_continuations_score_as_in_a_plain_loop(tiny_backbones: Folders, architecture: str, layout: str):
    folder = tiny_backbones(architecture)
    own = frozen(folder, layout=layout)
    assert own.generates and not own.encodes_sentences
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    scores, tokens = own.log_likelihoods(PROMPTS, NAMES)
    expected = [[plain_log_likelihood(model, own.tokenizer, prompt, name) for name in NAMES] for prompt in PROMPTS]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(tokens, np.tile([1, 2, 1, 3], (4, 1)))


@pytest.fixture
def untied(tmp_path: Path, tiny_backbones: Folders) -> Path:
    """A decoder whose head over the vocabulary is its own."""
    shutil.copytree(tiny_backbones("llama"), tmp_path / "untied")
    config = transformers.AutoConfig.from_pretrained(tiny_folder("llama"), tie_word_embeddings=False)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def test_a_head_of_its_own_is_read_from_the_checkpoint(untied: Path):
    own = frozen(untied)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float64).eval()
    expected = [[plain_log_likelihood(model, own.tokenizer, prompt, name) for name in NAMES] for prompt in PROMPTS]
    np.testing.assert_allclose(own.log_likelihoods(PROMPTS, NAMES)[0], expected, rtol=1e-5)


def test_a_decoder_without_any_head_does_not_generate(tmp_path: Path, tiny_backbones: Folders):
    folder = tmp_path / "headless"
    shutil.copytree(tiny_backbones("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert not frozen(folder).generates
    assert not frozen(tiny_backbones("bert")).generates


def test_the_vocabulary_is_summed_over_in_parts(tiny_backbones: Folders, monkeypatch: pytest.MonkeyPatch):
    vocabulary = load_vocabulary(frozen(tiny_backbones("gemma2")).backbone)
    assert vocabulary.softcap is not None
    states, which, targets = torch.randn(3, 32).double(), torch.tensor([0, 2, 2, 1]), torch.tensor([5, 99, 0, 7])
    whole = vocabulary.softcap * torch.tanh(states @ vocabulary.weight.T / vocabulary.softcap)
    expected = whole.log_softmax(dim=1)[which, targets]
    for size in (7, 100, 1000):
        monkeypatch.setattr("fleetune.engine.vocabulary.WORDS_AT_ONCE", size)
        torch.testing.assert_close(vocabulary.log_probabilities(states, which, targets), expected)


def test_a_token_that_the_continuation_changes_counts_as_its_own(tiny_backbones: Folders):
    own = frozen(tiny_backbones("llama"))
    # Alone "goo" is an unknown word, with the "d" it is "good".
    scores, tokens = own.log_likelihoods(["we found a goo"], ["d", "d film"])
    plain = own.log_likelihoods(["we found a"], [" good", " good film"])
    np.testing.assert_allclose(scores, plain[0])
    np.testing.assert_array_equal(tokens, [[1, 2]])
    with pytest.raises(MethodError, match="gives no tokens"):
        own.log_likelihoods(["we"], [" "])


def test_prompts_are_scored_alone_as_in_company(tiny_backbones: Folders):
    own = frozen(tiny_backbones("gemma2"), precision="fp32")
    together = own.log_likelihoods(PROMPTS * 20, NAMES)[0]
    alone = np.concatenate([own.log_likelihoods([prompt], NAMES)[0] for prompt in PROMPTS])
    np.testing.assert_allclose(together, np.tile(alone, (20, 1)), rtol=1e-4)


def test_a_chat_template_stands_around_the_prompt_and_one_is_needed(tiny_backbones: Folders):
    own = frozen(tiny_backbones("llama"))
    with pytest.raises(MethodError, match="no chat template"):
        own.log_likelihoods(["we"], ["good"], chat=True)
    own.tokenizer.chat_template = "[CLS] {{ messages[0].content }} [SEP] it is "
    scores, _ = own.log_likelihoods(["we found"], ["good"], chat=True)
    np.testing.assert_allclose(scores, own.log_likelihoods(["we found [SEP] it is"], [" good"])[0])


def test_a_prompt_that_is_too_long_for_the_model_says_so(tiny_backbones: Folders):
    with pytest.raises(MethodError, match=r"82 tokens, and this model takes 64; set a lower max_tokens"):
        frozen(tiny_backbones("llama")).log_likelihoods(["good " * 80], [" bad film"])


def test_texts_are_cut_where_the_tokenizer_cuts_them(tiny_backbones: Folders):
    own = frozen(tiny_backbones("bert"), max_tokens=6)
    cut = own.cut(GivenTexts(["a good film and a bad book", "fine day"], None))
    assert cut.first == ["a good film and", "fine day"]
    pairs = frozen(tiny_backbones("bert"), max_tokens=8).cut(GivenTexts(["a good film and a bad book"], ["fine day"]))
    assert (pairs.first, pairs.second) == (["a good film"], ["fine day"])


def plain_vectors(folder: Path, texts: GivenTexts, pooling: str) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    rows = []
    for row, first in enumerate(texts.first):
        encoded = tokenizer(first, None if texts.second is None else texts.second[row], return_tensors="pt")
        encoded.pop("token_type_ids", None)
        with torch.no_grad():
            states = model(**encoded).last_hidden_state[0]
        vector = {"mean": states.mean(dim=0), "cls": states[0], "last": states[-1]}[pooling]
        rows.append((vector / vector.norm()).numpy())
    return np.stack(rows)


def sentence_encoder(folder: Path, target: Path, pooling: str) -> Path:
    shutil.copytree(folder, target)
    (target / "modules.json").write_text("[]")
    keys = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text(json.dumps({key: name == pooling for name, key in keys.items()}))
    return target


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [("bert", "mean"), ("bert", "cls"), ("roberta", "mean"), ("modernbert", "mean"), ("qwen2", "last")],
)
def test_vectors_are_those_of_plain_pooling(
    tmp_path: Path, tiny_backbones: Folders, architecture: str, pooling: str, texts: GivenTexts
):
    folder = sentence_encoder(tiny_backbones(architecture), tmp_path / "encoder", pooling)
    own = frozen(folder)
    assert own.encodes_sentences
    # transformers computes rotary positions and some norms in fp32 whatever the model's type.
    np.testing.assert_allclose(own.vectors(texts), plain_vectors(folder, texts, pooling), atol=2e-6)


def test_reading_vectors_leaves_the_backbone_as_it_was(tiny_backbones: Folders):
    own = frozen(tiny_backbones("bert"))
    config: Any = own.backbone.model.config
    before = config._attn_implementation
    own.vectors(TEXTS)
    assert config._attn_implementation == before and own.backbone.layout == "packed"
