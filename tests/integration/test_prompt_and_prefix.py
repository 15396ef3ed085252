"""What the contract tests over all methods do not say of prompts and prefixes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from fleetune.engine.dropout import Stream
from fleetune.engine.fleet import Fleet
from fleetune.engine.layout import pack_texts
from fleetune.engine.starts import plan_parameters
from fleetune.engine.trial import TrialSpec
from fleetune.errors import MethodError, RecipeError
from fleetune.methods import get
from fleetune.methods.base import BackboneShape
from tests.references import Reference
from tests.tiny import attached, padded_inputs, plain_model, random_data, spec, tiny_backbone

DATA = random_data()
TEXTS = np.array([3, 1, 4, 0, 5, 9])
NEIGHBOURS = [
    spec("prefix", 0, {"num_virtual_tokens": 3}),
    spec("lora", 1),
    spec("prompt", 2, {"num_virtual_tokens": 2}),
    spec("prefix", 3, {"num_virtual_tokens": 7}),
    spec("prompt", 4, {"num_virtual_tokens": 9}),
    spec("houlsby", 5, {"dropout": 0.3}),
]
Tensors = dict[str, torch.Tensor]


def moved(backbone: Any, one: TrialSpec) -> Tensors:
    start = Fleet(backbone, [one], DATA).trials[0].parameters.state()
    generator = torch.Generator().manual_seed(one.seed)
    return {
        name: (tensor + 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor)).requires_grad_()
        for name, tensor in start.items()
    }


def outcome(logits: torch.Tensor, tensors: Tensors, texts: Any) -> tuple[torch.Tensor, Tensors]:
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(DATA.labels[texts]), reduction="sum")
    gradients = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    return logits.detach(), dict(zip(tensors, gradients, strict=True))


# Attention dropout is the backbone's own in BERT; the others show windows, grouped heads and shared layers.
@pytest.mark.parametrize("architecture", ["bert", "albert", "modernbert", "gemma2", "mistral"])
def test_in_company_under_dropout_each_is_as_alone_in_parts_and_padded(architecture: str) -> None:
    backbone, padded = (tiny_backbone(architecture, layout=layout) for layout in ("packed", "padded"))
    streams = {slot: Stream(one.seed, step=2, micro_step=1) for slot, one in enumerate(NEIGHBOURS)}
    tensors = {slot: moved(backbone, one) for slot, one in enumerate(NEIGHBOURS)}
    trials = {slot: (one.method, tensors[slot]) for slot, one in enumerate(NEIGHBOURS)}
    batches = {slot: np.roll(TEXTS, slot) for slot in trials}
    with attached(backbone, trials) as heads:
        together = backbone.logits(pack_texts(DATA.tokens, list(batches.items()), "packed"), heads, streams)
    for slot, texts in batches.items():
        expected, gradients = outcome(together[slot], tensors[slot], texts)
        for one, parts in (
            (backbone, (slice(0, 6),)),
            (backbone, (slice(0, 2), slice(2, 6))),
            (padded, (slice(0, 6),)),
        ):
            with attached(one, {slot: trials[slot]}) as heads:
                packs = [
                    pack_texts(DATA.tokens, [(slot, texts[part])], one.layout, [part.start], multiple=32)
                    for part in parts
                ]
                logits = torch.cat([one.logits(pack, heads, streams)[slot] for pack in packs])
            got, own = outcome(logits, tensors[slot], texts)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
            for name, gradient in gradients.items():
                torch.testing.assert_close(own[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("architecture", ["bert", "gemma2"])
def test_gradient_checkpointing_computes_the_same_again(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    streams = {slot: Stream(one.seed, step=2, micro_step=1) for slot, one in enumerate(NEIGHBOURS)}
    tensors = {slot: moved(backbone, one) for slot, one in enumerate(NEIGHBOURS)}
    pack = pack_texts(DATA.tokens, [(slot, TEXTS) for slot in streams], "packed")
    with attached(backbone, {slot: (one.method, tensors[slot]) for slot, one in enumerate(NEIGHBOURS)}) as heads:
        leaves = [tensor for own in tensors.values() for tensor in own.values()]
        outcomes = []
        for checkpointing in (False, True):
            logits = torch.cat(list(backbone.logits(pack, heads, streams, checkpointing).values()))
            outcomes.append((logits, *torch.autograd.grad(logits.square().sum(), leaves)))
    for got, expected in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got, expected)


def test_dropout_acts_on_the_weights_of_a_prefix() -> None:
    backbone, one = tiny_backbone("bert"), spec("prefix")
    tensors = moved(backbone, one)
    pack = pack_texts(DATA.tokens, [(0, TEXTS)], "packed")
    with attached(backbone, {0: (one.method, tensors)}) as heads, torch.no_grad():
        seeds = [backbone.logits(pack, heads, {0: Stream(seed, 0, 0, head_rate=0.0)})[0] for seed in (1, 1, 2)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.allclose(seeds[0], seeds[2])


@pytest.mark.parametrize("architecture", ["mistral", "qwen3"])
def test_a_prefix_is_seen_through_any_window(architecture: str) -> None:
    backbone, one = tiny_backbone(architecture), spec("prefix")
    tensors = moved(backbone, one)
    texts = np.flatnonzero(DATA.tokens.lengths > 12)[:3]
    with attached(backbone, {0: (one.method, tensors)}) as heads, torch.no_grad():
        got = backbone.logits(pack_texts(DATA.tokens, [(0, texts)], backbone.layout), heads, {})[0]
    reference = Reference(plain_model(architecture), one.method, backbone.shape, tensors)
    expected = torch.cat([reference(**padded_inputs(DATA.tokens, texts[[row]], 0)).logits for row in range(3)])
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


def test_the_compiled_attention_gives_what_plain_torch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in ("bert", "llama"):
        backbone, one = tiny_backbone(architecture, precision="fp32"), spec("prefix", 5)
        tensors, stream = moved(backbone, one), {0: Stream(3, 1, 0)}
        if architecture == "llama":
            model: Any = backbone.model
            for layer in model.model.layers:
                layer.self_attn.attention_dropout = 0.2
        outcomes = []
        for compiled in (True, False):
            if not compiled:
                monkeypatch.setattr("fleetune.engine.attention._has_kernel", lambda *_: False)
            pack = pack_texts(DATA.tokens, [(0, TEXTS)], "packed", multiple=32)
            with attached(backbone, {0: (one.method, tensors)}) as heads:
                outcomes.append(outcome(backbone.logits(pack, heads, stream)[0], tensors, TEXTS))
        monkeypatch.undo()
        torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-4, atol=1e-5)
        for name, gradient in outcomes[1][1].items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(outcomes[0][1][name], gradient, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("architecture", ["bert", "electra", "gemma", "gemma3_text"])
def test_a_prompt_starts_from_words_as_the_layers_see_them(architecture: str) -> None:
    backbone = tiny_backbone(architecture, precision="fp32")
    model: Any = backbone.model
    (plan,) = (
        plan
        for name, plan in plan_parameters(backbone, get("prompt")(), 3).items()
        if name.endswith("prompt_embeddings")
    )
    words = model.get_input_embeddings()(torch.arange(100)).detach()
    same = (plan.initial()[:, None] == words).all(dim=-1)
    assert same.any(dim=1).all()
    assert same.any(dim=0).sum() > 10, "not always the same word"
    normal = get("prompt")(initial="normal", num_virtual_tokens=500)
    (plan,) = (
        plan for name, plan in plan_parameters(backbone, normal, 3).items() if name.endswith("prompt_embeddings")
    )
    assert float(plan.initial().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_texts_without_room_are_refused(kind: str) -> None:
    longest = int(DATA.tokens.lengths.max())
    room = 64 - longest
    Fleet(tiny_backbone(), [spec(kind, settings={"num_virtual_tokens": room})], DATA)
    with pytest.raises(RecipeError, match=f"max_tokens = {longest - 1}"):
        Fleet(tiny_backbone(), [spec(kind, settings={"num_virtual_tokens": room + 1})], DATA)


def test_a_backbone_without_what_they_need_says_what_to_take() -> None:
    shape = tiny_backbone(precision="fp32").shape
    bare = BackboneShape("odd", (), shape.head, 0)
    for kind in ("prompt", "prefix", "houlsby", "pfeiffer"):
        with pytest.raises(MethodError, match=r"Take .*lora"):
            get(kind)().sites(bare)


def test_detaching_leaves_no_trace() -> None:
    backbone = tiny_backbone()
    pack = pack_texts(DATA.tokens, [(0, TEXTS)], backbone.layout)
    head = spec("head")
    tensors = moved(backbone, head)
    with attached(backbone, {0: (head.method, tensors)}) as heads, torch.no_grad():
        before = backbone.logits(pack, heads, {})[0]
    for kind in ("prompt", "prefix"):
        with attached(backbone, {0: (get(kind)(), moved(backbone, spec(kind)))}) as heads, torch.no_grad():
            assert not torch.allclose(backbone.logits(pack, heads, {})[0], before)
    with attached(backbone, {0: (head.method, copy.deepcopy(tensors))}) as heads, torch.no_grad():
        assert torch.equal(backbone.logits(pack, heads, {})[0], before)
