"""Joins the answers to the pieces of a recording. Each piece has its own answer. The joined answer contains these
answers in the order of the pieces.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

from gateway.answers.collector import Answer, Body
from omni_pipeline.errors import ErrorInfo, OmniError, internal
from stages.messages import RecordingCut


class PieceAnswers:
    """The answer to a recording, for use in `async with`. The messages of this answer are a `RecordingCut`, and then
    the messages of the first piece, of the second piece, and so on.

    Several pieces are in the pipeline at a time, so messages of a piece may arrive before the previous piece is
    complete. Messages that arrive too early are kept until the previous piece is complete. The text of a piece does not
    depend on other pieces, so the number of pieces in the pipeline does not change the text.

    Args:
        recording: The answer to the recording's own request. The caller keeps this answer open, because the pipeline
            drops the recording when this answer is closed.
        submit: Sends the piece with the given index to the pipeline.
        at_once: Maximum number of pieces in the pipeline at a time.

    Attributes:
        error: The error with which the request failed; None if it has not failed.
    """

    def __init__(self, recording: Answer, submit: Callable[[int], Awaitable[Answer]], at_once: int) -> None:
        self.error: ErrorInfo | None = None
        self._recording = recording
        self._submit = submit
        self._at_once = at_once
        self._count: int | None = None  # number of pieces; None while unknown
        self._submitted = 0
        self._open: deque[Answer] = deque()
        self._cut: list[Body] = []  # the `RecordingCut`, until the reader takes it
        self._on_error: Callable[[], None] | None = None
        recording.on_error(self._lose_recording)

    async def __aenter__(self) -> PieceAnswers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for answer in self._open:
            await answer.__aexit__(kind, error, traceback)

    async def take(self) -> list[Body]:
        """Wait for messages. Returns some or all of the messages that have arrived since the last call. After the last
        message, returns an empty list.

        The first call waits for the first message of a piece, so that an error of the first piece is raised before any
        message is returned. No message is lost if a call is cancelled.

        Raises:
            OmniError: if the request has failed.
        """
        if self._count is None:
            await self._begin()
        while await self._send_pieces():
            answer = self._open[0]
            bodies = await answer.take()
            if bodies:
                cut, self._cut = self._cut, []
                return cut + bodies
            await answer.__aexit__(None, None, None)
            self._open.popleft()
        return []

    def on_error(self, call: Callable[[], None]) -> None:
        """Register a function that is called as soon as the request fails."""
        self._on_error = call
        if self.error is not None:
            call()

    async def _begin(self) -> None:
        """Wait until the times of the pieces are known."""
        self._cut = await self._recording.take()
        match self._cut:
            case [RecordingCut(ends=ends)]:
                self._count = len(ends)
            case _:
                raise internal("The server did not divide the recording into pieces.", code="stream_gap")

    async def _send_pieces(self) -> bool:
        """Send pieces to the pipeline, up to the maximum number. Returns False if all pieces have been answered."""
        assert self._count is not None
        while self._submitted < self._count and len(self._open) < self._at_once:
            if self.error is not None:
                raise OmniError(self.error)
            answer = await self._submit(self._submitted)
            self._submitted += 1
            self._open.append(answer)
            answer.on_error(functools.partial(self._fail_with, answer))
            if self.error is not None:  # the request has failed while the piece was being sent
                answer.fail(self.error)
        return bool(self._open)

    def _lose_recording(self) -> None:
        """Called when the recording's own request has failed. If there are pieces left to send, let the whole answer
        fail. If all pieces have been sent, do nothing here: a piece that still needs the lost data gets its own error.
        """
        if self._submitted != self._count:
            self._fail_with(self._recording)

    def _fail_with(self, failed: Answer) -> None:
        """Let the whole answer fail, because a piece or the recording has failed."""
        if self.error is not None or failed.error is None:
            return
        self.error = failed.error
        for answer in list(self._open):
            answer.fail(failed.error)
        if self._on_error is not None:
            self._on_error()
