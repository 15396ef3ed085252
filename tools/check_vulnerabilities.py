"""Asks pip-audit whether a known vulnerability is in a locked dependency: `python -m tools.check_vulnerabilities`.

The versions are those of uv.lock, on every platform and with every extra; nothing is installed for it. Without a
network to the database of vulnerabilities it fails and says so: nothing known is not the same as nothing wrong.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "uv.lock"
ELSEWHERE = "Is the database of vulnerabilities in reach? Run make audit on a machine with a network to pypi.org"
IGNORED: dict[str, str] = {}
"""Vulnerabilities that do not concern Fleetune, by their number: why."""
SECONDS = 900


def main() -> int:
    """Prints what pip-audit found; returns 0 only if it looked, and found nothing."""
    if importlib.util.find_spec("pip_audit") is None:
        print(
            "check_vulnerabilities: pip-audit is not installed.\nType: uv sync --inexact --group audit", file=sys.stderr
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(locked_requirements(LOCK.read_text(encoding="utf-8")), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--no-deps",
            "--disable-pip",
            "--progress-spinner=off",
            "--format=json",
        ]
        command += [f"--ignore-vuln={number}" for number in IGNORED]
        try:
            done = subprocess.run(
                [*command, "-r", str(requirements)], capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return report("", f"timed out after {SECONDS} s")
    return report(done.stdout, done.stderr)


def locked_requirements(lock: str) -> str:
    """Returns every distribution of a `uv.lock` that comes from a registry, one `name==version` a line."""
    packages = tomllib.loads(lock).get("package", [])
    pinned = {f"{one['name']}=={one['version']}" for one in packages if "registry" in one.get("source", {})}
    return "".join(f"{line}\n" for line in sorted(_latest(pinned)))


def _latest(pinned: set[str]) -> list[str]:
    """Returns one version of each; a lock may hold several for several platforms, a file of requirements may not."""
    versions: dict[str, str] = {}
    for line in sorted(pinned):
        name, _, version = line.partition("==")
        versions[name] = version
    return [f"{name}=={version}" for name, version in versions.items()]


def report(out: str, err: str) -> int:
    """Prints what pip-audit's JSON says; returns 0 only if every dependency was looked up, and nothing was found."""
    try:
        looked_up = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print(f"check_vulnerabilities: nothing was checked: {_last_line(err)}\n{ELSEWHERE}", file=sys.stderr)
        return 1
    found = [f"{one['name']} {one['version']}: {_named(fault)}" for one in looked_up for fault in one.get("vulns", [])]
    skipped = [f"{one['name']}: {one['skip_reason']}" for one in looked_up if one.get("skip_reason")]
    if found:
        print("\n".join(found))
    if skipped or not looked_up:
        print(
            f"check_vulnerabilities: {len(skipped)} of {len(looked_up)} dependencies could not be looked up "
            f"({'; '.join(skipped[:1])}).\n{ELSEWHERE}",
            file=sys.stderr,
        )
        return 1
    print(f"check_vulnerabilities: {len(looked_up)} dependencies looked up, {len(found)} known vulnerabilities")
    return int(bool(found))


def _named(fault: dict[str, Any]) -> str:
    return f"{fault['id']}, mended in {', '.join(fault.get('fix_versions', [])) or 'no version yet'}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]


if __name__ == "__main__":
    sys.exit(main())
