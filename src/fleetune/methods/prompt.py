"""Prompt tuning: learned embeddings that stand in each text like tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, MethodConfig, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = "prompt_embeddings"


@register("prompt", source="Lester et al., 2021, arXiv:2104.08691")
class Prompt(Method):
    """Trains the embeddings of virtual tokens that each text begins with (Lester et al., 2021, section 2).

    In a decoder they stand before the text. An encoder's first token, which speaks for the text, stays the first, and
    they come right behind it; PEFT would put them before it and classify by a virtual token, so it cannot load these.
    """

    class Config(MethodConfig):
        """Prompt tuning's settings."""

        num_virtual_tokens: int = Field(default=20, ge=1)
        """How many virtual tokens each text gets; with them it must fit the backbone's positions."""
        initial: Literal["vocabulary", "normal"] = "vocabulary"
        """Start from the embeddings of random tokens, or from small normal values."""

    config: Config
    starts_as_no_op = False
    peft_prefix = "base_model."

    @property
    def virtual_tokens(self) -> int:
        """The prompt's length."""
        return self.config.num_virtual_tokens

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the embedding of tokens."""
        sites = [site for site in shape.sites if site.role == "token_embedding"]
        if not sites:
            raise MethodError(f"prompt finds no embedding of tokens in this {shape.model_type}.\nTake lora instead")
        return sites

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns the virtual tokens' embeddings `(num_virtual_tokens, width)`."""
        width = site.shapes["weight"][1]
        return {EMBEDDINGS: ParameterSpec((self.config.num_virtual_tokens, width), initial=self.config.initial)}

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns the texts' embeddings, at virtual tokens the learned ones."""
        from torch import where
        from torch.nn.functional import embedding

        virtual = call.virtual()
        learned = embedding(virtual.clamp(min=0), parameters[EMBEDDINGS])
        return where(virtual.unsqueeze(-1) >= 0, learned, output)

    def fits_peft(self, shape: BackboneShape) -> bool:
        """Returns whether the backbone is a decoder."""
        return shape.causal

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any]:
        """Returns the fields of PEFT's `PromptTuningConfig`."""
        (site,) = sites
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.config.num_virtual_tokens,
            "token_dim": site.shapes["weight"][1],
            "num_transformer_submodules": 1,
            "num_layers": site.num_layers,
        }

    def peft_name(self, site: Site | None, parameter: str) -> str:
        """Returns `prompt_embeddings`, alone."""
        return parameter
