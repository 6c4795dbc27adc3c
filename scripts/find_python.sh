#!/bin/sh
# Finds a Python on this machine, without downloading one, and prints its path, or nothing.
#
#   find_python.sh first            the one to work with: $PYTHON, or the first that is 3.11 or newer
#   find_python.sh newer PYTHON     another one, of a newer minor version than PYTHON
set -eu

# A version manager's shim may stand on PATH for a Python that it then refuses to run, and a venv's Python goes when the
# venv goes. So each candidate is run once, with a condition, and tells where it really lives.
resolve() {
    "$1" -c "import sys; ($2) and print(getattr(sys, '_base_executable', None) or sys.executable)" 2>/dev/null || true
}

candidates() {
    command -v "python$1" || true
    for python in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/"$1".*/bin/"python$1"; do
        if [ -x "$python" ]; then echo "$python"; fi
    done
    if command -v uv >/dev/null; then uv python find --no-python-downloads --system "$1" 2>/dev/null || true; fi
}

first_of() { # CONDITION VERSION...
    condition=$1
    shift
    for version in "$@"; do
        for candidate in $(candidates "$version"); do
            found=$(resolve "$candidate" "$condition")
            if [ -n "$found" ]; then
                echo "$found"
                return
            fi
        done
    done
}

case "$1" in
first)
    if [ -n "${PYTHON:-}" ]; then
        resolve "$PYTHON" "sys.version_info >= (3, 11)"
    else
        first_of "sys.version_info >= (3, 11)" 3 3.13 3.12 3.11 3.14
    fi
    ;;
newer) first_of "sys.version_info[:2] > $("$2" -c 'import sys; print(sys.version_info[:2])')" 3.13 3.14 3.12 ;;
*) echo "usage: find_python.sh first | newer PYTHON" >&2 && exit 2 ;;
esac
