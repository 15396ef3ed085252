"""Pfeiffer adapters: a bottleneck behind the feed-forward of every layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fleetune.methods.bottleneck import Bottleneck
from fleetune.methods.registry import register


@register("pfeiffer", source="Pfeiffer et al., 2020, arXiv:2005.00247")
class Pfeiffer(Bottleneck):
    """Puts one adapter into each layer, behind the feed-forward (Pfeiffer et al., 2020).

    It sees the projection's output, as Houlsby's does. (AdapterHub's sees the normed residual sum, where there is one.)
    """

    class Config(Bottleneck.Config):
        """A Pfeiffer adapter's settings."""

        bottleneck_size: int = Field(default=48, ge=1)
        """Width between the two layers."""
        activation: Literal["gelu", "relu", "silu", "tanh"] = "relu"
        """Function between the two layers."""

    config: Config
    roles = ("feed_forward_out",)
