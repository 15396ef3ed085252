"""Keeps secrets out of what is written and printed: tokens, passwords, logins in addresses."""

from __future__ import annotations

import functools
import html
import os
import re
from typing import Any

HIDDEN = "…"
_SECRET_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|CREDENTIAL|COOKIE|"
    r"(?:^|_)(?:PAT|PASS|DSN)(?:_|$)|_PWD$|_AUTH$",
    re.IGNORECASE,
)
"""Names of environment variables; PATH and PWD themselves are none."""
_LEAST_SECRET = 6
_ADDRESS = re.compile(
    # A login ends at the last @ before the path: a password may have one. Where a colon is in what should be the host,
    # the password may have the signs that begin a path as well; a port is not told from it, and then more is hidden.
    # What is looked through is passed over, with a login or without, so that no text takes long.
    r"(?P<start>:\\?/\\?/)(?:(?P<with_colon>[^/?#\s@:\[]*:\S*)|(?P<login>[^/?#\s]+)@)"
    r"|(?P<encoded_start>%3A%2F%2F)(?P<encoded>[^\s&]+)",
    re.IGNORECASE,
)
_BEFORE_TOKEN = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
_TOKEN = re.compile(
    _BEFORE_TOKEN
    + r"(?:(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abeprs]-|xapp-|pypi-|npm_|dapi|wandb_v[0-9]+_)"
    r"[A-Za-z0-9_-]{16,}|A[KS]IA[0-9A-Z]{16}\b|AIza[A-Za-z0-9_-]{35}|local-[0-9a-f]{40}\b"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?)"
)
"""Tokens that say by their beginning what they are."""
_NAME = r"(?:token|password|passwd|passphrase|passcode|pwd|secret|(?:api|access|private|secret)[_-]?key)"
_NAMED = re.compile(
    rf"(?P<name>{_NAME}\\*[\"']?\s*(?:[=:]|%3[AD])\s*)"
    # In quotes that are escaped, in quotes, after a quote that has no end, and without quotes.
    r"(?:(?P<escaped>\\+[\"'])(?:(?!(?<!\\)(?P=escaped)).)*"
    r"|(?P<quote>\"(?=(?:\\.|[^\"\\])*\")|'(?=(?:\\.|[^'\\])*'))(?:\\.|(?!(?P=quote))[^\\])*"
    r"|(?P<open>[\"'])[^\n]*"
    r"|(?:[^\s\"'&,;]|(?<=[^\s=:])[\"'](?![\s,;:)\]}>&]|$))+)",
    re.IGNORECASE,
)
_ENDS_IN_NAME = re.compile(rf"{_NAME}$", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")


def redacted(text: str) -> str:
    """Returns `text` without tokens, passwords, logins in addresses, and the environment's values of secret names."""
    known = frozenset(value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name))
    if (secrets := _anyhow_written(known)) is not None:
        text = secrets.sub(HIDDEN, text)
    text = _ADDRESS.sub(_without_login, text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", _TOKEN.sub(HIDDEN, text))
    return _NAMED.sub(_hide_named, text)


def redacted_facts(value: Any) -> Any:
    """Returns what JSON can hold with each text in it redacted, and with no text under a name of a secret."""
    if isinstance(value, dict):
        return {
            redacted(str(key)): HIDDEN
            if isinstance(one, str) and _ENDS_IN_NAME.search(str(key))
            else redacted_facts(one)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_facts(one) for one in value]
    return redacted(value) if isinstance(value, str) else value


def holds_login(text: str) -> bool:
    """Returns whether `text` is an address with a login, or has a token in it."""
    return _ADDRESS.sub(_without_login, text) != text or _TOKEN.search(text) is not None


def _without_login(found: re.Match[str]) -> str:
    if found["login"] is not None:
        return f"{found['start']}{HIDDEN}@"
    start, at = (found["start"], "@") if found["start"] else (found["encoded_start"], "%40")
    login, _, host = (found["with_colon"] or found["encoded"]).rpartition(at)
    return f"{start}{HIDDEN}{at}{host}" if login else found[0]


def _hide_named(found: re.Match[str]) -> str:
    return f"{found['name']}{found['escaped'] or found['quote'] or found['open'] or ''}{HIDDEN}"


@functools.lru_cache(maxsize=8)
def _anyhow_written(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Returns what finds the secrets as they are, percent-encoded, and escaped as JSON, Python and HTML escape text."""
    long = sorted((one for one in secrets if len(one) >= _LEAST_SECRET), key=len, reverse=True)
    return re.compile("|".join("".join(map(_sign, one)) for one in long)) if long else None


def _sign(sign: str) -> str:
    if sign.isascii() and sign.isalnum():
        return sign
    code = ord(sign)
    percent = "".join(f"%{byte:02X}" for byte in sign.encode("utf-8", "surrogateescape"))
    utf_16 = sign.encode("utf-16-be", "surrogatepass").hex()
    # What is longer comes first: a percent sign begins the way in which it is written itself.
    written = [f"(?i:{percent})", rf"(?i:\\+U0*{code:x}(?![0-9a-f]))"]
    written.append("(?i:" + "".join(rf"\\+u{utf_16[place : place + 4]}" for place in range(0, len(utf_16), 4)) + ")")
    if code < 0x100:
        written.append(rf"(?i:\\+x{code:02x})")
    if sign in "\"'\\/":
        written.append(rf"\\+{re.escape(sign)}")
    if sign in "\n\r\t":
        written.append(r"\\+" + {"\n": "n", "\r": "r", "\t": "t"}[sign])
    if (entity := html.escape(sign)) != sign:
        written.append(f"(?:{entity}|&#0*{code};|&#34;)" if sign == '"' else f"(?:{entity}|&#0*{code};)")
    if sign == " ":
        written.append(r"\+")
    return f"(?:{'|'.join([*written, re.escape(sign)])})"
