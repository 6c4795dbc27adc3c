#!/bin/sh
# Runs the tests on the venv's Python and then, if this machine has one, on a newer one: there without those that start
# processes or need real servers, which depend on no Python. Arguments go to pytest.
set -eu

# Many tests wait, for a process, a server or a deadline: twice as many of them as processors keep a machine busy. Who has
# nothing left takes over from others: the long tests stand beside each other.
workers=$((2 * $(getconf _NPROCESSORS_ONLN)))

.venv/bin/python -m pytest -n "$workers" --dist worksteal "$@"
ran=$(.venv/bin/python --version)

newer=$(scripts/find_python.sh newer .venv/bin/python)
if [ -z "$newer" ]; then
    echo "The tests passed on $ran; there is no newer Python on this machine."
    exit 0
fi
venv=.venv-$("$newer" -c 'import sys; print(*sys.version_info[:2], sep=".")')
scripts/set_up.sh "$venv" requirements/development.txt "$newer"
"$venv/bin/python" -m pytest -n "$workers" --dist worksteal --without-servers --ignore tests/cli --ignore tests/crash --ignore tests/faults \
    --ignore tests/servers "$@"
echo "The tests passed on $ran and on $("$venv/bin/python" --version)."
