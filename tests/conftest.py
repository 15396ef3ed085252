"""Tiny models with tokenizers, and small labelled files that they can learn."""

from __future__ import annotations

import csv
import gc
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

GOOD = ["good", "great", "fine", "lovely", "superb", "happy"]
BAD = ["bad", "awful", "poor", "nasty", "dull", "sad"]
PLAIN = ["the", "a", "film", "book", "meal", "was", "is", "and", "very", "quite", "it", "we", "found", "day", "place"]
SPECIAL = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}

WriteTexts = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def unfrozen_at_the_end() -> Iterator[None]:
    """Gives back what `few_objects_to_look_through` took: libraries look for what they leaked."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_look_through() -> None:
    """Takes what lives already off the collector's hands: libraries and collected tests are millions of objects.

    Each run begins with a collection, which else takes longer than the run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Lets SIGINT interrupt, as in the foreground: a shell starts what runs in the background with it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_backbones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns what makes a model folder with a tokenizer: two layers, 32 wide, random weights."""
    made: dict[str, Path] = {}

    def folder_of(architecture: str) -> Path:
        if architecture not in made:
            from tests.tiny import tiny_folder

            folder = tmp_path_factory.mktemp("models") / f"tiny-{architecture}"
            shutil.copytree(tiny_folder(architecture), folder)
            _save_tokenizer(folder)
            made[architecture] = folder
        return made[architecture]

    return folder_of


@pytest.fixture(scope="session")
def tiny_bert(tiny_backbones: Callable[[str], Path]) -> Path:
    """Returns the folder of a tiny BERT with a tokenizer."""
    return tiny_backbones("bert")


@pytest.fixture
def write_texts(tmp_path: Path) -> WriteTexts:
    """Returns what writes a CSV of labelled texts: the label follows from the words."""

    def write(name: str = "reviews.csv", texts: int = 120, labels: tuple[str, ...] = ("neg", "pos")) -> Path:
        rng = random.Random(0)
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(texts):
                label = labels[number % len(labels)]
                words = [
                    *rng.choices(PLAIN, k=rng.randint(3, 8)),
                    *rng.choices([BAD, GOOD, PLAIN][number % len(labels)], k=2),
                ]
                rng.shuffle(words)
                writer.writerow([" ".join([*words, PLAIN[number % 15], PLAIN[number // 15 % 15]]), label])
        return path

    return write


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_bert: Path, write_texts: WriteTexts) -> Callable[..., Path]:
    """Returns what writes a recipe over a tiny BERT and a small file; keywords replace whole tables."""

    def write(name: str = "quick.toml", **tables: Any) -> Path:
        import tomli_w

        document: dict[str, Any] = {
            "data": {"path": write_texts().name, "leaks": "drop", "split": {"validation": 0.2, "test": 0.2}},
            "backbone": {"model": str(tiny_bert), "name": "tiny"},
            "training": {"epochs": 1, "precision": "fp32", "learning_rate": 1e-2, "seeds": 2, "metric": "accuracy"},
            "method": [{"kind": "lora", "rank": 2}, {"kind": "head"}],
        }
        path = tmp_path / name
        path.write_text(tomli_w.dumps(document | tables), encoding="utf-8")
        return path

    return write


def _save_tokenizer(folder: Path) -> None:
    """Writes a word-level tokenizer whose padding token has the id that the model's configuration names."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    padding = json.loads((folder / "config.json").read_text())["pad_token_id"]
    special = SPECIAL["roberta" if padding == 1 else "bert"]
    first, last, unknown = ("<s>", "</s>", "<unk>") if padding == 1 else ("[CLS]", "[SEP]", "[UNK]")
    vocabulary = {word: number for number, word in enumerate([*special, *GOOD, *BAD, *PLAIN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[padding],
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        model_max_length=64,
    ).save_pretrained(folder)
