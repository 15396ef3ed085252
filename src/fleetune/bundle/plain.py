"""The plain Hugging Face model that a bundle lies over, apart from everything the engine does to a backbone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fleetune.engine.backbone import Backbone
from fleetune.engine.model_config import read_model_config
from fleetune.engine.silence import quiet
from fleetune.engine.weights import check_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def labelled_config(
    backbone: Backbone, labels: list[str], problem_type: str, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedConfig:
    """Returns the backbone's configuration with the labels' names, the kind of problem, and a padding token."""
    config: Any = read_model_config(backbone.folder)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = problem_type
    if tokenizer is not None and backbone.architecture.pool == "last":
        # By another one than the tokenizer pads with, a decoder classifies no two texts at once, or by the wrong token.
        config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return config  # type: ignore[no-any-return]


def plain_model(folder: Path, config: Any) -> Any:
    """Returns the Hugging Face classification model in `folder`, in fp32, on the CPU, as anyone else would load it."""
    from transformers import AutoModelForSequenceClassification

    check_weights(folder)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=copy.deepcopy(config),
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    return model.eval()
