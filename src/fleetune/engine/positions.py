"""Whether texts fit the positions that a backbone has."""

from __future__ import annotations

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.errors import RecipeError
from fleetune.methods.base import Method


def check_lengths(backbone: Backbone, tokens: Tokens) -> None:
    """Does nothing if the longest text fits the backbone's positions.

    Raises:
        RecipeError: If it does not.
    """
    limit, longest = backbone.max_positions, longest_of(tokens)
    if limit is not None and longest > limit:
        raise RecipeError(
            f"a text has {longest} tokens, and {backbone.config.model} takes {limit}.\n"
            f"Type: max_tokens = {limit} in [data]"
        )


def check_room(backbone: Backbone, method: Method, tokens: Tokens) -> None:
    """Does nothing if what `method` puts to the longest text fits the backbone's positions, too.

    Raises:
        RecipeError: If there is no room for its tokens or its prefix.
    """
    limit, longest = backbone.max_positions, longest_of(tokens)
    more = method.virtual_tokens + method.prefix_tokens
    if limit is not None and longest + more > limit:
        raise RecipeError(
            f"a text has {longest} tokens, {method.kind} puts {more} to it, and this backbone takes {limit}.\n"
            f"Type: max_tokens = {max(1, limit - more)}, or give {method.kind} fewer num_virtual_tokens"
        )


def longest_of(tokens: Tokens) -> int:
    """Returns how many tokens the longest text, or window of one, has."""
    return int(tokens.longest_sequences.max(initial=0))
