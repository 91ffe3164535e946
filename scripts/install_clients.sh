#!/usr/bin/env bash
# Installs the client libraries of tests/clients, and prints the directory that contains them.
#
# The directory (about 1.2 GB) is built once for each set of versions, in the cache that install.sh uses. The libraries
# need other versions of some packages than the server does, so they have an environment of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
cache=${OMNI_VENV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/omni-pipeline}
programs=tests/clients/programs

key=$({ "$python" -c 'import sys; print(sys.version, sys.prefix)'; node --version 2>/dev/null || echo "no node"
    cat requirements/clients.txt "$programs/package-lock.json"; } | sha256sum | cut -c1-16)
target=$cache/clients-$key

mkdir -p "$cache"
exec 9>"$target.lock"
flock 9

# The marker is written last, so that an interrupted build is repeated and not mistaken for a complete one.
if [ ! -e "$target/.complete" ]; then
    echo "building the environment of the client libraries in $target" >&2
    rm -rf "$target"
    "$python" -m venv "$target"
    "$target/bin/python" -m pip install -qq --disable-pip-version-check --requirement requirements/clients.txt >&2
    if command -v npm >/dev/null; then
        cp "$programs/package.json" "$programs/package-lock.json" "$target/"
        npm ci --prefix "$target" --silent --no-audit --no-fund >&2
    else
        echo "npm is not installed, so the libraries for Node are left out" >&2
    fi
    touch "$target/.complete"
fi
echo "$target"
