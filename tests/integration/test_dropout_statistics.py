"""Dropout as methods and backbones meet it: the right rate, and independent between trials, sites, steps, neighbours.

A sound generator fails any one of these tests once in a hundred thousand choices of seeds; these seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.dropout import Stream
from fleetune.engine.layout import pack_texts
from fleetune.methods.base import BackboneShape, Method, ParameterSpec, Site, SiteCall
from fleetune.methods.lora import LoRA
from tests.tiny import VOCABULARY, attached, tiny_backbone

if TYPE_CHECKING:
    from torch import Tensor

DOUBT = 1e-5
LENGTH = 8
"""Tokens of a text: as many as an attention head is wide, so that one head's output shows all of a token's weights."""
WIDTH = 32
TEXTS = 640
BACKBONE_RATE = 0.1
RATES = (0.05, 0.1, 0.25, 0.5)
KINDS = ("delta", "attention", "hidden", "embeddings", "head")

Mask = NDArray[np.bool_]
"""True where a value is dropped."""


class DeltaProbe(Method):
    """Shows the masks of a method's own dropout, by place."""

    kind, source = "probe", "none"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.masks: dict[str, Mask] = {}

    def sites(self, shape: BackboneShape) -> list[Site]:
        return [site for site in shape.sites if site.layer is not None and site.kind == "linear"]

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        return {}

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        self.show(f"delta {site.name}", call.dropout(torch.ones_like(x), self.rate), self.rate)
        return output

    def show(self, place: str, values: Tensor, rate: float) -> None:
        """Takes note of values that are 0 or 1 / (1 - rate)."""
        found = values.detach().cpu().double().numpy()[0]
        dropped = np.abs(found) < 0.5
        np.testing.assert_allclose(found, np.where(dropped, 0.0, 1 / (1 - rate)), rtol=1e-4, atol=1e-4)
        # Some architectures pass a module several times.
        passage = sum(known.startswith(f"{place} ") for known in self.masks)
        self.masks[f"{place} {passage}"] = dropped


class Probe(DeltaProbe):
    """Shows BERT's own masks too, at the sites behind them.

    Sublayers give ones, so that the next norm's input is the mask beside the residual. Attention is uniform over
    values that are one-hot by position, so that its output is the mask of its weights.
    """

    residual: Tensor

    def sites(self, shape: BackboneShape) -> list[Site]:
        return [site for site in shape.sites if site.layer is not None]

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        if site.kind == "norm":
            self.show(f"hidden {site.name}", x - self.residual, BACKBONE_RATE)
            self.residual = output
            return output
        super().forward(x, output, parameters, site, call)
        if site.role == "query":
            self.residual = x
            if site.layer == 0:
                self.masks["embeddings"] = x.detach().cpu().numpy()[0] == 0.0
            return torch.zeros_like(output)
        if site.role == "value":
            one_hot = LENGTH * torch.eye(LENGTH, dtype=x.dtype, device=x.device)
            return one_hot.repeat(x.shape[1] // LENGTH, WIDTH // LENGTH)[None]
        if site.role == "attention_output":
            self.show(f"attention {site.name}", x, BACKBONE_RATE)
        return torch.ones_like(output) if site.role in ("attention_output", "feed_forward_out") else output


@cache
def bert() -> Backbone:
    return tiny_backbone("bert", num_labels=WIDTH, precision="fp32", layout="packed")


def tokens_of(texts: int, length: int = LENGTH) -> Tokens:
    ids = np.random.default_rng(0).integers(2, VOCABULARY, texts * length).astype(np.int32)
    return Tokens(ids, None, np.arange(texts + 1) * length, np.full(texts, length, dtype=np.int32), Path())


def observe(rate: float, streams: Sequence[Stream], texts: int) -> dict[tuple[Stream, str], Mask]:
    """Returns every mask `(tokens, width)` of trials in one pack, by stream and place.

    In the last layer those of the pooled tokens may be all.
    """
    probes = {slot: Probe(rate) for slot in range(len(streams))}
    pack = pack_texts(tokens_of(texts), [(slot, np.arange(texts)) for slot in probes], "packed")
    head = {"classifier.weight": torch.eye(WIDTH), "classifier.bias": torch.zeros(WIDTH)}
    with attached(bert(), {slot: (probe, head) for slot, probe in probes.items()}) as heads, torch.no_grad():
        logits = bert().logits(pack, heads, dict(enumerate(streams)))
    for slot, probe in probes.items():
        probe.masks["head"] = (logits[slot] == 0.0).cpu().numpy()
    return {(stream, place): mask for stream, probe in zip(streams, probes.values(), strict=True)
            for place, mask in probe.masks.items()}  # fmt: skip


@cache
def many(rate: float) -> dict[tuple[Stream, str], Mask]:
    """Returns the masks of four trials' four steps; other steps for another rate."""
    masks: dict[tuple[Stream, str], Mask] = {}
    for step in range(4 * RATES.index(rate), 4 * RATES.index(rate) + 4):
        masks |= observe(rate, [Stream(seed, step, 0) for seed in range(4)], TEXTS)
    return masks


def is_whole(mask: Mask, texts: int) -> bool:
    return mask.shape == (texts * LENGTH, WIDTH)


def of_kind(kind: str, masks: Mapping[tuple[Stream, str], Mask]) -> list[Mask]:
    return [mask for (_, place), mask in masks.items() if place.startswith(kind)]


def cases() -> list[tuple[str, float]]:
    return [*(("delta", rate) for rate in RATES), *((kind, BACKBONE_RATE) for kind in KINDS if kind != "delta")]


def masks_of(kind: str, rate: float) -> list[Mask]:
    """Returns all masks of a kind at a rate; the backbone's own do not depend on the method's rate."""
    return [mask for one in ((rate,) if kind == "delta" else RATES) for mask in of_kind(kind, many(one))]


def assert_likely(statistic: float, freedom: int, what: str) -> None:
    """Asserts that a chi-square is neither too large nor too small to be chance."""
    assert chi2.ppf(DOUBT / 2, freedom) < statistic < chi2.isf(DOUBT / 2, freedom), (what, statistic, freedom)


def assert_normal(values: Iterable[float], what: str) -> None:
    """Asserts that the largest of standard normal values is not too large to be chance."""
    sizes = np.abs(np.array(list(values)))
    assert sizes.max() < norm.isf(DOUBT / 2 / sizes.size), (what, sizes.max(), sizes.size)


@pytest.mark.parametrize(("kind", "rate"), cases())
def test_rate(kind: str, rate: float) -> None:
    masks = masks_of(kind, rate)
    draws, dropped = np.array([mask.size for mask in masks]), np.array([mask.sum() for mask in masks])
    assert draws.sum() > (1e7 if kind in ("delta", "attention", "hidden") else 1e5)
    variance = rate * (1 - rate)
    assert (dropped.sum() - rate * draws.sum()) ** 2 / (variance * draws.sum()) < chi2.isf(DOUBT, 1)
    assert_likely(float(((dropped - rate * draws) ** 2 / (variance * draws)).sum()), len(masks), "rate of each mask")


@pytest.mark.parametrize(("kind", "rate"), cases())
def test_neighbours_within_a_mask_are_independent(kind: str, rate: float) -> None:
    masks = np.stack([mask[:TEXTS, :WIDTH] for mask in masks_of(kind, rate)])
    for values, way in ((masks, "along rows"), (masks.transpose(0, 2, 1), "along columns")):
        fours = np.ascontiguousarray(values).reshape(-1, 4) @ np.array([1, 2, 4, 8])
        found = np.bincount(fours, minlength=16)
        kept = np.array([4 - bin(pattern).count("1") for pattern in range(16)])
        expected = len(fours) * rate ** (4 - kept) * (1 - rate) ** kept
        assert_likely(float(((found - expected) ** 2 / expected).sum()), 15, f"patterns {way}")
    standard = ((masks - rate) / (rate * (1 - rate)) ** 0.5).astype(np.float32)
    scores = {}
    for down, right in product(range(4), range(-4, 5)):
        if (down, right) > (0, 0):
            first = standard[:, : TEXTS - down, max(0, -right) : WIDTH - max(0, right)]
            second = standard[:, down:, max(0, right) : WIDTH - max(0, -right)]
            scores[down, right] = float((first * second).sum(dtype=np.float64)) / first.size**0.5
    assert_normal(scores.values(), "lags")


def test_trials_sites_and_steps_are_independent() -> None:
    names, rows = [], []
    for step, micro_step in product(range(4), range(2)):
        streams = [Stream(seed, step, micro_step) for seed in range(4)]
        for name, mask in observe(0.3, streams, texts=128).items():
            if is_whole(mask, texts=128):
                names.append(name)
                rows.append(mask.ravel())
    standard = np.stack(rows).astype(np.float32)
    standard -= standard.mean(axis=1, keepdims=True)
    standard /= standard.std(axis=1, keepdims=True)
    pairs = np.triu_indices(len(names), k=1)
    scores = (standard @ standard.T)[pairs] / standard.shape[1] ** 0.5
    worst = int(np.abs(scores).argmax())
    assert_normal(scores, f"{names[pairs[0][worst]]} and {names[pairs[1][worst]]}")
    # Squares of correlations: chi-square of each pair's two-by-two table.
    assert_likely(float((scores.astype(np.float64) ** 2).sum()), len(scores), "all pairs together")


@pytest.mark.parametrize("kind", ["delta", "attention", "hidden"])
def test_no_mask_is_a_shifted_other(kind: str) -> None:
    """Streams that differ in where they start only would be equal at some shift."""
    masks = {name: mask for name, mask in many(0.5).items() if name[1].startswith(kind) and is_whole(mask, TEXTS)}
    (stream, place), first = next(iter(masks.items()))
    rate = 0.5 if kind == "delta" else BACKBONE_RATE
    others = [mask for (one, where), mask in masks.items() if one == stream or where == place]
    scores = [shifted(first, mask, rate) for mask in others]
    assert scores[0][0] > 100, "the mask itself, without a shift"
    assert_normal(np.concatenate([scores[0][1:], *scores[1:]]), "shifts")


def shifted(a: Mask, b: Mask, rate: float) -> NDArray[np.float64]:
    """Returns the standardised correlation of two masks at every shift."""
    x, y = ((mask.ravel() - rate) / (rate * (1 - rate)) ** 0.5 for mask in (a, b))
    spectrum = np.fft.rfft(x).conj() * np.fft.rfft(y)
    return np.asarray(np.fft.irfft(spectrum, x.size)) / x.size**0.5


def test_masks_depend_on_the_stream_alone() -> None:
    streams = [Stream(seed, step=2, micro_step=1) for seed in range(3)]
    together, reversed_ = (observe(0.2, order, texts=20) for order in (streams, streams[::-1]))
    for stream in streams:
        for (_, place), mask in observe(0.2, [stream], texts=20).items():
            assert (mask == together[stream, place]).all() and (mask == reversed_[stream, place]).all(), place


def test_a_module_passed_twice_drops_anew() -> None:
    albert, probe = tiny_backbone("albert", precision="fp32"), DeltaProbe(0.5)
    head = {name: torch.zeros(shape) for name, shape in albert.shape.head.items()}
    with attached(albert, {0: (probe, head)}) as heads, torch.no_grad():
        albert.logits(pack_texts(tokens_of(300), [(0, np.arange(300))], albert.layout), heads, {0: Stream(0, 0, 0)})
    passages = [mask for place, mask in probe.masks.items() if ".query " in place]
    assert len(passages) == 2
    assert_normal([shifted(passages[0], passages[1], 0.5)[0]], "passages")


def test_lora_drops_what_probes_see() -> None:
    """LoRA need not take the way that probes take, and what is known of their masks shall hold for its own.

    A trial of one text of one token has in A's gradient a zero for each dropped input, and nowhere else.
    """
    rate, trials = 0.25, 16
    lora = LoRA(rank=1, dropout=rate, target_modules=("value", "attention.output.dense", "intermediate.dense"))
    probes = {slot: DeltaProbe(rate) for slot in range(trials)}
    streams = {slot: Stream(slot % 4, step=slot // 4, micro_step=0, backbone=False) for slot in probes}
    tensors = {slot: lora_tensors(lora, slot) for slot in probes}
    pack = pack_texts(tokens_of(1, length=1), [(slot, np.array([0])) for slot in probes], "packed")
    with attached(bert(), {slot: (lora, tensors[slot]) for slot in probes}) as heads:
        torch.cat(list(bert().logits(pack, heads, streams).values())).square().sum().backward()
    with attached(bert(), {slot: (probe, heads[slot]) for slot, probe in probes.items()}), torch.no_grad():
        bert().logits(pack, heads, streams)
    for slot, probe in probes.items():
        for site in lora.sites(bert().shape):
            gradient = tensors[slot][f"{site.name}::lora_A"].grad
            assert np.array_equal(gradient == 0.0, probe.masks[f"delta {site.name} 0"]), site.name


def lora_tensors(lora: LoRA, seed: int) -> dict[str, Any]:
    """Returns random tensors of a trial, head included, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        f"{site.name}::{name}": spec.shape
        for site in lora.sites(bert().shape)
        for name, spec in lora.parameters(site).items()
    } | dict(bert().shape.head)
    return {name: torch.randn(shape, generator=generator).mul_(0.3).requires_grad_() for name, shape in shapes.items()}
