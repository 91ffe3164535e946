"""`scripts/install.sh` makes a checkout's environment, also when this environment is active."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT
from tests.installed.conftest import Installation, plain_environment


def test_an_active_environment_is_made_anew(sources: Path, tmp_path: Path) -> None:
    checkout, cache = tmp_path / "checkout", tmp_path / "cache"
    shutil.copytree(sources, checkout, symlinks=True)
    shutil.copytree(ROOT / "requirements", checkout / "requirements")
    (checkout / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install.sh", checkout / "scripts")
    shared = Path((ROOT / ".venv" / ".stamp").read_text().split()[0])  # the large environment of this checkout
    cache.mkdir()
    (cache / shared.name).symlink_to(shared)
    installed = Installation(checkout / ".venv", tmp_path)

    def install(path: str) -> str:
        # Without an index, an attempt to build another large environment fails at once.
        environment = plain_environment() | {"OMNI_VENV_CACHE": str(cache), "PIP_NO_INDEX": "1", "PATH": path}
        command = [str(checkout / "scripts" / "install.sh")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert installed.sgl_omni("version").returncode == 0
        return done.stdout

    assert "installed" in install(os.environ["PATH"])
    with (checkout / "pyproject.toml").open("a") as project:
        project.write("# a change that needs a new environment, but no new dependencies\n")
    active = f"{checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    assert "installed" in install(active)
    assert [each.name for each in cache.iterdir() if each.is_dir()] == [shared.name]
    assert install(active) == ""
