"""Holds what is installed to a list of licences that go with Apache-2.0: `python -m tools.check_licences`.

It reads what each distribution says of itself: its licence expression (PEP 639), else its classifiers, else its field
`License`. A distribution that says nothing usable stands in `REVIEWED`, with what its files say.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

LOCK = Path(__file__).parents[1] / "uv.lock"
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT",
    "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unicode-3.0", "Unlicense", "Zlib", "ZPL-2.1",
}  # fmt: skip
"""SPDX names. MPL-2.0 binds changes to its own files alone; licences that bind what imports them are not here."""
CLASSIFIERS = {
    "Academic Free License (AFL)": "AFL-3.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zope Public License": "ZPL-2.1",
}
FREE_TEXT = {
    "2-clause bsd": "BSD-2-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "isc license": "ISC",
    "mit license": "MIT",
    "mpl 2.0": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "psf": "PSF-2.0",
    "simplified bsd": "BSD-2-Clause",
    "the mit license": "MIT",
    "the mit license (mit)": "MIT",
}
REVIEWED = {
    "cleanlab": "Apache-2.0, in full in its metadata",
    "huey": "MIT, by its file LICENSE",
    "skops": "MIT, by its file LICENSE",
}
"""Distributions that say nothing usable of themselves, or bundle what has other terms: what their files say."""
WITHOUT_A_SOURCE = ("nvidia-", "cuda-")
"""Libraries of a GPU's maker, which torch brings along on Linux; they are not passed on with Fleetune."""
OPERATORS = re.compile(r"\s+(?:AND|OR|WITH)\s+|[()]", re.IGNORECASE)


def main() -> int:
    """Prints every locked distribution whose licence is not allowed; returns 1 if there is one, else 0."""
    names = locked_names(LOCK.read_text(encoding="utf-8"))
    found = [one for name in names if (one := _installed(name)) is not None]
    problems = list(licence_problems(found))
    print("\n".join(problems) if problems else f"check_licences: {len(found)} distributions have licences that fit")
    absent = len(names) - len(found)
    if absent:
        print(f"check_licences: {absent} locked distributions are not installed here (extras, other platforms)")
    return int(bool(problems))


def locked_names(lock: str) -> list[str]:
    """Returns the names of what a `uv.lock` holds from a registry."""
    packages = tomllib.loads(lock).get("package", [])
    return sorted({package["name"] for package in packages if "registry" in package.get("source", {})})


def licence_problems(found: Iterable[Distribution]) -> list[str]:
    """Returns a line for each distribution whose licence is not on the list, or not to be found."""
    problems = []
    for one in found:
        name = str(one.metadata["Name"]).lower().replace("_", "-")
        if name in REVIEWED or name.startswith(WITHOUT_A_SOURCE):
            continue
        licences = licences_of(one)
        if not licences:
            problems.append(f"{name} {one.version}: says nothing usable of its licence; read it and add it to REVIEWED")
        elif not is_allowed(licences):
            problems.append(f"{name} {one.version}: {licences}, which is not on the list")
    return problems


def licences_of(one: Distribution) -> str:
    """Returns a distribution's licence as an SPDX expression; empty where it says none that is known."""
    if expression := _field(one, "License-Expression"):
        return expression
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in one.metadata.get_all("Classifier") or []
        if line.startswith("License :: ") and not line.endswith((":: OSI Approved", ":: DFSG approved"))
    ]
    if classifiers:
        return " AND ".join(CLASSIFIERS.get(words, words) for words in dict.fromkeys(classifiers))
    text = _field(one, "License").strip()
    return FREE_TEXT.get(text.lower().rstrip("."), text) if "\n" not in text else ""


def _field(one: Distribution, name: str) -> str:
    return str(one.metadata[name]) if name in one.metadata else ""


def is_allowed(expression: str) -> bool:
    """Returns whether every part of an expression is allowed, or one of its alternatives is."""
    alternatives = re.split(r"\s+OR\s+", expression, flags=re.IGNORECASE) if "(" not in expression else [expression]
    return any(_all_allowed(one) for one in alternatives)


def _all_allowed(expression: str) -> bool:
    parts = [part.strip() for part in OPERATORS.split(expression) if part and part.strip()]
    exceptions = re.findall(r"\sWITH\s+([\w.-]+)", expression, flags=re.IGNORECASE)
    return all(part in ALLOWED for part in parts if part not in exceptions)


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
