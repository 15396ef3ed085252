"""`make audit`: licences that fit pass, others do not, and no network is not taken for no vulnerability."""

from __future__ import annotations

import json
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from tools.check_licences import is_allowed, licence_problems, licences_of, locked_names
from tools.check_vulnerabilities import locked_requirements, report

LOCK = """
[[package]]
name = "torch"
version = "2.11.0"
source = { registry = "https://pypi.org/simple" }

[[package]]
name = "torch"
version = "2.10.0"
source = { registry = "https://pypi.org/simple" }

[[package]]
name = "numpy"
version = "2.0.0"
source = { registry = "https://pypi.org/simple" }

[[package]]
name = "fleetune"
version = "0.1.0"
source = { editable = "." }
"""


class Named(Distribution):
    """A distribution that is nothing but its metadata."""

    def __init__(self, **fields: Any) -> None:
        self.fields = Message()
        self.fields["Name"], self.fields["Version"] = "thing", "1.0"
        for name, values in fields.items():
            for value in values if isinstance(values, list) else [values]:
                self.fields[name.replace("_", "-")] = value

    @property
    def metadata(self) -> Any:
        return self.fields

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


@pytest.mark.parametrize(
    ("fields", "licence", "fits"),
    [
        ({"License_Expression": "MIT"}, "MIT", True),
        ({"License_Expression": "Apache-2.0 OR GPL-3.0-only"}, "Apache-2.0 OR GPL-3.0-only", True),
        ({"License_Expression": "MIT AND GPL-3.0-only"}, "MIT AND GPL-3.0-only", False),
        ({"License_Expression": "(MIT OR GPL-3.0-only) AND BSD-3-Clause"}, None, False),
        ({"License_Expression": "BSD-2-Clause AND Apache-2.0 WITH LLVM-exception"}, None, True),
        ({"License_Expression": "GPL-3.0-only WITH LLVM-exception"}, None, False),
        ({"License": "Apache 2.0"}, "Apache-2.0", True),
        ({"License": "GPLv3"}, "GPLv3", False),
        ({"License": "AGPL-3.0"}, "AGPL-3.0", False),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT", True),
        ({"Classifier": ["License :: OSI Approved", "License :: OSI Approved :: BSD License"]}, "BSD-3-Clause", True),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"}, None, False),
        ({"License": "MIT", "Classifier": "License :: Other/Proprietary License"}, None, False),
        ({}, "", False),
        ({"License": "Apache License\n  Version 2.0"}, "", False),
    ],
    ids=str,
)
def test_a_licence_is_read_and_held_to_the_list(fields: dict[str, Any], licence: str | None, fits: bool) -> None:
    one = Named(**fields)
    if licence is not None:
        assert licences_of(one) == licence
    assert (licence_problems([one]) == []) == fits


def test_no_licence_is_no_permission() -> None:
    assert not is_allowed("UNKNOWN")
    assert "add it to REVIEWED" in licence_problems([Named()])[0]


def test_the_lock_is_read() -> None:
    assert locked_names(LOCK) == ["numpy", "torch"]
    assert locked_requirements(LOCK) == "numpy==2.0.0\ntorch==2.11.0\n"


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "torch", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
SKIPPED = {"name": "peft", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("looked_up", "end", "said"),
    [
        ([CLEAN], 0, "1 dependencies looked up, 0 known"),
        ([CLEAN, BAD], 1, "torch 2.0: PYSEC-1, mended in 2.1"),
        ([CLEAN, SKIPPED], 1, "1 of 2 dependencies could not be looked up"),
        ([], 1, "could not be looked up"),
        (None, 1, "nothing was checked: ConnectionError"),
    ],
)
def test_only_a_look_at_everything_that_found_nothing_passes(
    looked_up: Any, end: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "" if looked_up is None else json.dumps({"dependencies": looked_up, "fixes": []})
    assert report(out, "Traceback\nConnectionError: no route\n") == end
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
