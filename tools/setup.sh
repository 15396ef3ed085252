#!/bin/sh
# Makes or renews .venv from uv.lock. Needs Python >= 3.11; uv is fetched into .uv where there is none.
set -eu
cd "$(dirname "$0")/.."

oldest_uv="0.7"

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# Prints the path of a Python >= 3.11 outside any virtual environment, or nothing.
find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        "$candidate" -c '
import sys
if sys.version_info < (3, 11):
    sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null && return
    done
    return 0
}

is_usable_uv() {
    "$1" --version >/dev/null 2>&1 && "$python" - "$("$1" --version)" "$oldest_uv" <<'PY'
import re, sys
found, oldest = (tuple(map(int, re.search(r"\d+(?:\.\d+)+", text)[0].split("."))) for text in sys.argv[1:])
sys.exit(found < oldest)
PY
}

# A private uv leaves the system's Python as it is, which may forbid installing into it (PEP 668).
install_uv() {
    echo "setup: no uv >= $oldest_uv found; installing one into .uv"
    rm -rf .uv
    if "$python" -m venv .uv >/dev/null 2>&1; then
        .uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=$oldest_uv"
    elif rm -rf .uv && "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --disable-pip-version-check --target .uv "uv>=$oldest_uv"
    else
        fail "$python has neither venv nor pip, and uv is not installed." \
            "Install one of them, for instance: apt-get install python3-venv"
    fi
}

python="$(find_python)"
if [ -z "$python" ]; then
    fail "Python >= 3.11 is needed; $(${PYTHON:-python3} --version 2>/dev/null || echo none) was found." \
        "Install it, or say where it is: make setup PYTHON=/path/to/python3.11"
fi

if is_usable_uv uv; then
    uv=uv
else
    is_usable_uv .uv/bin/uv || install_uv
    uv=.uv/bin/uv
fi

unset VIRTUAL_ENV
UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never \
    "$uv" sync --locked --python "$python" --extra demo --extra hub --extra qlora --extra track
