"""By what the cheapest of equals is recommended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Cost = Literal["trainable", "bundle_bytes", "seconds", "serving"]
COSTS: tuple[Cost, ...] = get_args(Cost)
COST_WORDS: Mapping[Cost, str] = {
    "trainable": "trains the fewest parameters",
    "bundle_bytes": "has the smallest bundle",
    "seconds": "trains the fastest",
    "serving": "needs the fewest operations to serve",
}
