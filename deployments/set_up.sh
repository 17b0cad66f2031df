#!/bin/sh
# Makes the virtual environment from the lock files. What is missing is said with how to get it.
# PYTHON: the interpreter to use. VENV: where the environment goes.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

fail() {
    printf 'set-up failed: %s\n' "$1" >&2
    exit 1
}

command -v "$PYTHON" >/dev/null 2>&1 ||
    fail "there is no $PYTHON. Install Python 3.11, 3.12 or 3.13 (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13), or say where it is: make setup PYTHON=/path/to/python3.13"

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$PYTHON does not run"
case $version in
    3.11 | 3.12 | 3.13) ;;
    *) fail "$PYTHON is Python $version; 3.11, 3.12 or 3.13 is needed. If you have one, say where: make setup PYTHON=python3.12" ;;
esac

"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "Python $version has no venv module. Debian, Ubuntu: apt-get install python$version-venv"

# An environment of another Python, or of a moved folder, can't be mended: it is made anew.
if [ -d "$VENV" ] && [ "$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$version" ]; then
    rm -rf "$VENV"
fi
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" ||
    fail "can't make $VENV. Is there space left here (df -h .), and may you write here?"

network="The package index must be reachable (PIP_INDEX_URL and UV_INDEX_URL are honoured); see the lines above"
printf 'set-up: packages for Python %s into %s\n' "$version" "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock ||
    fail "uv could not be installed. $network"
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --require-hashes -r requirements.lock ||
    fail "the locked packages could not be installed. $network"
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps --no-build-isolation --editable . ||
    fail "the project itself could not be installed; see the lines above"
touch "$VENV/.ready"
