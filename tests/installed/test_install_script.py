"""`scripts/install.sh` makes a checkout's environment, also when this environment is active."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT
from tests.installed.conftest import SOURCES, plain_environment


def test_an_active_environment_is_made_anew(tmp_path: Path) -> None:
    checkout, cache = tmp_path / "checkout", tmp_path / "cache"
    for name in (*SOURCES, "requirements", "scripts/install.sh"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, checkout / name)
    shared = Path((ROOT / ".venv" / ".stamp").read_text().split()[0])  # the large environment of this checkout
    cache.mkdir()
    (cache / shared.name).symlink_to(shared)
    # Without an index, an attempt to build another large environment fails at once.
    environment = os.environ | plain_environment() | {"OMNI_VENV_CACHE": str(cache), "PIP_NO_INDEX": "1"}
    environment["PATH"] = os.environ["PATH"]

    def install(path: str) -> str:
        command = [str(checkout / "scripts" / "install.sh")]
        done = subprocess.run(command, env=environment | {"PATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def version() -> str:
        program = str(checkout / ".venv" / "bin" / "sgl-omni")
        return subprocess.run([program, "version"], env=environment, capture_output=True, text=True, check=True).stdout

    assert "installed" in install(environment["PATH"])
    assert version()
    with (checkout / "pyproject.toml").open("a") as project:
        project.write("# a change that needs a new environment, but no new dependencies\n")
    active = f"{checkout / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    assert "installed" in install(active)
    assert version()
    assert [each.name for each in cache.iterdir() if each.is_dir()] == [shared.name]
    assert install(active) == ""
