"""What is particular to some families of models: relative positions, norms of heads, a side for padding, odd files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetune.bundle import load_bundle, save_bundle
from fleetune.engine.architecture import ARCHITECTURES as KNOWN
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.config import BackboneConfig
from fleetune.engine.dropout import FleetDropout, Stream
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.events import Finished, Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.layout import pack_texts
from fleetune.errors import BackboneError
from fleetune.methods import get
from tests.integration.test_bundle import LABELS, TOKENS, loaded_by_others, plain_logits, trained
from tests.integration.test_exact_gradients import (
    TEXTS,
    fleet_results,
    gradient_differences,
    moved,
    plain_results,
)
from tests.tiny import (
    ARCHITECTURES,
    PADDED_ONLY,
    VARIANTS,
    attached,
    fitting_methods,
    mixed_specs,
    padded_inputs,
    plain_model,
    random_data,
    relative_difference,
    spec,
    tiny_backbone,
    tiny_folder,
)

DATA = random_data()
DECODERS = [name for name in (*ARCHITECTURES, *VARIANTS) if KNOWN[name.split()[0]].pool == "last"]
TRAINING: dict[str, Any] = {"max_steps": 12, "learning_rate": 3e-3, "evaluate_every": 6, "adam_epsilon": 1e-3}


@pytest.mark.parametrize(
    "architecture",
    ["mpnet", "phi", "phi3", *(name for name in (*ARCHITECTURES, *VARIANTS) if name.startswith("deberta"))],
)
def test_gradients_are_those_of_hugging_face(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    model = plain_model(architecture).eval()
    # Rotary positions, RMS norms and eager softmax are fp32 in Hugging Face's code, and DeBERTa's scale is.
    tolerance = 1e-10 if architecture == "mpnet" else 5e-6
    # What a family changes is its modules; how each method acts on them is held to plain models elsewhere.
    for kind in sorted({"lora", "ia3", "bitfit", "norm", "full", "head"} & set(fitting_methods(backbone))):
        one = spec(kind)
        tensors = moved(backbone, one)
        logits, gradients = fleet_results(backbone, one, tensors)
        plain_logits, plain_gradients = plain_results(model, backbone, one, tensors)
        assert relative_difference(logits, plain_logits) <= tolerance, kind
        for name, difference in gradient_differences(gradients, plain_gradients).items():
            assert difference <= tolerance, (kind, name)


def dropping(kind: str, architecture: str) -> tuple[Backbone, Any]:
    """Returns a backbone, all of whose dropout is 0.3, and a method that drops too where it can."""
    backbone = tiny_backbone(architecture, layout="padded")
    for module in backbone.model.modules():
        if isinstance(module, FleetDropout):
            module.p = 0.3
    return backbone, spec(kind, 3, {"dropout": 0.2, "target_modules": ("all-linear",)} if kind == "lora" else {})


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    "architecture", ["bert", "phi", *sorted(PADDED_ONLY - {"gemma both ways", "gemma2 both ways"})]
)
def test_what_is_dropped_in_a_text_does_not_depend_on_which_others_share_its_pack(architecture: str, kind: str) -> None:
    backbone, one = dropping(kind, architecture)
    tensors = moved(backbone, one)
    stream = Stream(seed=3, step=5, micro_step=0)
    whole, gradients = fleet_results(backbone, one, tensors, stream)
    apart, sums = [], {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with attached(backbone, {0: (one.method, tensors)}) as heads:
        for first, last in ((0, 1), (1, 4), (4, 6)):
            pack = pack_texts(DATA.tokens, [(0, TEXTS[first:last])], "padded", [first])
            logits = backbone.logits(pack, heads, {0: stream})[0]
            labels = torch.from_numpy(DATA.labels[TEXTS[first:last]])
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / len(TEXTS)
            for name, part in zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True):
                sums[name] += part
            apart.append(logits.detach().numpy())
        again = backbone.logits(pack_texts(DATA.tokens, [(0, TEXTS)], "padded"), heads, {0: stream})[0]
        other = backbone.logits(pack_texts(DATA.tokens, [(0, TEXTS)], "padded"), heads, {0: Stream(3, 6, 0)})[0]
        without = backbone.logits(pack_texts(DATA.tokens, [(0, TEXTS)], "padded"), heads, {})[0]
    assert relative_difference(np.concatenate(apart), whole) <= 1e-10
    assert max(gradient_differences(sums, gradients).values()) <= 1e-6
    assert torch.equal(again.detach(), torch.from_numpy(whole))
    for changed in (other, without):
        assert relative_difference(changed.detach().numpy(), whole) > 0.01


@pytest.mark.parametrize("architecture", ["mpnet", "deberta-v2"])
def test_attention_alone_drops_weights_at_its_rate(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    for name, module in backbone.model.named_modules():
        if isinstance(module, FleetDropout):
            own = name.endswith(("attn.dropout", "self.dropout"))
            module.p = 0.5 if own else 0.0
    head = {name: torch.ones(shape, dtype=torch.float64) for name, shape in backbone.shape.head.items()}
    pack = pack_texts(DATA.tokens, [(0, TEXTS)], "padded")
    base = backbone.model.get_submodule(backbone.architecture.base)
    layer = base.get_submodule("encoder.layer.0.attention")
    seen: list[torch.Tensor] = []
    value = layer.get_submodule("attn.v" if architecture == "mpnet" else "self.value_proj")
    value.register_forward_hook(lambda *_: torch.ones(*pack.input_ids.shape, 32, dtype=torch.float64))
    after = layer.get_submodule("attn.o" if architecture == "mpnet" else "output.dense")
    after.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    sums = []
    for step in range(40):
        backbone.logits(pack, {0: head}, {0: Stream(0, step, 0, head_rate=0.0)})
        sums.append(seen.pop()[pack.attention_mask.bool()])  # type: ignore[union-attr]
    drawn = torch.stack(sums)
    # Values are one, so each output is the sum of a row's weights: one without dropout, and on average with it.
    assert (drawn - 1.0).abs().max() > 0.2
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("architecture", ["mpnet", "deberta-v2", "deberta-v2 with a convolution", "phi", "phi3"])
def test_alone_equals_together(architecture: str) -> None:
    specs = mixed_specs(architecture, **TRAINING)
    together = Fleet(tiny_backbone(architecture), specs, DATA)
    events = list(together.train())
    for number, one in enumerate(specs):
        single = Fleet(tiny_backbone(architecture), [one], DATA)
        alone = list(single.train())
        losses = [[e.loss for e in run if isinstance(e, Stepped) and e.trial == one.id] for run in (events, alone)]
        assert len(losses[1]) == 12
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
        a, b = (next(e for e in run if isinstance(e, Finished) and e.trial == one.id) for run in (events, alone))
        np.testing.assert_allclose(a.predictions["test"], b.predictions["test"], rtol=1e-5, atol=1e-6)
        for name, tensor in single.trials[0].parameters.state().items():
            torch.testing.assert_close(together.trials[number].parameters.state()[name], tensor, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("architecture", ["gemma3_text", "qwen3", "phi with norms of heads", "phi3"])
def test_trials_that_share_a_pack_do_not_mix(architecture: str) -> None:
    """On a GPU they do share packs; norms of heads see their tokens in another dimension than other modules."""
    backbone = tiny_backbone(architecture, layout="packed")
    trials = {slot: (one.method, moved(backbone, one)) for slot, one in enumerate(mixed_specs(architecture))}
    # As many tokens and texts as heads, as far as one can: a shape must not be taken for another.
    batches = {slot: np.roll(TEXTS, slot)[: 2 + slot % 3] for slot in trials}
    with attached(backbone, trials) as heads, torch.no_grad():
        together = backbone.logits(pack_texts(DATA.tokens, list(batches.items()), "packed"), heads, {})
        for slot, texts in batches.items():
            alone = backbone.logits(pack_texts(DATA.tokens, [(slot, texts)], "packed"), heads, {})[slot]
            assert relative_difference(together[slot].numpy(), alone.numpy()) <= 1e-9


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_is_the_plain_one_whatever_side_is_padded(architecture: str, side: str) -> None:
    """transformers#35909, #35352: the last token by its place in the padded row is padding, or another text's."""
    model = plain_model(architecture, dtype=torch.float32).eval()
    backbone = tiny_backbone(architecture, precision="fp32")
    head = {name: model.get_parameter(name).detach() for name in backbone.shape.head}
    got = backbone.logits(pack_texts(DATA.tokens, [(0, TEXTS)], backbone.layout), {0: head}, {})[0]
    inputs = padded_inputs(DATA.tokens, TEXTS, 0)
    if side == "left":
        lengths = inputs["attention_mask"].sum(dim=1)
        for name, rows in inputs.items():
            longest = rows.shape[1]
            shifted = [row.roll(int(longest - length)) for row, length in zip(rows, lengths, strict=True)]
            inputs[name] = torch.stack(shifted)
        # Without positions a plain model counts padding: for rotary ones all the same, but for what is cached.
    with torch.no_grad():
        expected = model(**inputs).logits
    assert (got - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_texts_of_any_length_where_positions_are_relative_alone() -> None:
    assert tiny_backbone("deberta-v2").max_positions is None
    assert tiny_backbone("deberta-v2 with apart projections").max_positions == 64
    assert tiny_backbone("mpnet").max_positions == 64
    assert tiny_backbone("phi").max_positions == 64
    assert tiny_backbone("gemma3 with images").max_positions == 64


def test_positions_that_follow_the_longest_text_of_a_batch_bound_the_length() -> None:
    """Phi-3's long factors come in for a whole batch as soon as one of its texts is long."""
    assert tiny_backbone("phi3 with long texts").max_positions == 64


def test_gemma3_with_images_keeps_its_text_part_alone() -> None:
    backbone = tiny_backbone("gemma3 with images")
    names = [name for name, _ in backbone.model.named_parameters()]
    assert backbone.shape.backbone_parameters == sum(
        parameter.numel() for name, parameter in backbone.model.named_parameters() if name not in backbone.shape.head
    )
    assert all(name.startswith(("model.language_model.", "score.")) for name in names)
    assert get("lora")().sites(backbone.shape)[0].name == "model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("kind", ["qwen2_moe", "gpt2", "deberta"])
def test_an_unknown_family_lists_those_that_are_known(tmp_path: Any, kind: str) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BackboneError) as caught:
        load_backbone(BackboneConfig(model=str(tmp_path)), 2)
    assert f"'{kind}' are not supported" in str(caught.value)
    assert all(name in str(caught.value) for name in KNOWN)
    assert kind != "deberta" or "did you mean a deberta-v2?" in str(caught.value)


def test_a_layout_that_computes_otherwise_than_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fleetune.engine import relative

    whole = relative._relative_scores
    monkeypatch.setattr(relative, "_relative_scores", lambda *arguments: whole(*arguments) * 1.01)
    with pytest.raises(BackboneError, match="computes otherwise here"):
        load_backbone(BackboneConfig(model=str(tiny_folder("deberta-v2"))), 3, "float64")


@pytest.mark.parametrize(("kind", "merge"), [("lora", False), ("ia3", True), ("full", False)])
@pytest.mark.parametrize(
    "architecture", ["mpnet", "deberta-v2", "deberta-v2 with a convolution", "phi", "phi3", "gemma3 with images"]
)
def test_a_bundle_gives_the_trials_logits(architecture: str, kind: str, merge: bool, tmp_path: Path) -> None:
    backbone, method = tiny_backbone(architecture, precision="fp32"), get(kind)()
    tensors = trained(backbone, method)
    expected = trial_logits(backbone, method, tensors, TOKENS)
    save_bundle(tmp_path / "b", backbone, method, tensors, LABELS, probe=TOKENS, merge=merge)
    bundle = load_bundle(tmp_path / "b")
    own = trial_logits(bundle.open_backbone("fp32"), bundle.method, bundle.tensors, TOKENS)
    np.testing.assert_allclose(own, expected, atol=2e-5)
    padding = 1 if architecture == "mpnet" else 0
    model = loaded_by_others(tmp_path / "b", backbone.folder)
    np.testing.assert_allclose(plain_logits(model, padding), expected, atol=2e-5)


@pytest.mark.parametrize("architecture", ["mpnet", "deberta-v2", "deberta-v2 with a convolution", "phi", "phi3"])
def test_bf16_is_near_fp32(architecture: str) -> None:
    rounded, exact = (tiny_backbone(architecture, precision=precision) for precision in ("bf16", "fp32"))
    one = spec("lora", 0, {"target_modules": ("all-linear",)})
    tensors = moved(exact, one)
    (low, low_gradients), (high, high_gradients) = (fleet_results(one_of, one, tensors) for one_of in (rounded, exact))
    assert 0 < relative_difference(low, high) < 0.1
    assert all(gradient.dtype == torch.float32 for gradient in low_gradients.values())
    together = torch.cat([low_gradients[name].flatten() for name in tensors])
    expected = torch.cat([high_gradients[name].flatten() for name in tensors])
    assert torch.nn.functional.cosine_similarity(together, expected, dim=0) > 0.98
