#!/usr/bin/env bash
# Makes the checkout's .venv: a small environment on top of a shared environment, which contains the large dependencies.
#
# The shared environment (about 11 GB) is built once for each set of dependencies. It is in $OMNI_VENV_CACHE
# (default: omni-pipeline in the user's cache directory), so that further checkouts install in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
cache=${OMNI_VENV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/omni-pipeline}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; $python is $("$python" -V). Set PYTHON=… to a newer Python." >&2
    exit 1
}
# In an activated environment, `python3` is the environment's Python. If this is .venv, which is deleted below, the
# installation would delete its own Python. The Python that the environment was made with is always safe.
python=$("$python" -c 'import sys; print(sys._base_executable)')

# The key depends only on the data that decide which packages are installed: a new lint rule must not rebuild 11 GB.
dependencies=$("$python" - <<'PY'
import pathlib, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
print("\n".join([*project["build-system"]["requires"], *wanted]))
PY
)
key=$({ "$python" -c 'import sys; print(sys.version, sys.prefix)'; echo "$dependencies"; cat requirements/constraints.txt; } |
    sha256sum | cut -c1-16)
base=$cache/$key
stamp="$base $(cat pyproject.toml omni_pipeline/__init__.py scripts/install.sh | sha256sum | cut -c1-16)"

if [ -e "$base/.complete" ] && [ "$(cat .venv/.stamp 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/$key.lock"
flock --nonblock 9 || { echo "waiting for another installation of the same environment"; flock 9; }

# The marker is written last, so that an interrupted build is repeated and not mistaken for a complete one.
if [ ! -e "$base/.complete" ]; then
    echo "building the shared environment in $base (downloads about 5 GB, takes some minutes)"
    rm -rf "$base"
    "$python" -m venv "$base"
    "$base/bin/python" -m pip install -qq --disable-pip-version-check --constraint requirements/constraints.txt --requirement /dev/stdin \
        <<<"$dependencies"
    touch "$base/.complete"
fi

rm -rf .venv
"$python" -m venv --without-pip .venv
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
base_site=$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$base_site')" >"$site/omni_base.pth"
"$base/bin/python" -m pip --python .venv/bin/python install -qq --no-deps --no-build-isolation --editable .
echo "$stamp" >.venv/.stamp
echo "installed into .venv"
