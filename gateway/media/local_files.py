"""Reads local media files: only regular files under one directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gateway.media.addresses import not_allowed
from omni_pipeline.errors import OmniError, bad_request

_PIECE = 1 << 20


class OpenFile:
    """An open file. The file is closed when the last reference to this object disappears.

    There is no method that closes the file, because another thread may still wait in `read` for a slow disk. If the
    file were closed, that thread could read another file that has got the same descriptor.

    Attributes:
        size: Size of the file when it was opened.
    """

    def __init__(self, handle: int, size: int, param: str) -> None:
        self.size = size
        self._handle = handle
        self._param = param

    def __del__(self) -> None:
        os.close(self._handle)

    def read(self) -> bytes:
        """The next piece of the file; empty at the end. This call may block, so call this method in a thread. Raises
        OmniError (400 ``media_not_found``) if reading fails.
        """
        try:
            return os.read(self._handle, _PIECE)
        except OSError as error:
            raise _not_found(self._param) from error


class LocalFiles:
    """The files under `root`.

    Args:
        root: Allowed directory. None means the current directory; an empty string forbids local files.

    An error about a path outside the root does not reveal whether a file exists there.
    """

    def __init__(self, root: str | None) -> None:
        self._root = None if root == "" else Path(root or ".").absolute()
        self._real_root = self._root and self._root.resolve()

    def open(self, path: str, param: str) -> OpenFile:
        """Open the file at `path`, absolute or relative to the root. Blocks, so call this method in a thread.

        Raises:
            OmniError: 400 ``media_not_allowed`` outside of the root; 400 ``media_not_found`` if there is no regular,
                readable file.
        """
        try:
            # Open in non-blocking mode, so that the call returns even for a FIFO without a writer.
            handle = os.open(self._inside(path, param), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            raise _not_found(param) from error
        try:
            self._check_inside(handle, param)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise _not_found(param)
        except OmniError:
            os.close(handle)
            raise
        return OpenFile(handle, status.st_size, param)

    def _inside(self, path: str, param: str) -> Path:
        """The real path of `path`. Both the path as written and the path after following symbolic links must be under
        the root.
        """
        if self._root is None or self._real_root is None:
            raise not_allowed("this server reads no local files", param)
        written = Path(os.path.normpath(self._root / path))
        real = Path(os.path.realpath(self._root / path))
        if not (written.is_relative_to(self._root) or written.is_relative_to(self._real_root)) or not (
            real.is_relative_to(self._real_root)
        ):
            raise _outside(param)
        return real

    def _check_inside(self, handle: int, param: str) -> None:
        """Check the opened file again: directories in its path may have been replaced in the meantime."""
        assert self._real_root is not None
        if not Path(os.readlink(f"/proc/self/fd/{handle}")).is_relative_to(self._real_root):
            raise _outside(param)


def _outside(param: str) -> OmniError:
    return not_allowed("it is outside the directory from which this server reads local media", param)


def _not_found(param: str) -> OmniError:
    return bad_request(f"'{param}' is not a readable file.", param=param, code="media_not_found")
