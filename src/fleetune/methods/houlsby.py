"""Houlsby adapters: a bottleneck behind both sublayers of every layer."""

from __future__ import annotations

from fleetune.methods.bottleneck import Bottleneck
from fleetune.methods.registry import register


@register("houlsby", source="Houlsby et al., 2019, arXiv:1902.00751")
class Houlsby(Bottleneck):
    """Puts an adapter behind the attention and one behind the feed-forward (Houlsby et al., 2019, section 2.1)."""

    roles = ("attention_output", "feed_forward_out")
