"""Whether texts fit the positions that a backbone has."""

from __future__ import annotations

from collections.abc import Sequence

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.trial import TrialSpec
from fleetune.errors import RecipeError


def check_positions(backbone: Backbone, specs: Sequence[TrialSpec], tokens: Tokens) -> None:
    """Does nothing if the longest text and what methods put to it fit the backbone's positions.

    Raises:
        RecipeError: If a text is too long, or has no room for the tokens or the prefix that a method puts to it.
    """
    limit, longest = backbone.max_positions, int(tokens.longest_sequences.max(initial=0))
    if limit is None:
        return
    if longest > limit:
        raise RecipeError(
            f"a text has {longest} tokens, and {backbone.config.model} takes {limit}.\n"
            f"Type: max_tokens = {limit} in [data]"
        )
    for method in (spec.method for spec in specs):
        more = method.virtual_tokens + method.prefix_tokens
        if longest + more > limit:
            raise RecipeError(
                f"a text has {longest} tokens, {method.kind} puts {more} to it, and this backbone takes {limit}.\n"
                f"Type: max_tokens = {max(1, limit - more)}, or give {method.kind} fewer num_virtual_tokens"
            )
