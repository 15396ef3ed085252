"""Reloads a bundle by a path of its own, and compares logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.bundle.contents import MODEL_CONFIG, WEIGHTS
from fleetune.bundle.loading import Bundle, load_bundle
from fleetune.bundle.plain import plain_model
from fleetune.engine.architecture import architecture_of
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.quantize import round_weights
from fleetune.engine.silence import quiet
from fleetune.errors import ExportMismatchError
from fleetune.methods.base import Method
from fleetune.runtime import bitsandbytes_alone

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.data.tokens import Tokens

TOLERANCE = 1e-4
"""Largest difference of a logit, in fp32."""
MAX_PROBE_TEXTS = 64


def verify_bundle(
    folder: Path,
    backbone: Backbone,
    probe: Tokens,
    expected: NDArray[np.floating],
    tolerance: float = TOLERANCE,
    texts: NDArray[np.int64] | None = None,
) -> float:
    """Returns the largest difference between `expected` and the logits of the bundle in `folder`, reloaded in fp32.

    The bundle is read by what others would read it with: PEFT for an adapter, `load_state_dict` for parameters,
    `from_pretrained` for a complete model; each over the plain Hugging Face model, one text at a time, whose weights
    are rounded first as those of a quantised backbone are. A delta, which only Fleetune reads, is laid over a backbone
    loaded anew, with padded texts.

    Args:
        folder: The bundle.
        backbone: The model that it belongs to; only its folder is used.
        probe: Texts.
        expected: The trial's logits in fp32 `(texts, num_labels)`.
        tolerance: Largest difference allowed.
        texts: Which texts of `probe`; all if absent.

    Raises:
        BundleError: If the bundle is damaged.
        ExportMismatchError: If a difference is larger, or not a number.
    """
    bundle = load_bundle(folder)
    chosen = np.arange(len(probe)) if texts is None else texts
    if bundle.manifest.form == "delta":
        got = _own_logits(bundle, backbone, probe, chosen)
    else:
        got = _plain_logits(_reload(bundle, backbone.folder), probe, chosen)
    if got.shape != expected.shape:
        raise ExportMismatchError(f"bundle {folder} gives logits {got.shape}, its trial {expected.shape}")
    difference = float(np.abs(got - expected).max(initial=0.0))
    if not difference <= tolerance:
        raise ExportMismatchError(
            f"bundle {folder} gives logits that differ by {difference:.1e} from its trial's; at most {tolerance:.0e} "
            "is allowed.\nIt was not exported; the run itself is untouched"
        )
    return difference


def full_precision_logits(
    backbone: Backbone,
    method: Method,
    tensors: Mapping[str, Tensor],
    probe: Tokens,
    texts: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Returns a trial's logits on `backbone` in fp32 (or float64), whatever precision it was trained in."""
    if backbone.precision == "bf16":
        model_config: Any = backbone.model.config
        backbone = load_backbone(backbone.config, model_config.num_labels, "fp32")
    return trial_logits(backbone, method, tensors, probe, texts)


def probe_texts(probe: Tokens) -> NDArray[np.int64]:
    """Returns at most 64 texts, evenly over all lengths."""
    count = min(len(probe), MAX_PROBE_TEXTS)
    order = np.argsort(probe.lengths, kind="stable")
    return np.sort(order[np.linspace(0, len(probe) - 1, count).astype(np.int64)]) if count else order


def _own_logits(bundle: Bundle, backbone: Backbone, probe: Tokens, texts: NDArray[np.int64]) -> NDArray[np.float32]:
    config = backbone.config.model_copy(update={"layout": "padded"})
    anew = load_backbone(config, len(bundle.manifest.labels), "fp32")
    return trial_logits(anew, bundle.method, bundle.tensors, probe, texts)


def _reload(bundle: Bundle, backbone_folder: Path) -> Any:
    """Returns the bundle's model, put together without the engine."""
    from transformers import AutoConfig

    folder = bundle.folder
    if bundle.manifest.form == "merged":
        return plain_model(folder, AutoConfig.from_pretrained(folder, trust_remote_code=False))
    config = AutoConfig.from_pretrained(folder / MODEL_CONFIG, trust_remote_code=False)
    model = plain_model(backbone_folder, config)
    round_weights(model, architecture_of(config.model_type).base, bundle.manifest.backbone.quantize)
    if bundle.manifest.form == "adapter":
        with bitsandbytes_alone():
            import peft

        with quiet():
            # PEFT takes safetensors because they are there, as load_bundle saw to, and not because of the switch.
            loaded = peft.PeftModel.from_pretrained(model, str(folder), torch_device="cpu", use_safetensors=True)
            return loaded.eval()
    from safetensors.torch import load_file

    result = model.load_state_dict(load_file(folder / WEIGHTS["parameters"]), strict=False)
    if result.unexpected_keys:
        raise ExportMismatchError(f"the model has no parameter {result.unexpected_keys[0]}, which {folder} holds")
    return model


def _plain_logits(model: Any, probe: Tokens, texts: NDArray[np.int64]) -> NDArray[np.float32]:
    # One sequence at a time needs no padding, and so no opinion on what a padding token is.
    model.config.pad_token_id = None
    pool = np.mean if probe.pool == "mean" else np.max
    rows = []
    with torch.inference_mode():
        for text in texts:
            sequences = probe.sequences_of(np.array([text]))
            rows.append(pool([_sequence_logits(model, probe, int(one)) for one in sequences], axis=0))
    return np.stack(rows) if rows else np.empty((0, model.config.num_labels), dtype=np.float32)


def _sequence_logits(model: Any, probe: Tokens, sequence: int) -> NDArray[np.float32]:
    place = slice(int(probe.offsets[sequence]), int(probe.offsets[sequence + 1]))
    inputs = {"input_ids": _row(probe.input_ids[place])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if probe.type_ids is not None:
        inputs["token_type_ids"] = _row(probe.type_ids[place])
    logits: NDArray[np.float32] = model(**inputs).logits[0].float().numpy()
    return logits


def _row(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int64))[None]
