"""Makes one response of a session, as a request to the pipeline, from its admission to its last event."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator

from gateway.answers.collector import Body
from gateway.answers.exchange import Exchange, Exchanges, Sender
from gateway.answers.sending import unfinished
from gateway.api.speech_format import SAMPLE_RATE
from gateway.realtime.items.context_window import TOO_LONG
from gateway.realtime.items.conversation import new_id
from gateway.realtime.outbox import Outbox
from gateway.realtime.responses.answer_events import AnswerEvents, Ending
from omni_pipeline.errors import ErrorInfo, OmniError, internal
from omni_pipeline.logs import fields
from stages.messages import ChatRequest

log = logging.getLogger(__name__)


class Response:
    """One response while it is made.

    A response may be prepared before it is certain that the turn has ended. The response sends no events before
    `release`.

    Args:
        prompts: The request for the pipeline, followed by shorter requests. A shorter request is used if the previous
            request is too long.
        outbox: Sends the events.
        ended: Called after the last event of the response. The arguments are the response and its ending.

    Attributes:
        id: Id of the response.
        answer: The events and items of the response; None before `release`.
        first_sound: Time on the monotonic clock at which the first sound was sent; None before that time.
    """

    def __init__(
        self, prompts: Iterator[ChatRequest], outbox: Outbox, ended: Callable[[Response, Ending], None]
    ) -> None:
        self.id = new_id("resp")
        self.answer: AnswerEvents | None = None
        self.first_sound: float | None = None
        self._prompts = prompts
        self._outbox = outbox
        self._ended = ended
        self._early: list[Body] = []  # the parts of the answer that arrived before `release`
        self._begun = False  # whether the client has received a part of the answer
        self._failure: ErrorInfo | None = None
        self._made = False
        self._over = False
        self._task: asyncio.Task[None] | None = None

    @property
    def unplayed_ms(self) -> int:
        """Length of the sound that the client has not played yet. This assumes that the client began to play when the
        first sound was sent.
        """
        if self.first_sound is None or self.answer is None:
            return 0
        played = time.monotonic() - self.first_sound
        return max(int(1000 * (self.answer.words.samples / SAMPLE_RATE - played)), 0)

    def start(self, exchanges: Exchanges, sender: Sender) -> None:
        """Begin to make the response.

        Args:
            sender: The session.
        """
        self._task = asyncio.create_task(self._run(exchanges, sender))

    def release(self, answer: AnswerEvents) -> None:
        """Begin to send the events of the response. The events for the parts of the answer that have already arrived
        are sent now.
        """
        self.answer = answer
        answer.begin()
        early, self._early = self._early, []
        self._pass_on(early)
        if self._made:
            self._end_as_made()

    def cancel(self, reason: str) -> None:
        """End the response now. The last events of the response are sent before this call returns. The stages stop
        within a step.
        """
        self._end(Ending("cancelled", reason))
        if self._task is not None:
            self._task.cancel()

    async def gone(self) -> None:
        """Wait until the work on the response has stopped."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self, exchanges: Exchanges, sender: Sender) -> None:
        began = time.monotonic()
        try:
            await self._make(exchanges, sender)
        except OmniError as error:
            self._failure = error.info
        except asyncio.CancelledError:
            if not self._over:  # the server is ending
                self._end(Ending("cancelled", "client_cancelled"))
        except Exception:
            log.exception("unexpected error", extra=fields(response_id=self.id))
            self._failure = internal("Something went wrong inside the server.").info
        finally:
            self._made = True
            self._end_as_made()
            seconds = round(time.monotonic() - began, 6)
            log.info("realtime response", extra=fields(request_id=self.id, seconds=seconds, **sender.notes))

    async def _make(self, exchanges: Exchanges, sender: Sender) -> None:
        """Make the answer to the first prompt that is not too long.

        If a prompt is too long for the talker, the talker reports this only after the thinker has begun its text. If
        the client has received some of this text, the response fails, because the answer to a shorter prompt would have
        a different text. The next response begins with the shorter prompt.
        """
        chat: ChatRequest | None = next(self._prompts)
        for attempt in itertools.count():
            assert chat is not None
            request_id = f"{self.id}-{attempt}" if attempt else self.id
            try:
                async with exchanges.open_for(sender) as exchange:
                    exchange.progress.streamed = True
                    await self._receive(exchange, request_id, chat)
                    exchange.progress.outcome = "ok"
                return
            except OmniError as error:
                chat = next(self._prompts, None) if error.info.code == TOO_LONG else None
                if chat is None or self._begun:
                    raise
                self._early.clear()

    async def _receive(self, exchange: Exchange, request_id: str, chat: ChatRequest) -> None:
        """Send the answer of the pipeline to the client, piece by piece."""
        exchange.place.hold(sum(medium.nbytes for medium in chat.media))
        async with await exchange.submit(request_id, chat) as answer:
            while bodies := await answer.take():
                exchange.place.free()
                exchange.progress.saw(bodies)
                self._pass_on(bodies)
                await self._outbox.drained()

    def _pass_on(self, bodies: list[Body]) -> None:
        if self.answer is None:
            self._early += bodies
            return
        self._begun = self._begun or bool(bodies)
        for body in bodies:
            self.answer.take(body)
        if self.first_sound is None and self.answer.words.samples:
            self.first_sound = time.monotonic()

    def _end_as_made(self) -> None:
        """If the response is released, end it. Its status depends on how the pipeline's answer has ended."""
        if self.answer is None:
            return
        done = self.answer.text_done
        if self._failure is not None:
            self._end(Ending("failed", error=self._failure))
        elif done is None or not self.answer.complete:
            self._end(Ending("failed", error=unfinished().info))
        elif done.finish_reason == "length":
            self._end(Ending("incomplete", "max_output_tokens"))
        else:
            self._end(Ending("completed"))

    def _end(self, ending: Ending) -> None:
        if self._over:
            return
        self._over = True
        if self.answer is not None:
            self.answer.end(ending)
            self._ended(self, ending)
