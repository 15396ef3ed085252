"""Keeps secrets out of what is written and printed: tokens, passwords, logins in addresses."""

from __future__ import annotations

import os
import re

HIDDEN = "…"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_LEAST_SECRET = 6
_LOGIN_IN_ADDRESS = re.compile(r"(://)[^/\s@]+@")
_TOKEN = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abp]-|pypi-)[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b|\blocal-[0-9a-f]{40}\b"
)
"""Tokens that say by their beginning what they are."""
_NAMED = re.compile(r"((?:token|password|passwd|secret|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;]+", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")


def redacted(text: str) -> str:
    """Returns `text` without tokens, passwords, logins in addresses, and the environment's values of secret names."""
    secrets = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= _LEAST_SECRET:
            text = text.replace(value, HIDDEN)
    text = _LOGIN_IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", _TOKEN.sub(HIDDEN, text))
    return _NAMED.sub(rf"\1{HIDDEN}", text)


def holds_login(text: str) -> bool:
    """Returns whether `text` is an address with a login, or has a token in it."""
    return bool(_LOGIN_IN_ADDRESS.search(text) or _TOKEN.search(text))
