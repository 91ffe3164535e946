"""Passes on the output of child processes (standard output and standard error), and keeps each child's last lines.

A child cannot block the process that passes on the output, because each call does a limited amount of work. The reader
of the output cannot block this process either, because output that is not read in time is dropped.
"""

from __future__ import annotations

import os
import select

_READ_BYTES = 64 * 1024
_STDOUT, _STDERR = 1, 2

# Maximum number of reads in one call, so that a call ends even if a child never stops writing.
_READS = 4

# Maximum number of reads after a child's end. A pipe normally contains up to 64 KiB, and never more than 1 MiB.
_LAST_READS = 16

# A writable pipe, socket or terminal accepts this number of bytes without blocking.
_WRITE_BYTES = select.PIPE_BUF

# Maximum time, in milliseconds, to wait for the reader of our standard error before output is dropped.
_READER_MS = 500

# Maximum length, in bytes, of an unfinished line that is kept until it is complete. Unfinished lines are kept so that
# lines of different children are not mixed.
_LINE_BYTES = 16 * 1024

# The number of bytes that are kept from the end of the output, and the maximum number and length of the lines that
# `last_words` returns.
_TAIL_BYTES = 8192
_LINES = 30
_LINE_CHARACTERS = 240

_CLOSED = -1


class StandardError:
    """Writes to our standard error. Output is dropped if the reader has stopped reading."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(_STDERR, select.POLLOUT)
        self._dropped = 0  # number of bytes that were dropped since the reader stopped reading

    def write(self, data: bytes) -> None:
        """Write `data`. Bytes that are not read in time are dropped. The number of dropped bytes is written later."""
        rest = memoryview(data)
        while rest:
            if not self._poll.poll(0 if self._dropped else _READER_MS):
                self._dropped += len(rest)
                return
            try:
                if self._dropped:
                    note = f"[{self._dropped} bytes of the workers' output were dropped, because nobody read them]\n"
                    self._dropped = 0
                    os.write(_STDERR, note.encode())
                else:
                    rest = rest[os.write(_STDERR, rest[:_WRITE_BYTES]) :]
            except OSError:  # nobody reads our own standard error any more
                return


class Relay:
    """A pipe from one child to our standard error. Create the object before the fork."""

    def __init__(self, output: StandardError) -> None:
        self._output = output
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._line = b""  # the beginning of a line that has been read but not been written yet
        self._tail = b""

    def fileno(self) -> int:
        """A file descriptor that is readable when the child has written output."""
        return self._reader

    def attach(self) -> None:
        """Called in the child: redirect standard output and standard error to this pipe."""
        os.dup2(self._writer, _STDOUT)
        os.dup2(self._writer, _STDERR)
        self.close()

    def parent_side(self) -> None:
        """Called in the parent after the fork: close the writing end, which only the child uses."""
        os.close(self._writer)
        self._writer = _CLOSED

    def pass_on(self, reads: int = _READS) -> bool:
        """Pass on a part of the child's output. Returns whether more output can come."""
        for _ in range(reads):
            try:
                data = os.read(self._reader, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            data = self._line + data
            end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            if len(data) - end > _LINE_BYTES:
                end = len(data)
            self._line = data[end:]
            self._output.write(data[:end])
        return True

    def finish(self) -> None:
        """Called after the child's end: pass on the remaining output, and close the pipe. Descendants of the child may
        still have the writing end open.
        """
        self.pass_on(_LAST_READS)
        if self._line:
            self._output.write(self._line + b"\n")
            self._line = b""
        self.close()

    def last_words(self) -> list[str]:
        """The last lines that the child wrote."""
        lines = self._tail.decode(errors="replace").splitlines()
        return [line[:_LINE_CHARACTERS] for line in lines if line.strip()][-_LINES:]

    def close(self) -> None:
        """Close the ends of the pipe that are open in this process."""
        for end in (self._reader, self._writer):
            if end != _CLOSED:
                os.close(end)
        self._reader = self._writer = _CLOSED
