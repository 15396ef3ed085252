"""Trained parameters from `config.json` alone, against published counts, and against the tensors that are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetune.cli.entry import run_command_line
from fleetune.engine.shape import shape_from_config
from fleetune.engine.starts import plan_parameters
from fleetune.methods import all_methods, get
from tests.tiny import ARCHITECTURES, tiny_backbone, tiny_folder

BERT_BASE = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 28996,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
}
DEBERTA_V3_BASE = {
    "model_type": "deberta-v2",
    "vocab_size": 128100,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "pooler_hidden_size": 768,
}
MPNET_BASE = {"model_type": "mpnet", "vocab_size": 30527, "max_position_embeddings": 514}
PHI_2 = {"model_type": "phi", "hidden_size": 2560, "num_hidden_layers": 32, "intermediate_size": 10240}
PHI_3_MINI = {"model_type": "phi3"}
ALL_SIX = ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]


def count(tmp_path: Path, config: dict[str, Any], kind: str, settings: dict[str, Any]) -> tuple[int, int]:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_from_config(tmp_path, 2)
    return get(kind)(**settings).expected_parameters(shape), shape.head_parameters


PUBLISHED: list[tuple[str, dict[str, Any], int]] = [
    ("lora", {"rank": 8}, 296_450),
    ("lora", {"rank": 16}, 591_362),
    ("lora", {"rank": 32}, 1_181_186),
    ("lora", {"rank": 1, "target_modules": ["query"]}, 19_970),
    ("lora", {"rank": 4, "target_modules": ["query"]}, 75_266),
    ("lora", {"rank": 16, "target_modules": ["query"]}, 296_450),
    ("lora", {"rank": 8, "dora": True}, 294_912 + 24 * 768 + 1_538),
    ("lora", {"rank": 8, "bias": "all"}, 294_912 + 102_912 + 1_538),
    ("lora", {"rank": 8, "bias": "lora_only"}, 294_912 + 24 * 768 + 1_538),
    ("lora", {"rank": 8, "start": "pissa"}, 296_450),
    ("lora", {"rank": 8, "layers": [-1, 0]}, 2 * 2 * 8 * 2 * 768 + 1_538),
    ("adalora", {"rank": 12}, 24 * (2 * 12 * 768 + 12) + 1_538),
    ("vera", {"rank": 256}, 24 * (256 + 768) + 1_538),
    ("bitfit", {}, 104_450),
    ("bitfit", {"biases": ["query", "feed_forward_in"]}, 12 * (768 + 3072) + 1_538),
    ("head", {}, 1_538),
    ("norm", {}, 25 * 2 * 768 + 1_538),
    ("full", {}, 109_483_778),
    ("houlsby", {}, 12 * 2 * (2 * 64 * 768 + 768 + 64) + 1_538),
    ("houlsby", {"bottleneck_size": 8, "layers": [0, -1]}, 2 * 2 * (2 * 8 * 768 + 768 + 8) + 1_538),
    ("prompt", {}, 20 * 768 + 1_538),
    ("prompt", {"num_virtual_tokens": 100, "initial": "normal"}, 100 * 768 + 1_538),
    ("prefix", {}, 12 * 20 * 2 * 768 + 1_538),
    ("pfeiffer", {}, 12 * (2 * 48 * 768 + 768 + 48) + 1_538),
    ("pfeiffer", {"bottleneck_size": 256}, 12 * (2 * 256 * 768 + 768 + 256) + 1_538),
    ("full", {"layer_decay": 0.9}, 109_483_778),
    ("full", {"frozen_layers": 12}, 768 * 768 + 768 + 1_538),
]
"""Trainable parameters over BERT-base with two labels, head included."""


@pytest.mark.parametrize(("kind", "settings", "trainable"), PUBLISHED)
def test_bert_base(tmp_path: Path, kind: str, settings: dict[str, Any], trainable: int) -> None:
    assert sum(count(tmp_path, BERT_BASE, kind, settings)) == trainable


@pytest.mark.parametrize(("kind", "settings", "trainable"), PUBLISHED)
def test_bert_base_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, settings: dict[str, Any], trainable: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BERT_BASE))
    method = json.dumps({"kind": kind, **settings})
    arguments = ["methods", "--model", str(tmp_path), "--num-labels", "2", "--method", method, "--json"]
    assert run_command_line(arguments) == 0
    (found,) = json.loads(capsys.readouterr().out)["methods"]
    assert found["kind"] == kind
    assert settings.items() <= found["settings"].items()
    assert all(option["default"] == get(kind)().settings[option["name"]] for option in found["options"])
    assert found["parameters"]["trainable"] == trainable
    assert found["parameters"]["adapter"] + found["parameters"]["head"] == trainable


@pytest.mark.parametrize(
    ("kind", "settings", "adapter"),
    [
        ("lora", {"rank": 64, "target_modules": ALL_SIX[:4]}, 2_359_296),
        ("ia3", {"target_modules": ALL_SIX, "feedforward_modules": ["lin1", "lin2"]}, 41_472),
    ],
)
def test_distilbert_without_head(tmp_path: Path, kind: str, settings: dict[str, Any], adapter: int) -> None:
    head = 768 * 768 + 768 + 2 * 768 + 2
    assert count(tmp_path, DISTILBERT, kind, settings) == (adapter, head)


LAYERS, DENSE, BIASES = 12, 768 * 768 + 768, 4 * 768 + 2 * 768 + 3072 + 768
OTHERS: list[tuple[str, dict[str, Any], str, dict[str, Any], int, int]] = [
    # 184,423,682 is the whole DebertaV2ForSequenceClassification, as it is printed for microsoft/deberta-v3-base.
    ("deberta-v3-base", DEBERTA_V3_BASE, "full", {}, 184_423_682 - DENSE - 1_538, DENSE + 1_538),
    ("deberta-v3-base", DEBERTA_V3_BASE, "lora", {"rank": 8}, LAYERS * 2 * 8 * 2 * 768, DENSE + 1_538),
    ("deberta-v3-base", DEBERTA_V3_BASE, "ia3", {}, LAYERS * (768 + 768 + 3072), DENSE + 1_538),
    ("deberta-v3-base", DEBERTA_V3_BASE, "bitfit", {}, LAYERS * BIASES + 2 * 768, DENSE + 1_538),
    ("deberta-v3-base", DEBERTA_V3_BASE, "norm", {}, (2 * LAYERS + 2) * 2 * 768, DENSE + 1_538),
    # 109,486,464 is the whole MPNetModel, with a pooler that classification does not use.
    ("mpnet-base", MPNET_BASE, "full", {}, 109_486_464 - DENSE, DENSE + 1_538),
    ("mpnet-base", MPNET_BASE, "lora", {"rank": 8}, LAYERS * 2 * 8 * 2 * 768, DENSE + 1_538),
    ("mpnet-base", MPNET_BASE, "ia3", {}, LAYERS * (768 + 768 + 3072), DENSE + 1_538),
    # Published with the vocabulary head, which is not loaded here.
    ("phi-2", PHI_2, "full", {}, 2_779_683_840 - 51_200 * (2_560 + 1), 2 * 2_560),
    ("phi-2", PHI_2, "lora", {"rank": 8}, 32 * 2 * 8 * 2 * 2_560, 2 * 2_560),
    ("phi-2", PHI_2, "bitfit", {}, 32 * (4 * 2_560 + 10_240 + 2_560 + 2_560) + 2_560, 2 * 2_560),
    ("phi-3-mini", PHI_3_MINI, "full", {}, 3_821_079_552 - 32_064 * 3_072, 2 * 3_072),
    ("phi-3-mini", PHI_3_MINI, "lora", {"rank": 8}, 32 * 8 * (3_072 + 3 * 3_072), 2 * 3_072),
    ("phi-3-mini", PHI_3_MINI, "ia3", {}, 32 * (3 * 3_072 + 8_192), 2 * 3_072),
]  # fmt: skip
"""Name, configuration, method and settings; trained parameters in the backbone and in a head for two labels."""


@pytest.mark.parametrize(("name", "config", "kind", "settings", "adapter", "head"), OTHERS)
def test_other_families(
    tmp_path: Path,
    name: str,
    config: dict[str, Any],
    kind: str,
    settings: dict[str, Any],
    adapter: int,
    head: int,
) -> None:
    assert count(tmp_path, config, kind, settings) == (adapter, head), name


@pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES, "deberta-v2 with a convolution", "gemma3 with images", "phi with norms of heads"]
)
def test_expected_equals_made(architecture: str) -> None:
    backbone = tiny_backbone(architecture, precision="fp32")
    shape = shape_from_config(tiny_folder(architecture), 3)
    for kind, method in all_methods().items():
        if kind == "bitfit" and not any("bias" in site.shapes for site in backbone.shape.sites):
            continue
        plans = plan_parameters(backbone, method(), seed=0)
        made = sum(plan.initial().numel() for plan in plans.values() if plan.trained)
        assert made == method().expected_parameters(backbone.shape) + backbone.shape.head_parameters, kind
        if architecture != "modernbert":  # its prediction head may be in the checkpoint, and here is not
            assert method().expected_parameters(shape) + shape.head_parameters == made, kind


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_trains_every_parameter_of_the_backbone(architecture: str) -> None:
    backbone = tiny_backbone(architecture, precision="fp32")
    base = backbone.model.get_submodule(backbone.architecture.base)
    every = sum(parameter.numel() for parameter in base.parameters())
    pooler = sum(parameter.numel() for name, parameter in base.named_parameters() if name.startswith("pooler"))
    stages = {stage.name for stage in backbone.architecture.stages}
    used = every if any("pooler" in name for name in stages) else every - pooler
    outside = sum(
        parameter.numel()
        for name, parameter in backbone.model.named_parameters()
        if not name.startswith(backbone.architecture.base + ".") and name not in backbone.shape.head
    )
    assert get("full")().expected_parameters(backbone.shape) == used + outside
