#!/usr/bin/env bash
# Install the system packages that the project and its full test set use, on Debian and Ubuntu. Run as root.
# Nothing is compiled: every Python dependency of requirements/dev.txt comes as a wheel for Linux x86-64 and arm64.
set -euo pipefail

apt-get update
apt-get install --yes --no-install-recommends ca-certificates git make python3 python3-venv

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: this release brings $(python3 --version); install Python 3.11 or newer and call make PYTHON=..." >&2
    exit 1
}
