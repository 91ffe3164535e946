"""Delivers the pipeline's answer to each open request: all messages in order, or one error."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TypeAlias

import msgspec

from gateway.admission import PartPlace, Place
from gateway.api.speech_format import SAMPLE_RATE
from gateway.pipeline import Pipeline
from omni_pipeline.contract.prompt_chain import UNKNOWN_PROMPT, PromptChain
from omni_pipeline.contract.route import Route
from omni_pipeline.errors import ErrorInfo, OmniError, internal
from omni_pipeline.logs import fields
from omni_pipeline.wire.messages import Claim, End, Failed, Paused, Start, Work
from omni_pipeline.wire.stream_numbers import ReceiveLedger
from stages.messages import AudioDelta, AudioDone, EntryRequest, RecordingCut, TextDelta, TextDone

log = logging.getLogger(__name__)

Body: TypeAlias = TextDelta | TextDone | AudioDelta | AudioDone | RecordingCut

# Estimated size of a waiting message in memory, in bytes. Its text and its sound are not included.
_MESSAGE_BYTES = 256
# Estimated size of one log-probability in memory, in bytes. Each token and each alternative token has a
# log-probability.
_LOGPROB_BYTES = 256

# A paused stage continues when the unread bytes are at most this fraction of `reader_bytes`. The rest of `reader_bytes`
# is for the next part of the answer.
_PAUSED_SHARE = 0.25


class Answer:
    """The answer to one open request: an asynchronous source of its messages, for use in `async with`.

    The answer is closed at the end of the block. If the answer is not complete at that time, the request is aborted in
    every worker.

    Attributes:
        error: The error with which the request failed; None if it has not failed.
        place: The resources of the request; None for a warm-up request.
        needed: The stages that the request passes through.
    """

    def __init__(
        self,
        request_id: str,
        route: Route,
        collector: Collector,
        deadline: float,
        place: Place | PartPlace | None = None,
        *,
        played: bool = False,
    ) -> None:
        self.request_id = request_id
        self.place = place
        self._speaker = place if isinstance(place, Place) else None  # a `PartPlace` has no spoken answer
        self._collector = collector
        self._route = route
        self.needed = route.all
        self._waiting: deque[Body] = deque()
        self._unread_bytes = 0  # bytes of the waiting messages and of the messages that the reader took last
        self._taken_bytes = 0
        self._ledger = ReceiveLedger()
        self._ended: set[str] = set()
        self._heard: set[str] = set()
        self.error: ErrorInfo | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_error: Callable[[], None] | None = None
        self._resume: Callable[[], None] | None = None
        self._played = played
        self._deadline = deadline
        self._timer = asyncio.get_running_loop().call_at(deadline, self._time_out)

    # --- the reader's side ---

    async def take(self) -> list[Body]:
        """Wait for messages. Returns all messages that have arrived since the last call, and an empty list after the
        last message.

        Returned messages still count as unread. They count as read at the next call, because by then the reader has
        sent them to the client. No message is lost if a call is cancelled.

        Raises:
            OmniError: if the request has failed. Messages that arrived before the failure are returned before the error
                is raised. But if the reader was too slow, these messages are dropped.
        """
        self._unread_bytes -= self._taken_bytes
        self._taken_bytes = 0
        self._resume_if_read()
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
        """Register a function that is called as soon as the request fails, even if the reader is not waiting at that
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
        """Accept the next message. If an earlier message is missing, or if the reader is too slow, end the request with
        an error.
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
        if isinstance(body, AudioDelta):
            seconds = body.samples.shape[0] / SAMPLE_RATE
            if self._played:
                self._deadline += seconds
            if self._speaker is not None:
                self._speaker.hear(seconds)
        elif isinstance(body, AudioDone) and self._speaker is not None:
            self._speaker.hush()
        if body is not None:
            self._waiting.append(body)
            self._unread_bytes += _weight(body)
            if self._unread_bytes > self._collector.reader_bytes:
                self._waiting.clear()
                self.fail(
                    ErrorInfo(
                        status=503,
                        message="The client did not read the answer fast enough, so the server ended the answer.",
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

    def pause(self, resume: Callable[[], None]) -> None:
        """Record that a stage has paused. The stage computes the next part of the answer only after `resume`."""
        self._resume = resume
        if self._speaker is not None:
            self._speaker.pause()
        self._resume_if_read()

    def _resume_if_read(self) -> None:
        if self._resume is not None and self._unread_bytes <= _PAUSED_SHARE * self._collector.reader_bytes:
            resume, self._resume = self._resume, None
            if self._speaker is not None:
                self._speaker.go_on()
            resume()

    def _time_out(self) -> None:
        loop = asyncio.get_running_loop()
        if self._deadline > loop.time():  # sound arrived after the timer was set, and moved the deadline
            self._timer = loop.call_at(self._deadline, self._time_out)
            return
        if not self._over:
            message = "The answer was not complete within the time that the server allows for a request."
        else:
            message = "The client did not read the answer within the time that the server allows for a request."
        self.fail(ErrorInfo(status=504, message=message, type="timeout_error", code="request_timeout"))

    def fail(self, error: ErrorInfo) -> None:
        """End the request with `error`, and abort it in the pipeline. Do nothing if the request has failed already."""
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
        dropped_late: Number of messages that arrived after their request had been closed.
        aborted: Called when the workers have freed all data of an aborted request. The argument is the number of
            seconds since the abort.
    """

    def __init__(self, pipeline: Pipeline, *, reader_bytes: int, restart_seconds: float) -> None:
        self.reader_bytes = reader_bytes
        self.dropped_late = 0
        self.aborted: Callable[[float], object] = _ignore
        self._restart_seconds = restart_seconds
        self._pipeline = pipeline
        self._open: dict[str, Answer] = {}
        pipeline.connect(self._deliver, self._lost)
        pipeline.budget(self._claim)
        pipeline.pace(self._pause)

    async def ready(self, route: Route) -> None:
        """Wait for stages of `route` that are being restarted. Raises OmniError (503) if a restart takes longer than
        `restart_seconds`.
        """
        await self._pipeline.wait_for(route.all, self._restart_seconds)

    @property
    def compares_prompts(self) -> bool:
        """Whether the choice of a replica depends on the prompt; see `gateway.pipeline.Pipeline.compares_prompts`."""
        return self._pipeline.compares_prompts

    async def cold(self) -> Mapping[str, int]:
        """Wait until a warm-up request is needed; see `gateway.pipeline.Pipeline.cold`."""
        return await self._pipeline.cold()

    def submit(
        self,
        request_id: str,
        body: EntryRequest,
        route: Route,
        *,
        deadline: float,
        place: Place | PartPlace | None = None,
        played: bool = False,
        beside: str = "",
        warming: Mapping[str, int] | None = None,
        chain: PromptChain = UNKNOWN_PROMPT,
    ) -> Answer:
        """Send a request to the pipeline and open its answer.

        Args:
            request_id: Id of the request. An id must not be used twice.
            body: The request, in the form for the entry stage.
            route: The stages that the request needs.
            deadline: Time on the event loop's clock by which the answer must have been read and closed.
            place: The resources of the request, which are occupied until the workers have forgotten the request. None
                for a warm-up request, whose memory is not counted.
            played: Whether the client may play the sound while it reads. If True, each chunk of sound that arrives
                moves the deadline later by the length of the chunk.
            beside, warming, chain: The same arguments as in `gateway.pipeline.Pipeline.submit`.

        Raises:
            OmniError: 503 if the pipeline cannot take the request now.
        """
        answer = self._open[request_id] = Answer(request_id, route, self, deadline, place, played=played)
        try:
            self._pipeline.submit(request_id, body, route.all, beside=beside, warming=warming, chain=chain)
        except BaseException:  # if sending fails with any error, the request must not stay open
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
            began = time.monotonic()

            def freed() -> None:
                self.aborted(time.monotonic() - began)
                forgotten()

            self._pipeline.abort(answer.request_id, answer.needed, freed)
        else:
            self._pipeline.release(answer.request_id)
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
            if isinstance(message.body, TextDone):
                usage = message.body.usage
                self._pipeline.count_prompt(message.request_id, usage.prompt_tokens, usage.cached_tokens)
            answer.deliver(message)

    def _claim(self, claim: Claim, grant: Callable[[], None]) -> None:
        answer = self._open.get(claim.request_id)
        if answer is None:
            return  # the abort is already on its way to the stage that makes the claim
        if answer.place is None:
            grant()
        else:
            answer.place.claim(claim.passing, claim.lasting, grant)

    def _pause(self, paused: Paused, resume: Callable[[], None]) -> None:
        answer = self._open.get(paused.request_id)
        if answer is not None:
            answer.pause(resume)

    def _lost(self, stages: frozenset[str], error: ErrorInfo, requests: Collection[str] | None) -> None:
        used = self._open.keys() if requests is None else requests
        for answer in [answer for name, answer in self._open.items() if name in used and answer.stages & stages]:
            answer.fail(error)


def _ignore(_: float) -> None:
    """Do nothing with the time of an abort."""


def _nothing() -> None:
    """Do nothing. Used for a request without a `Place`."""


def _weight(body: Body) -> int:
    """The approximate size of `body` in memory, in bytes."""
    if isinstance(body, TextDelta):
        tokens = sum(1 + len(token.top) for token in body.logprobs)
        calls = sum(_MESSAGE_BYTES + len(call.arguments.encode()) for call in body.calls)
        text = len(body.text.encode()) + len(body.reasoning.encode())
        return _MESSAGE_BYTES + text + calls + _LOGPROB_BYTES * tokens
    if isinstance(body, AudioDelta):
        return _MESSAGE_BYTES + body.samples.nbytes
    return _MESSAGE_BYTES
