"""A wheel contains the complete package and no other files, whether it is made from a checkout or from a source
archive.
"""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("omni_pipeline", "stages", "gateway")


@pytest.fixture(scope="module")
def files(wheel: Path) -> dict[str, bytes]:
    return contents(wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, except the file that lists them."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def metadata(files: dict[str, bytes], name: str) -> bytes:
    [found] = [content for path, content in files.items() if path.endswith(f".dist-info/{name}")]
    return found


def test_it_holds_every_module_every_layout_and_the_page(files: dict[str, bytes]) -> None:
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    layouts = {f"omni_pipeline/layouts/{path.name}" for path in (ROOT / "configs").iterdir()}
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "gateway" / "playground" / "page").iterdir()}
    assert {name for name in files if ".dist-info/" not in name} == modules | layouts | page
    assert all(files[name] == (ROOT / name).read_bytes() for name in modules | layouts | page)


def test_it_holds_the_licence_and_says_which(files: dict[str, bytes]) -> None:
    text = metadata(files, "licenses/LICENSE").decode()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert text == (ROOT / "LICENSE").read_text()
    said = email.message_from_bytes(metadata(files, "METADATA"))
    assert (said["License-Expression"], said["License-File"]) == ("Apache-2.0", "LICENSE")


def test_it_describes_itself(files: dict[str, bytes]) -> None:
    said = email.message_from_bytes(metadata(files, "METADATA"))
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    assert said["Requires-Python"] == ">=3.11"


def test_wheel_of_a_source_archive_is_the_same(
    sources: Path, build: Callable[[Path], Path], files: dict[str, bytes], tmp_path: Path
) -> None:
    code = f"import setuptools.build_meta as backend; backend.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=sources, check=True, stdout=subprocess.DEVNULL)
    [archive] = tmp_path.glob("*.tar.gz")
    assert contents(build(archive)) == files
