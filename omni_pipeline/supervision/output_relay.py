"""Passes on what a child process writes to its standard output and error, and remembers the last lines."""

from __future__ import annotations

import contextlib
import os

_READ_BYTES = 64 * 1024
_STDOUT, _STDERR = 1, 2

# The number of bytes to remember from the end of the output, and the maximum number and length of
# the lines to show.
_TAIL_BYTES = 8192
_LINES = 30
_LINE_CHARACTERS = 240


class Relay:
    """A pipe from one child to our standard error. Make it before the fork."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._tail = b""

    def fileno(self) -> int:
        """A descriptor that is readable when the child has written something."""
        return self._reader

    def attach(self) -> None:
        """In the child: redirect standard output and standard error to this pipe."""
        os.dup2(self._writer, _STDOUT)
        os.dup2(self._writer, _STDERR)
        self.close()
        os.close(self._writer)

    def parent_side(self) -> None:
        """In the parent, after the fork: close the writing end, which only the child uses."""
        os.close(self._writer)

    def pass_on(self) -> bool:
        """Pass on what the child has written. Returns whether more can come."""
        while True:
            try:
                data = os.read(self._reader, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            rest = memoryview(data)
            with contextlib.suppress(OSError):  # nobody reads our own standard error any more
                while rest:
                    rest = rest[os.write(_STDERR, rest) :]

    def last_words(self) -> list[str]:
        """The last lines that the child wrote."""
        lines = self._tail.decode(errors="replace").splitlines()
        return [line[:_LINE_CHARACTERS] for line in lines if line.strip()][-_LINES:]

    def close(self) -> None:
        """Close the reading end."""
        os.close(self._reader)
