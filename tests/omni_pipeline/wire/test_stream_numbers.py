"""Chunks get numbers when they are sent. When chunks arrive, a gap in the numbers is detected."""

from __future__ import annotations

import pytest

from omni_pipeline.errors import OmniError
from omni_pipeline.wire.messages import Chunk, End, Start
from omni_pipeline.wire.stream_numbers import KEPT_REQUESTS, ReceiveLedger, SendLedger


def chunk(seq: int = -1, request_id: str = "r", target: str = "b") -> Chunk[None]:
    return Chunk(request_id, "a", target, None, seq)


def end(count: int = -1, request_id: str = "r") -> End[None]:
    return End(request_id, "a", "b", None, count)


def test_chunks_of_a_stream_are_numbered_from_zero() -> None:
    ledger, chunks, last = SendLedger(), [chunk(), chunk()], end()
    for message in (*chunks, last):
        ledger.stamp(message)
    assert [message.seq for message in chunks] == [0, 1]
    assert last.count == 2


def test_edges_and_requests_count_apart() -> None:
    ledger = SendLedger()
    messages = [chunk(), chunk(target="c"), chunk(request_id="s"), chunk()]
    for message in messages:
        ledger.stamp(message)
    assert [message.seq for message in messages] == [0, 0, 0, 1]


def test_whole_stream_is_accepted() -> None:
    ledger = ReceiveLedger()
    for message in (Start("r", "a", "b", None), chunk(0), chunk(1), end(2)):
        ledger.check(message)


def test_empty_stream_is_accepted() -> None:
    ReceiveLedger().check(end(0))


@pytest.mark.parametrize(
    ("before", "message"),
    [([], chunk(1)), ([chunk(0)], chunk(2)), ([chunk(0)], chunk(0)), ([chunk(0)], end(2)), ([], end(1)), ([], chunk())],
    ids=["first lost", "middle lost", "twice", "last lost", "all lost", "not numbered"],
)
def test_gap_is_an_internal_error(before: list[Chunk[None]], message: Chunk[None] | End[None]) -> None:
    ledger = ReceiveLedger()
    for earlier in before:
        ledger.check(earlier)
    with pytest.raises(OmniError, match="a → b has a gap") as caught:
        ledger.check(message)
    assert (caught.value.info.status, caught.value.info.code) == (500, "stream_gap")


@pytest.mark.parametrize("finish", [lambda ledger: ledger.stamp(end()), lambda ledger: ledger.forget("r")])
def test_finished_request_takes_no_memory(finish: object) -> None:
    ledger = SendLedger()
    ledger.stamp(chunk())
    assert len(ledger) == 1
    finish(ledger)  # type: ignore[operator]
    assert len(ledger) == 0


def test_streams_that_never_end_are_bounded() -> None:
    ledger = SendLedger()
    for number in range(KEPT_REQUESTS + 10):
        ledger.stamp(chunk(request_id=str(number)))
    assert len(ledger) == KEPT_REQUESTS
