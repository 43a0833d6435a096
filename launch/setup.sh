#!/usr/bin/env bash
# Make the environment at .venv from requirements.lock: setup.sh PYTHON [CACHE_FOLDER]
#
# With a cache folder the environment lies there, named by the hash of the lock and the Python
# version, and .venv is a link to it.
set -euo pipefail
python=$1 cache=${2:-}

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo "setup: needs Python 3.11 to 3.13, but $("$python" --version 2>&1) is $python;" \
        "run: make setup PYTHON=python3.12" >&2
    exit 2
fi

home=.venv
if [ -n "$cache" ]; then
    version=$("$python" -c 'import sys; print(*sys.version_info[:3], sep=".")')
    home=$cache/env-$version-$(sha256sum requirements.lock | cut -c1-16)
fi

# A cached environment is named by its lock; this checkout's own may be of an older one.
if [ ! -e "$home/ready" ] || { [ "$home" = .venv ] && [ requirements.lock -nt .venv/ready ]; }; then
    echo "setup: installing into $home; torch for GPUs is several GB, this takes minutes"
    rm -rf "$home"
    "$python" -m venv "$home"
    # --no-deps: the lock is complete. Hashes pick the builds that it was made for.
    "$home/bin/python" -m pip install --disable-pip-version-check --no-deps --require-hashes \
        --progress-bar off --quiet -r requirements.lock
    touch "$home/ready"
fi
if [ "$home" != .venv ]; then
    rm -rf .venv
    ln -s "$home" .venv
    touch .venv/ready
fi
echo "setup: $(.venv/bin/python --version), torch $(.venv/bin/python -c \
    'from importlib.metadata import version; print(version("torch"))') at .venv"
