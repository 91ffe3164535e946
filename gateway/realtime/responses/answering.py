"""Makes the responses of one session. In the conversation, there is one response at a time. Outside of the
conversation, a few responses can be made at the same time. While the user pauses, one response is prepared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

from msgspec import Struct

from gateway.answers.exchange import Exchanges, Sender
from gateway.metrics import Metrics
from gateway.realtime.items.context_window import ContextWindow
from gateway.realtime.items.conversation import Item, Message, SpokenContent, new_id, turns_of
from gateway.realtime.items.heard_words import samples_in
from gateway.realtime.items.kept_items import KeptItems
from gateway.realtime.outbox import Outbox
from gateway.realtime.protocol.server_events import error_event, event
from gateway.realtime.protocol.session import Session, SessionRules
from gateway.realtime.responses.answer_events import AnswerEvents, Ending, ResponseFields
from gateway.realtime.responses.early_parts import EarlyParts
from gateway.realtime.responses.response import Response
from gateway.realtime.responses.speculation import Speculation, Speculations
from gateway.realtime.turns.voice_pool import VoicePool
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request
from stages.messages import ChatRequest

MOST_ASIDE = 4
"""Largest number of responses outside of the conversation at the same time."""


class Party(Struct, frozen=True):
    """The client of a session, and the properties of the session that do not change.

    Attributes:
        client: Name of the client. The limits for each client use this name.
        headers: Headers of the request that opened the session.
        model: Name of the model.
        expires_at: Unix time at which the session ends.
    """

    client: str
    headers: Mapping[str, str]
    session_id: str
    model: str
    expires_at: int


class Services(Struct, frozen=True):
    """The objects that all sessions share.

    Attributes:
        rules: Applies updates of settings.
        exchanges: Admits responses to the pipeline.
        voices: Finds speech in sound.
        speculations: Counts the answers that are prepared.
    """

    rules: SessionRules
    exchanges: Exchanges
    voices: VoicePool
    speculations: Speculations

    @property
    def limits(self) -> Limits:
        return self.exchanges.limits

    @property
    def metrics(self) -> Metrics:
        return self.exchanges.metrics


class Answering:
    """The responses of one session.

    Args:
        party: The client.
        services: The objects that all sessions share.
        outbox: Sends events.
        items: The conversation.
        begins: Called when the pipeline begins to make a response.
        speaks: Called when a response of the conversation begins to send its events.
        ended: Called after each response of the conversation. The argument is the time, in ms, until the response's
            sound has been played.
    """

    def __init__(
        self,
        party: Party,
        services: Services,
        outbox: Outbox,
        items: KeptItems,
        *,
        begins: Callable[[], None],
        speaks: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        self._party = party
        self._services = services
        self._outbox = outbox
        self._items = items
        self._begins = begins
        self._speaks = speaks
        self._has_ended = ended
        self._window = ContextWindow()
        self._conversation_id = new_id("conv")
        self._active: Response | None = None
        self._aside: list[Response] = []
        self._speculation: Speculation | None = None
        self._early = EarlyParts(services.exchanges, services.speculations, self.sender)
        self._next: Session | None = None  # the settings for a turn that has ended during the active response
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a response is being made."""
        return not self._quiet.is_set()

    async def quiet(self) -> None:
        """Wait until no response is being made."""
        await self._quiet.wait()

    async def close(self) -> None:
        """End all responses."""
        self._closed = True
        self.forget_prepared()
        await self._early.close()
        responses = [*self._aside, *([self._active] if self._active else [])]
        for response in responses:
            response.cancel("client_cancelled")
        for response in responses:
            await response.gone()

    # --- requests of the client ---

    def respond(
        self, session: Session, items: list[Item] | None, metadata: dict[str, str] | None, *, aside: bool
    ) -> None:
        """Begin a response.

        Args:
            session: The settings of the response.
            items: The items that the response answers; None for all items of the conversation.
            aside: Whether the response is outside of the conversation.

        Raises:
            OmniError: 400 if the session cannot have another response now.
        """
        if aside and len(self._aside) >= MOST_ASIDE:
            raise bad_request(
                f"{MOST_ASIDE} responses outside of the conversation are in progress. Wait until one has ended.",
                code="too_many_responses",
            )
        if not aside:
            self._check_free()
        response = self._start(session, self._known() if items is None else items)
        self._release(response, session, metadata, aside=aside)

    def cancel(self, response_id: str | None) -> None:
        """End the response with this id. If the id is None, end the response of the conversation. Raises OmniError
        (400) if there is no such response.
        """
        running = [*([self._active] if self._active else []), *(self._aside if response_id else [])]
        response = next((one for one in running if response_id in (None, one.id)), None)
        if response is None:
            raise bad_request(
                "Cancellation failed: no such response is in progress.",
                param="response_id" if response_id else None,
                code="response_cancel_not_active",
            )
        self._interrupt(response, "client_cancelled")

    # --- turns of the user ---

    def give_way(self) -> None:
        """End the response of the conversation, because the user has begun to speak."""
        self._next = None
        if self._active is not None:
            self._services.metrics.realtime_interruptions.inc()
            self._interrupt(self._active, "turn_detected")

    def listen(self, session: Session, item: Item) -> None:
        """Compute the beginning of a turn, if there is room. This work makes the answer to the whole turn begin sooner.

        Args:
            item: The beginning of the turn as an item.
        """
        if self._active is None:
            self._early.compute(lambda: self._chat(session, [*self._known(), item]))

    def stop_listening(self) -> None:
        """Stop the work on the beginning of a turn, because the turn has been dropped."""
        self._early.stop()

    def prepare(self, session: Session, item: Item, sound: bytes) -> None:
        """Prepare the answer to a turn that may have ended, if there is room.

        Args:
            item: The item for this turn.
            sound: The sound of the turn.
        """
        if self._active is None and self._services.speculations.possible:
            response = self._start(session, [*self._known(), item])
            self._speculation = self._services.speculations.begin(response, sound)

    def forget_prepared(self, *, unless: bytes | None = None) -> None:
        """Discard the prepared answer, if there is one.

        Args:
            unless: Sound of a turn. If the prepared answer is for this turn, it is kept.
        """
        if self._speculation is not None and self._speculation.sound != unless:
            speculation, self._speculation = self._speculation, None
            self._services.speculations.end(speculation, kept=False)

    def answer_turn(self, session: Session) -> None:
        """Answer a turn that has ended, with the prepared answer if there is one. If a response is active, the turn
        waits, and is answered when this response has ended. Raises OmniError as `respond` does.
        """
        if self._active is not None:
            self._next = session
            return
        if self._speculation is None:
            self.respond(session, None, None, aside=False)
            return
        self._check_free()
        speculation, self._speculation = self._speculation, None
        self._services.speculations.end(speculation, kept=True)
        self._release(speculation.response, session, None, aside=False)

    # --- a response from its beginning to its end ---

    def sender(self, request_id: str) -> Sender:
        """Describes this session as the sender of a request."""
        party = self._party
        return Sender(party.client, request_id, party.headers, {"session_id": party.session_id})

    def _check_free(self) -> None:
        if self._active is not None:
            raise bad_request(
                f"The conversation already has an active response, '{self._active.id}'. Wait until this response is "
                "done, or cancel it.",
                code="conversation_already_has_active_response",
            )
        self._items.conversation.check_room()

    def _known(self) -> list[Item]:
        """The items of the conversation that the model gets for the next answer."""
        return self._window.within(self._items.conversation.items)

    def _start(self, session: Session, items: list[Item]) -> Response:
        self._early.stop()
        first = self._chat(session, items)
        response = Response(chain([first], self._shorter(session, items)), self._outbox, self._note_end)
        self._begins()
        response.start(self._services.exchanges, self.sender(response.id))
        return response

    def _shorter(self, session: Session, items: list[Item]) -> Iterator[ChatRequest]:
        """Shorter requests. Each request leaves out more of the oldest items than the previous request."""
        while (rest := self._window.shorten(items, session.truncation)) is not None:
            yield self._chat(session, rest)
            items = rest

    def _chat(self, session: Session, items: list[Item]) -> ChatRequest:
        chat = self._services.rules.chat(session, "response")
        chat.turns, chat.media = turns_of(items, session.instructions)
        return chat

    def _release(self, response: Response, session: Session, metadata: dict[str, str] | None, *, aside: bool) -> None:
        """Let a response send its events from now on."""
        self._quiet.clear()
        if aside:
            self._aside.append(response)
        else:
            self._active = response
            self._speaks()
        conversation = None if aside else self._items.conversation
        fields = ResponseFields(response.id, session, metadata, None if aside else self._conversation_id)
        response.release(AnswerEvents(fields, conversation, self._outbox.put))

    def _interrupt(self, response: Response, reason: str) -> None:
        """End a response. In the conversation, keep only those words of the response that the user can have heard."""
        message = response.answer.message if response.answer is not None else None
        played = 0.0 if response.first_sound is None else 1000 * (time.monotonic() - response.first_sound)
        if isinstance(message, Message):
            for content in message.content:
                if isinstance(content, SpokenContent):
                    content.cut(samples_in(played))
        response.cancel(reason)

    def _note_end(self, response: Response, ending: Ending) -> None:
        self._services.metrics.realtime_responses.labels(ending.status).inc()
        if response is self._active:
            self._active = None
            for item in response.answer.items if response.answer is not None else ():
                self._items.count(item)
            self._drop_damaged(ending)
            if not self._closed:
                self._has_ended(response.unplayed_ms)
                self._answer_next()
        else:
            self._aside.remove(response)
        if self._active is None and not self._aside:
            self._quiet.set()

    def _drop_damaged(self, ending: Ending) -> None:
        """Remove the item that has made a response fail, because every later response would fail too."""
        item = self._items.with_medium_at(ending.error.param) if ending.error is not None else None
        if item is not None:
            self._items.remove(item)
            self._outbox.put(event("conversation.item.deleted", item_id=item.id))

    def _answer_next(self) -> None:
        """Answer the turn that has ended during the last response, if there is one."""
        session, self._next = self._next, None
        if session is not None:
            try:
                self.answer_turn(session)
            except OmniError as error:
                self._outbox.put(error_event(error.info))
