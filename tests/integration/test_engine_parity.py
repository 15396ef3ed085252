"""A fleet's logits are those of the plain Hugging Face model, whatever the layout and the neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fleetune.engine.backbone import Backbone
from fleetune.engine.layout import pack_texts
from fleetune.errors import BackboneError
from tests.tiny import ARCHITECTURES, PADDED_ONLY, VARIANTS, padded_inputs, plain_model, random_tokens, tiny_backbone

TOKENS = random_tokens(10)
TEXTS = np.array([3, 1, 4, 0, 5, 9])
IN_FLOAT64_THROUGHOUT = {"bert", "distilbert", "roberta", "xlm-roberta", "electra", "albert", "camembert", "mpnet"}
"""The others' Hugging Face code computes rotary positions, norms and softmax in fp32 whatever the model's type."""


def head_of(model: Any, backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: model.get_parameter(name).detach() for name in backbone.shape.head}


def plain_logits(model: Any, texts: Any) -> torch.Tensor:
    # One text at a time: in float64 Hugging Face's eager softmax turns padding outside a sliding window into NaN.
    rows = [padded_inputs(TOKENS, [text], padding=0) for text in texts]
    with torch.no_grad():
        return torch.cat([model.eval()(**row).logits for row in rows])


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *VARIANTS])
def test_logits_equal_the_plain_model(architecture: str, layout: str) -> None:
    model = plain_model(architecture)
    if architecture in PADDED_ONLY and layout == "packed":
        with pytest.raises(BackboneError, match="changes this model's output"):
            tiny_backbone(architecture, layout=layout)
        chosen = tiny_backbone(architecture)
        assert chosen.layout == "padded"
        assert any("packed layout differs" in note for note in chosen.notes)
        return
    backbone = tiny_backbone(architecture, layout=layout)
    pack = pack_texts(TOKENS, [(0, TEXTS)], backbone.layout)
    got = backbone.logits(pack, {0: head_of(model, backbone)}, {})[0]
    expected = plain_logits(model, TEXTS)
    assert backbone.layout == layout
    tolerance = 1e-10 if architecture in IN_FLOAT64_THROUGHOUT else 2e-6
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "gemma2"])
def test_logits_equal_the_plain_model_in_fp32(architecture: str) -> None:
    model = plain_model(architecture, dtype=torch.float32)
    backbone = tiny_backbone(architecture, precision="fp32")
    pack = pack_texts(TOKENS, [(0, TEXTS)], backbone.layout)
    got = backbone.logits(pack, {0: head_of(model, backbone)}, {})[0]
    expected = plain_logits(model, TEXTS)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_text_does_not_see_its_neighbours(architecture: str) -> None:
    model = plain_model(architecture)
    backbone = tiny_backbone(architecture)
    head = head_of(model, backbone)
    together = backbone.logits(
        pack_texts(TOKENS, [(0, TEXTS), (1, TEXTS[::-1].copy())], "packed"), {0: head, 1: head}, {}
    )
    for row, text in enumerate(TEXTS):
        alone = backbone.logits(pack_texts(TOKENS, [(0, np.array([text]))], "packed"), {0: head}, {})[0][0]
        assert torch.allclose(together[0][row], alone, rtol=1e-10, atol=1e-10)
        assert torch.allclose(together[1][len(TEXTS) - 1 - row], alone, rtol=1e-10, atol=1e-10)


def test_bf16_is_near_fp32() -> None:
    model = plain_model("bert", dtype=torch.float32)
    rounded, exact = tiny_backbone(precision="bf16"), tiny_backbone(precision="fp32")
    pack = pack_texts(TOKENS, [(0, TEXTS)], "packed")
    low, high = (backbone.logits(pack, {0: head_of(model, backbone)}, {})[0] for backbone in (rounded, exact))
    assert low.dtype == torch.float32
    assert 0 < (low - high).abs().max() < 0.1 * high.abs().max()


def test_modernbert_mean_pooling(tmp_path: Any) -> None:
    import json
    import shutil

    from fleetune.engine.backbone import load_backbone
    from fleetune.engine.config import BackboneConfig
    from tests.tiny import tiny_folder

    folder = tmp_path / "mean"
    shutil.copytree(tiny_folder("modernbert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "classifier_pooling": "mean"}))
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, dtype=torch.float64, attn_implementation="eager"
    )
    expected = plain_logits(model, TEXTS)
    for layout in ("packed", "padded"):
        backbone = load_backbone(BackboneConfig.model_validate({"model": str(folder), "layout": layout}), 3, "float64")
        pack = pack_texts(TOKENS, [(0, TEXTS)], backbone.layout)
        got = backbone.logits(pack, {0: head_of(model, backbone)}, {})[0]
        assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()
