"""bf16 and fp32 give results that the spread over seeds does not tell apart, on real texts and a real backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetune.data.config import DataConfig
from fleetune.data.prepare import prepare
from fleetune.data.tokens import tokenize_in_memory
from fleetune.engine.backbone import load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.events import Finished
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.trial import TrialSpec
from fleetune.methods import get
from fleetune.metrics import evaluate

SEEDS = 8
MINILM = BackboneConfig(model="embedded:minilm")
TWEETS = {"text": "text", "label": "sentiment", "where": {"confidence": ">= 0.9"}, "leaks": "drop"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "settings", "texts", "max_tokens", "metric"),
    [("tweets", TWEETS, 1600, 64, "accuracy"), ("bbc", {"leaks": "drop"}, 500, 64, "log_loss")],
)
def test_bf16_ends_where_fp32_does(name: str, settings: dict[str, Any], texts: int, max_tokens: int, metric: str):
    config = {"path": f"embedded:{name}", **settings, "sample": texts, "split": {"validation": 0.0, "test": 0.6}}
    dataset = prepare(DataConfig.model_validate(config), Path()).dataset
    tokens = tokenize_in_memory(dataset, load_tokenizer(MINILM), max_tokens)
    data = FleetData(tokens, dataset.labels, dataset.splits)
    fp32, bf16 = (_final(data, dataset.num_labels, precision, metric) for precision in ("fp32", "bf16"))
    standard_error = fp32.std(ddof=1) / np.sqrt(SEEDS)
    assert standard_error > 0
    assert abs(bf16.mean() - fp32.mean()) < standard_error, (fp32, bf16)


def _final(data: FleetData, num_labels: int, precision: str, metric: str) -> NDArray[np.float64]:
    """Returns the metric `(seeds,)` on test of eight LoRA trials that differ in their seed alone."""
    training = TrainingConfig(epochs=2, learning_rate=3e-3, warmup_ratio=0.1)
    specs = [TrialSpec(f"seed-{seed}", get("lora")(dropout=0.1), training, seed) for seed in range(SEEDS)]
    events = Fleet(load_backbone(MINILM, num_labels, precision), specs, data).train()
    logits = {event.trial: event.predictions["test"] for event in events if isinstance(event, Finished)}
    labels = data.labels[data.splits["test"]]
    scores = np.array([evaluate(labels, logits[spec.id])[metric] for spec in specs])
    # Trials that learned nothing would agree for no good reason.
    majority = np.bincount(labels).max() / len(labels)
    assert np.mean([evaluate(labels, logits[spec.id])["accuracy"] for spec in specs]) > majority + 0.1
    return scores
