"""Which of PEFT's types can train here, known without importing PEFT."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from functools import cache
from pathlib import Path

_PROMPTS = 'it learns tokens in front of the text; kind = "prompt" or "prefix" does that without padding'
REFUSED = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "CARTRIDGE": _PROMPTS,
    "ADAPTION_PROMPT": 'it replaces Llama\'s attention; kind = "prefix" is near to it',
    "ADALORA": 'it takes ranks away while it trains; kind = "adalora" does that',
    "XLORA": "it mixes adapters that were trained before; train one of those",
    "POLY": 'it needs each text\'s task; a classifier has one task, for which kind = "lora" is the same',
    "LILY": "its router averages over all texts of a batch, so a text's label would depend on its neighbours; "
    'type = "hira" or "gralora" are without a router',
    "SHADOW": 'it runs a second, smaller model beside the backbone; type = "gralora" adds as much without one',
    "OSF": 'it takes the frozen weights apart and trains a part of them; kind = "full" trains weights',
    "ADAMSS": "how many parameters it has follows from the weights, so nothing can be foreseen or checked; "
    'kind = "adalora" spreads ranks too',
    "FROD": "it stores a decomposition of all frozen weights with the adapter; "
    'type = "randlora" or kind = "vera" do not',
}
"""Types that cannot work here: why, and what to use instead."""
RENAMED = {"BONE": "miss", "ROAD_1": "road", "DORA": 'kind = "lora" with dora = true', "PISSA": 'kind = "lora"'}


@cache
def known_types() -> tuple[str, ...]:
    """Returns the names of PEFT's `PeftType`, read from its source: importing it would load torch."""
    package = importlib.util.find_spec("peft")
    places = package.submodule_search_locations if package is not None else None
    if not places:
        return ()
    source = (Path(places[0]) / "utils" / "peft_types.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "PeftType"]
    assignments = [node for one in classes for node in one.body if isinstance(node, ast.Assign)]
    return tuple(target.id for node in assignments for target in node.targets if isinstance(target, ast.Name))


def refusal(name: str) -> str | None:
    """Returns why the type called `name`, in capitals, cannot be used, and what can; None where it can be tried."""
    known = known_types()
    if name in REFUSED and (not known or name in known):
        return f"PEFT's {name.lower()} cannot work here: {REFUSED[name]}"
    if not known or name in known:
        return None
    usable = [one.lower() for one in known if one not in REFUSED]
    near = difflib.get_close_matches(name.lower(), usable, n=1, cutoff=0.5)
    if hint := RENAMED.get(name) or next(iter(near), None):
        return f"PEFT has no such type; try {hint}"
    return f"PEFT has no such type; it has: {', '.join(usable)}"
