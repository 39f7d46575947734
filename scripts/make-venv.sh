#!/usr/bin/env bash
# make-venv.sh VENV LOCK [--tools-only | --clients]
# Create or refresh a virtual environment from a hashed lock, and install the project into it in development mode
# unless told otherwise: --tools-only leaves it out, --clients does, too, and takes Python 3.11 only.
# Safe to interrupt and to repeat: VENV/.complete appears last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$1
lock=$2
mode=${3:-}

suits() {
    if [[ $mode == --clients ]]; then
        "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
    else
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
    fi
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3.11}" python3.11 python3 python3.13 python3.12; do
        if suits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if [[ $mode == --clients ]]; then
        echo "error: no Python 3.11 found, which alone the clients of ASAP::O are built for" >&2
        return 1
    fi
    echo "error: no Python 3.11 or newer found; install one (scripts/install-system.sh) or name it: make PYTHON=..." >&2
    return 1
}

create() {
    local python
    python=$(find_python)
    rm -rf "$venv"
    if "$python" -m venv "$venv" 2>/dev/null; then
        return
    fi
    # Debian's python3 without python3-venv has no ensurepip, but its pip can install into another environment.
    rm -rf "$venv"
    if "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip "$venv"; then
        "$python" -m pip --python "$venv/bin/python" install --quiet --upgrade pip && return
    fi
    rm -rf "$venv"
    echo "error: $python can make no virtual environment; install its venv module (scripts/install-system.sh)" >&2
    return 1
}

# Two makes at once must not install over each other. The lock file lies outside, as the environment may be replaced.
if command -v flock >/dev/null; then
    mkdir -p build
    exec 9>build/venv.lock
    flock 9
fi

"$venv/bin/python" -m pip --version >/dev/null 2>&1 && suits "$venv/bin/python" || create
export PIP_DISABLE_PIP_VERSION_CHECK=1
rm -f "$venv/.complete"
"$venv/bin/python" -m pip install --quiet --require-hashes --only-binary :all: -r "$lock"
if [[ -z $mode ]]; then
    "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
fi
touch "$venv/.complete"
