"""Only files under the allowed directory are read as local media."""

from __future__ import annotations

import errno
import os

import pytest

from gateway.media.local_files import LocalFiles
from omni_pipeline.errors import OmniError


@pytest.fixture
def tree(tmp_path):
    """An allowed directory `root` with links of every kind, next to a secret directory."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / "sub").mkdir(parents=True)
    secret.mkdir()
    (root / "a.png").write_bytes(b"picture")
    (root / "sub" / "b.png").write_bytes(b"other")
    (root / "odd name é.png").write_bytes(b"odd")
    (secret / "key").write_bytes(b"secret")
    (root / "inner-link").symlink_to("sub/b.png")
    (root / "outer-link").symlink_to(secret / "key")
    (root / "outer-directory").symlink_to(secret)
    (root / "dangling").symlink_to(secret / "missing")
    (root / "loop").symlink_to("loop")
    (tmp_path / "root-twin").mkdir()
    (tmp_path / "root-twin" / "c.png").write_bytes(b"twin")
    (tmp_path / "way-in").symlink_to(root)
    os.mkfifo(root / "fifo")
    return tmp_path


def outcome(root: str | None, path: str) -> bytes | str:
    """The content of `path`, or the code of the error."""
    try:
        return LocalFiles(root).open(path, "images[0]").read()
    except OmniError as error:
        info = error.info
    assert (info.status, info.param) == (400, "images[0]")
    return info.code or ""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.png", b"picture"),
        ("./a.png", b"picture"),
        ("sub/../a.png", b"picture"),
        ("sub//b.png", b"other"),
        ("odd name é.png", b"odd"),
        ("inner-link", b"other"),
        ("{base}/root/a.png", b"picture"),
        ("{base}/root/sub/../a.png", b"picture"),
        ("missing.png", "media_not_found"),
        ("sub", "media_not_found"),
        (".", "media_not_found"),
        ("fifo", "media_not_found"),
        ("loop", "media_not_found"),
        ("a.png/x", "media_not_found"),
        ("a\0b", "media_not_found"),
        ("x" * 300, "media_not_found"),
        ("../secret/key", "media_not_allowed"),
        ("../secret/missing", "media_not_allowed"),
        ("../root-twin/c.png", "media_not_allowed"),
        ("sub/../../secret/key", "media_not_allowed"),
        ("../root/a.png/../../secret/key", "media_not_allowed"),
        ("{base}/secret/key", "media_not_allowed"),
        ("{base}/secret/missing", "media_not_allowed"),
        ("{base}/root/../secret/key", "media_not_allowed"),
        ("{base}/way-in/a.png", "media_not_allowed"),
        ("outer-link", "media_not_allowed"),
        ("outer-directory/key", "media_not_allowed"),
        ("dangling", "media_not_allowed"),
        ("/etc/passwd", "media_not_allowed"),
        ("/etc/no-such-file", "media_not_allowed"),
        ("/dev/zero", "media_not_allowed"),
        ("/proc/self/environ", "media_not_allowed"),
    ],
)
def test_paths(tree, path, expected):
    assert outcome(str(tree / "root"), path.replace("{base}", str(tree))) == expected


def test_an_error_tells_not_whether_there_is_a_file_outside(tree):
    messages = set()
    for name in ("key", "missing"):
        with pytest.raises(OmniError) as caught:
            LocalFiles(str(tree / "root")).open(f"{tree}/secret/{name}", "images[0]")
        messages.add(caught.value.info)
    assert len(messages) == 1


def test_the_root_may_be_reached_by_a_symbolic_link(tree):
    assert outcome(str(tree / "way-in"), "a.png") == b"picture"
    assert outcome(str(tree / "way-in"), f"{tree}/way-in/a.png") == b"picture"
    assert outcome(str(tree / "way-in"), f"{tree}/root/a.png") == b"picture"


def test_the_default_root_is_the_directory_of_the_start(tree, monkeypatch):
    monkeypatch.chdir(tree / "root")
    files = LocalFiles(None)
    monkeypatch.chdir(tree)
    assert files.open("a.png", "images[0]").read() == b"picture"


def test_an_empty_root_forbids_local_files(tree):
    assert outcome("", str(tree / "root" / "a.png")) == "media_not_allowed"


@pytest.mark.parametrize("path", ["outer-directory/key", "outer-directory/sub/../key"])
def test_a_directory_exchanged_after_the_check_leads_nowhere(tree, monkeypatch, path):
    # This replacement of the check accepts the path, as if `outer-directory` had become a link only after the check.
    monkeypatch.setattr(LocalFiles, "_inside", lambda self, path, param: tree / "root" / path)
    (tree / "secret" / "sub").mkdir()
    assert outcome(str(tree / "root"), path) == "media_not_allowed"


def test_a_file_is_read_in_pieces_and_closed_when_nobody_has_it_any_more(tree):
    content = bytes(range(256)) * 10_000
    (tree / "root" / "large").write_bytes(content)
    before = os.listdir("/proc/self/fd")
    file = LocalFiles(str(tree / "root")).open("large", "images[0]")
    pieces = []
    while piece := file.read():
        pieces.append(piece)
    assert (file.size, b"".join(pieces)) == (len(content), content)
    assert max(map(len, pieces)) <= 1 << 20
    del file
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("path", ["a.png", "fifo", "sub", "missing.png", "outer-link"])
def test_no_file_is_left_open(tree, path):
    before = os.listdir("/proc/self/fd")
    outcome(str(tree / "root"), path)
    assert os.listdir("/proc/self/fd") == before


def test_a_disk_that_fails_is_a_file_that_cannot_be_read(tree, monkeypatch):
    file = LocalFiles(str(tree / "root")).open("a.png", "images[0]")

    def fail(handle: int, size: int) -> bytes:
        raise OSError(errno.EIO, "the disk is damaged")

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(OmniError) as caught:
        file.read()
    assert (caught.value.info.status, caught.value.info.code) == (400, "media_not_found")
