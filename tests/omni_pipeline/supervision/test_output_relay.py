"""The output of child processes is passed on in complete lines, its amount is limited, and the last lines are kept."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from omni_pipeline.supervision.output_relay import Relay, StandardError


class Screen(StandardError):
    """Stands in for the terminal: collects the text that is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = b""

    def write(self, data: bytes) -> None:
        self.shown += data


class Child:
    """A relay, and the write end of the relay's pipe. In a real server, a child process has the write end."""

    def __init__(self, screen: Screen) -> None:
        self.relay = Relay(screen)
        self._end = os.dup(self.relay._writer)
        self.relay.parent_side()

    def write(self, data: bytes) -> None:
        os.write(self._end, data)
        assert self.relay.pass_on()

    def close(self) -> None:
        os.close(self._end)
        self.relay.finish()


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def children(screen: Screen) -> Iterator[list[Child]]:
    children = [Child(screen), Child(screen)]
    yield children
    for child in children:
        child.close()


def test_lines_of_different_children_are_not_mixed(screen: Screen, children: list[Child]) -> None:
    one, other = children
    one.write(b'{"message": ')
    other.write(b'{"message": "other"}\n{"mess')
    one.write(b'"one"}\n')
    other.write(b'age": "again"}\n')
    assert screen.shown.splitlines() == [b'{"message": "other"}', b'{"message": "one"}', b'{"message": "again"}']


def test_a_progress_bar_is_shown_at_once(screen: Screen, children: list[Child]) -> None:
    children[0].write(b"\r 10 %\r 20 %")
    assert screen.shown == b"\r 10 %\r"


def test_the_unfinished_last_line_is_shown_at_the_end(screen: Screen) -> None:
    child = Child(screen)
    child.write(b"Fatal")
    child.close()
    assert screen.shown == b"Fatal\n"
    assert child.relay.last_words() == ["Fatal"]


def test_output_without_line_ends_is_neither_kept_nor_lost(screen: Screen, children: list[Child]) -> None:
    for _ in range(100):
        children[0].write(b"x" * 4000)
        assert len(children[0].relay._line) <= 16 * 1024
    children[0].write(b"\n")
    assert screen.shown == b"x" * 400_000 + b"\n"


def test_one_call_passes_on_a_part_of_a_full_pipe(screen: Screen, children: list[Child]) -> None:
    child = children[0]
    size = fcntl.fcntl(child._end, fcntl.F_SETPIPE_SZ, 1 << 20)
    child.write(b"\n" * size)
    assert 0 < len(screen.shown) < size
    child.close()
    assert len(screen.shown) == size
    children[0] = Child(screen)


def test_a_pipe_that_another_process_keeps_open_is_closed_at_the_end(screen: Screen) -> None:
    child = Child(screen)
    kept = os.dup(child._end)
    child.write(b"worker\n")
    os.write(kept, b"left")
    child.close()
    assert screen.shown == b"worker\nleft\n"
    with pytest.raises(BrokenPipeError):
        os.write(kept, b"more")
    os.close(kept)
