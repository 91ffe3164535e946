"""Delivers the pipeline's answer to each open request: all messages in order, or one error."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

import msgspec

from gateway.admission import Place
from gateway.pipeline import Pipeline
from omni_pipeline.contract.route import Route
from omni_pipeline.errors import ErrorInfo, OmniError, internal
from omni_pipeline.logs import fields
from omni_pipeline.wire.messages import Claim, End, Failed, Start, Work
from omni_pipeline.wire.stream_numbers import ReceiveLedger
from stages.messages import AudioDelta, AudioDone, ChatRequest, TextDelta, TextDone

log = logging.getLogger(__name__)

Body: TypeAlias = TextDelta | TextDone | AudioDelta | AudioDone

# Estimated sizes in memory, in bytes: of a waiting message without its text and sound, and of one log-probability in a
# message. The log-probability is of a token or of an alternative to a token.
_MESSAGE_BYTES = 256
_LOGPROB_BYTES = 256


class Answer:
    """The answer to one open request: an asynchronous source of its messages, for use in `async with`.

    Leaving the block closes the answer. If the answer is not complete by then, the request is aborted in every worker.

    Attributes:
        error: The error with which the request failed; None if it has not failed.
        place: The place of the request in the server; None for a warm-up request.
        needed: The stages that the request passes through.
    """

    def __init__(
        self, request_id: str, route: Route, collector: Collector, deadline: float, place: Place | None = None
    ) -> None:
        self.request_id = request_id
        self.place = place
        self._collector = collector
        self._route = route
        self.needed = route.all
        self._waiting: deque[Body] = deque()
        self._unread_bytes = 0  # of the waiting messages and of the messages that the reader took last
        self._taken_bytes = 0
        self._ledger = ReceiveLedger()
        self._ended: set[str] = set()
        self._heard: set[str] = set()
        self.error: ErrorInfo | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_error: Callable[[], None] | None = None
        self._timer = asyncio.get_running_loop().call_at(deadline, self._time_out)

    # --- the reader's side ---

    async def take(self) -> list[Body]:
        """Wait for messages. Returns all that have come since the last call; an empty list after the last message.

        The messages that a call returns count as unread until the next call, because the reader sends them to the
        client in between. Cancelling the call loses no messages.

        Raises:
            OmniError: if the request has failed. Messages from before the failure are returned first, unless the reader
                was too slow.
        """
        self._unread_bytes -= self._taken_bytes
        self._taken_bytes = 0
        while not self._waiting:
            if self.error is not None:
                raise OmniError(self.error)
            if self._complete:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        bodies = list(self._waiting)
        self._waiting.clear()
        self._taken_bytes = self._unread_bytes
        return bodies

    def on_error(self, call: Callable[[], None]) -> None:
        """Register a function that is called as soon as the request fails, whether or not the reader is waiting at that
        time.
        """
        self._on_error = call
        if self.error is not None:
            call()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
        self._collector.close(self, abandoned=not self._over)

    def release(self) -> None:
        """Cancel the timer of the deadline."""
        self._timer.cancel()

    # --- the pipeline's side ---

    @property
    def _complete(self) -> bool:
        return self._ended == self._route.outputs.keys()

    @property
    def _over(self) -> bool:
        return self._complete or self.error is not None

    @property
    def stages(self) -> frozenset[str]:
        """The stages that this request may still need."""
        if self._over:
            return frozenset()
        needed = set() if self._heard else set(self._route.before)
        for source, output in self._route.outputs.items():
            if source not in self._ended:
                needed |= output.stages if source in self._heard else output.stages | output.first
        return frozenset(needed)

    def deliver(self, message: Work) -> None:
        """Accept the next message. If a message is missing or the reader is too far behind, end the request with an
        error.
        """
        body = message.body
        if not self._in_sequence(message):
            self._fail_stream(message.source)
            return
        self._heard.add(message.source)
        if isinstance(message, End):
            self._ended.add(message.source)
            if self._complete and self.place is not None:
                self.place.free_memory()
        if body is not None:
            self._waiting.append(body)
            self._unread_bytes += _weight(body)
            if self._unread_bytes > self._collector.reader_bytes:
                self._waiting.clear()
                self.fail(
                    ErrorInfo(
                        status=503,
                        message="The answer was not read fast enough, so the server ended it.",
                        type="server_error",
                        code="slow_reader",
                    )
                )
                return
        self._wake()

    def _in_sequence(self, message: Work) -> bool:
        if isinstance(message, Start) or message.source not in self._route.outputs or message.source in self._ended:
            return False
        try:
            self._ledger.check(message)
        except OmniError:
            return False
        return True

    def _fail_stream(self, source: str) -> None:
        log.error("a message from stage %s is missing or out of order", source, extra=fields(answer_id=self.request_id))
        info = internal("A part of the answer was lost inside the server.", code="stream_gap").info
        self.fail(msgspec.structs.replace(info, stage=source))

    def _time_out(self) -> None:
        if not self._over:
            message = "The answer was not complete within the time that the server allows for a request."
        else:
            message = "The answer was not read within the time that the server allows for a request."
        self.fail(ErrorInfo(status=504, message=message, type="timeout_error", code="request_timeout"))

    def fail(self, error: ErrorInfo) -> None:
        """End the request with `error`, unless it has failed already, and abort it in the pipeline."""
        if self.error is not None:
            return
        abandoned = not self._over
        self.error = error
        self._collector.close(self, abandoned=abandoned)
        self._wake()
        if self._on_error is not None:
            self._on_error()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Collector:
    """Delivers each message of the pipeline to the open request that the message belongs to.

    Args:
        pipeline: The pipeline that computes the answers.
        reader_bytes: Approximate number of bytes that a slow reader may leave unread before the request is ended.
        restart_seconds: Longest time that a request may wait for stages that are being restarted.

    Attributes:
        dropped_late: Number of messages that came for a request that was no longer open.
    """

    def __init__(self, pipeline: Pipeline, *, reader_bytes: int, restart_seconds: float) -> None:
        self.reader_bytes = reader_bytes
        self.dropped_late = 0
        self._restart_seconds = restart_seconds
        self._loss = asyncio.Event()
        self._pipeline = pipeline
        self._open: dict[str, Answer] = {}
        pipeline.connect(self._deliver, self._lost)
        pipeline.budget(self._claim)

    async def ready(self, route: Route) -> None:
        """Wait up to `restart_seconds` for stages of `route` that are being restarted. Raises OmniError (503) if they
        take longer.
        """
        await self._pipeline.wait_for(route.all, self._restart_seconds)

    async def whole(self) -> None:
        """Wait until every stage can work, without a time limit. Raises OmniError (503) if the service is stopping."""
        await self._pipeline.wait_for(None, None)

    async def loss(self) -> None:
        """Wait until a worker is lost. Returns at once if a worker was lost since the last call."""
        await self._loss.wait()
        self._loss.clear()

    def submit(
        self, request_id: str, body: ChatRequest, route: Route, *, deadline: float, place: Place | None = None
    ) -> Answer:
        """Send a request to the pipeline and open its answer.

        Args:
            request_id: Id of the request. An id is never used twice.
            body: The request, in the form that the entry stage reads.
            route: The stages that the request needs.
            deadline: Time on the event loop's clock by which the answer must have been read and closed.
            place: The place of the request. The pipeline holds the place until the workers have forgotten the request.
                None for a warm-up request, whose memory is not counted.

        Raises:
            OmniError: 503 if the pipeline cannot take the request now.
        """
        answer = self._open[request_id] = Answer(request_id, route, self, deadline, place)
        try:
            self._pipeline.submit(request_id, body, route.all)
        except BaseException:  # after any error, a request that was not sent must not stay open
            answer.release()
            self._open.pop(request_id, None)
            raise
        if place is not None:
            place.lend()
        return answer

    def close(self, answer: Answer, *, abandoned: bool) -> None:
        """Forget the request of `answer`. If the request is `abandoned`, abort it in its workers too."""
        if self._open.pop(answer.request_id, None) is None:
            return
        forgotten = _nothing
        if answer.place is not None:
            answer.place.withdraw()
            forgotten = answer.place.take_back
        if abandoned:
            self._pipeline.abort(answer.request_id, answer.needed, forgotten)
        else:
            forgotten()

    def fail_all(self, error: ErrorInfo) -> None:
        """End every open request with `error`."""
        for answer in list(self._open.values()):
            answer.fail(error)

    def _deliver(self, message: Work | Failed) -> None:
        answer = self._open.get(message.request_id)
        if answer is None:
            self.dropped_late += 1
        elif isinstance(message, Failed):
            answer.fail(msgspec.structs.replace(message.error, stage=message.error.stage or message.source))
        else:
            answer.deliver(message)

    def _claim(self, claim: Claim, grant: Callable[[], None]) -> None:
        answer = self._open.get(claim.request_id)
        if answer is None:
            return  # the stage that makes the claim has been told to forget the request
        if answer.place is None:
            grant()
        else:
            answer.place.claim(claim.passing, claim.lasting, grant)

    def _lost(self, stages: frozenset[str], error: ErrorInfo) -> None:
        self._loss.set()
        for answer in [answer for answer in self._open.values() if answer.stages & stages]:
            answer.fail(error)


def _nothing() -> None:
    """Does nothing. Used for a request without a place."""


def _weight(body: Body) -> int:
    """The approximate size of `body` in memory, in bytes."""
    if isinstance(body, TextDelta):
        tokens = sum(1 + len(token.top) for token in body.logprobs)
        return _MESSAGE_BYTES + len(body.text.encode()) + _LOGPROB_BYTES * tokens
    if isinstance(body, AudioDelta):
        return _MESSAGE_BYTES + body.samples.nbytes
    return _MESSAGE_BYTES
