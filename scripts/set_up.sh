#!/bin/sh
# Makes a venv ready for work, with uv where it is on PATH, else with venv and pip; does nothing if nothing changed.
#
#   set_up.sh VENV LOCK [PYTHON]    LOCK is a file of requirements/, installed by hash; then the project, editable
set -eu

venv=$1 lock=$2 python=${3:-}

works() { [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }

if works 2>/dev/null && [ -e "$venv/.ready" ] && [ -z "$(find pyproject.toml "$lock" -newer "$venv/.ready")" ]; then
    exit 0
fi

python=${python:-$(scripts/find_python.sh first)}
if [ -z "$python" ]; then
    echo "microflow needs Python 3.11 or newer; ${PYTHON:-python3} is not. Try:  make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
# Its Python was upgraded or removed since.
works 2>/dev/null || rm -rf "$venv"
rm -f "$venv/.ready"
echo "setting up $venv ($("$python" --version), $lock)"

if command -v uv >/dev/null; then
    [ -d "$venv" ] || uv venv --quiet --no-python-downloads --python "$python" "$venv"
    uv pip install --quiet --python "$venv/bin/python" --require-hashes -r "$lock"
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
else
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv" || {
        rm -rf "$venv"
        echo "$python cannot make a venv. On Debian and Ubuntu:  apt install python3-venv     or install uv" >&2
        exit 1
    }
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
fi
touch "$venv/.ready"
