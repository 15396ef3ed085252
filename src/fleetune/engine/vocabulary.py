"""The head of a decoder that scores the next token. Fleets never have it in memory; zero-shot predictions do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fleetune.engine.backbone import Backbone
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

WORDS_AT_ONCE = 16_384
"""Words whose logits are in memory at a time."""
HEAD = "lm_head"


@dataclass(frozen=True)
class Vocabulary:
    """The head that scores the next token.

    Attributes:
        weight: `(vocabulary, width)`.
        bias: `(vocabulary,)`, where there is one.
        softcap: Logits are squashed to ± this by tanh.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    def log_probabilities(self, states: Tensor, which: Tensor, targets: Tensor) -> Tensor:
        """Returns log P(target) `(targets,)`, in fp32 or better, a part of the vocabulary at a time.

        Args:
            states: Hidden states `(states, width)`.
            which: Which of them foretells each target `(targets,)`.
            targets: Token ids `(targets,)`.
        """
        wide = states if states.dtype == torch.float64 else states.float()
        normaliser = wide.new_full((len(wide),), -torch.inf)
        for start in range(0, len(self.weight), WORDS_AT_ONCE):
            part = slice(start, start + WORDS_AT_ONCE)
            logits = wide @ self.weight[part].to(wide.dtype).T
            normaliser = torch.logaddexp(normaliser, self._finished(logits, part).logsumexp(dim=1))
        own = (wide[which] * self.weight[targets].to(wide.dtype)).sum(dim=1)
        return self._finished(own, targets) - normaliser[which]

    def _finished(self, logits: Tensor, words: slice | Tensor) -> Tensor:
        logits = logits if self.bias is None else logits + self.bias[words].to(logits.dtype)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def has_vocabulary(backbone: Backbone) -> bool:
    """Returns whether the backbone is a decoder whose checkpoint has a head over the vocabulary."""
    if backbone.architecture.pool != "last":
        return False
    return _is_tied(backbone) or bool(_stored_names(backbone.folder, HEAD))


def load_vocabulary(backbone: Backbone) -> Vocabulary:
    """Returns the head: the token embeddings where they are tied, else as the checkpoint has it."""
    model: Any = backbone.model
    embeddings = model.get_input_embeddings().weight
    softcap = getattr(model.config, "final_logit_softcapping", None)
    stored = {} if _is_tied(backbone) else _stored_names(backbone.folder, HEAD)
    tensors = {name: _stored(file, name).to(device(), embeddings.dtype) for name, file in stored.items()}
    return Vocabulary(tensors.get(f"{HEAD}.weight", embeddings), tensors.get(f"{HEAD}.bias"), softcap)


def _stored_names(folder: Path, module: str) -> dict[str, Path]:
    """Returns the checkpoint's tensors of a module, each with its file."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: file for name in tensors.keys() if name.startswith(f"{module}.")}  # noqa: SIM118
    return found


def _stored(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name)
    return tensor


def _is_tied(backbone: Backbone) -> bool:
    config: Any = backbone.model.config
    return bool(config.tie_word_embeddings)
