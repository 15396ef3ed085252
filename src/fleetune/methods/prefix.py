"""Prefix tuning: learned keys and values before each text's own, in every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, MethodConfig, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = "prompt_embeddings"
KNOWN_TO_PEFT = frozenset(
    (
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "electra",
        "llama",
        "mistral",
        "gemma",
        "qwen2",
        "qwen3",
        "phi",
        "phi3",
    )
)
"""Families to which PEFT can give keys and values."""


@register("prefix", source="Li & Liang, 2021, arXiv:2101.00190")
class Prefix(Method):
    """Trains keys and values that every token sees in each layer (Li & Liang, 2021; P-tuning v2, Liu et al., 2021).

    They are trained as they are, without the network that Li & Liang make them by during training. A text's positions
    begin behind the prefix, as in PEFT. Layers that share their weights share a prefix.
    """

    class Config(MethodConfig):
        """Prefix tuning's settings."""

        num_virtual_tokens: int = Field(default=20, ge=1)
        """How many keys and values come before a text's own; with them it must fit the backbone's positions."""

    config: Config
    starts_as_no_op = False
    peft_prefix = "base_model."

    @property
    def prefix_tokens(self) -> int:
        """The prefix's length."""
        return self.config.num_virtual_tokens

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the attention of every layer."""
        sites = list(shape.attentions)
        layers = [site.layer for site in sites]
        if not sites or layers != list(range(len(sites))):
            raise MethodError(
                f"prefix needs one attention with keys and values in each layer, which this {shape.model_type} does "
                "not have.\nTake prompt or lora instead"
            )
        return sites

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns nothing: what is trained is one tensor for all layers."""
        return {}

    def shared(self, shape: BackboneShape) -> dict[str, ParameterSpec]:
        """Returns keys and values by turns for each layer, `(num_virtual_tokens, layers * 2 * heads * head_width)`."""
        width = sum(prod(size) for site in self.sites(shape) for size in site.shapes.values())
        return {EMBEDDINGS: ParameterSpec((self.config.num_virtual_tokens, width), initial="normal")}

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns the output as it is: the attention itself reads the prefix."""
        return output

    def prefix(self, parameters: Mapping[str, Tensor], site: Site) -> tuple[Tensor, Tensor]:
        """Returns the layer's keys and values."""
        assert site.layer is not None
        every = parameters[EMBEDDINGS].view(self.config.num_virtual_tokens, -1, 2, *site.shapes["key"])
        return every[:, site.layer, 0], every[:, site.layer, 1]

    def fits_peft(self, shape: BackboneShape) -> bool:
        """Returns whether PEFT can give the family a prefix, and no window hides it from tokens far behind."""
        return shape.model_type in KNOWN_TO_PEFT and not shape.windowed

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any]:
        """Returns the fields of PEFT's `PrefixTuningConfig`."""
        chosen = list(sites)
        heads, width = chosen[0].shapes["key"]
        return {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": self.config.num_virtual_tokens,
            "token_dim": heads * width,
            "num_transformer_submodules": 1,
            "num_attention_heads": heads,
            "num_layers": len(chosen),
            "encoder_hidden_size": heads * width,
            "prefix_projection": False,
        }

    def peft_name(self, site: Site | None, parameter: str) -> str:
        """Returns `prompt_embeddings`, alone."""
        return parameter
