"""One session: executes the client's events, and reacts to the turns of the user."""

from __future__ import annotations

from functools import partial
from typing import Any

from gateway.realtime.hearing import Hearing
from gateway.realtime.items.conversation import Item, Message, SpokenContent, shown
from gateway.realtime.items.heard_words import samples_in
from gateway.realtime.items.kept_bytes import KeptBytes
from gateway.realtime.items.kept_items import KeptItems
from gateway.realtime.items.received_items import ItemReader
from gateway.realtime.outbox import Outbox
from gateway.realtime.protocol import client_events as sent
from gateway.realtime.protocol import items as sent_items
from gateway.realtime.protocol.reading import Heard
from gateway.realtime.protocol.server_events import error_event, event
from gateway.realtime.protocol.session import Session, session_object
from gateway.realtime.responses.answering import Answering, Party, Services
from gateway.realtime.responses.transcription import Transcriber
from gateway.realtime.sounds.input_buffer import sound_of
from gateway.realtime.turns.turn_detection import IdleTimeout
from gateway.realtime.turns.turn_options import TurnSettings
from omni_pipeline.errors import OmniError, bad_request


class Dialogue:
    """One session.

    Args:
        party: The client.
        session: The settings at the beginning.
        services: The objects that all sessions share.
        outbox: Sends events.
    """

    def __init__(self, party: Party, session: Session, services: Services, outbox: Outbox) -> None:
        self._party = party
        self._session = session
        self._services = services
        self._outbox = outbox
        in_thread = partial(services.exchanges.in_thread, party.client)
        self._read = ItemReader(services.exchanges.loader, party.client, services.limits, in_thread)
        self._kept = KeptBytes(services.exchanges, party.client)
        self._items = KeptItems(services.limits.realtime_items, self._kept)
        self._hearing = Hearing(session, services.voices, self._kept, self)
        self._answering = Answering(
            party,
            services,
            outbox,
            self._items,
            begins=lambda: self._transcriber.make_way(),
            speaks=self._hearing.expect_nothing,
            ended=self._hearing.expect_speech,
        )
        self._transcriber = Transcriber(services.exchanges, self._answering.sender, self._answering.quiet, outbox.put)
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a response is being made, or the user is speaking."""
        return self._answering.busy or self._hearing.in_turn

    async def quiet(self) -> None:
        """Wait until no response is being made."""
        await self._answering.quiet()

    def open(self) -> None:
        """Send the first event."""
        self._tell("session.created", session=self._shown_session())

    async def close(self) -> None:
        """End all responses, and release the memory and the voice detection of the session. May be called twice."""
        if self._closed:
            return
        self._closed = True
        await self._answering.close()
        await self._transcriber.close()
        self._hearing.close()
        self._kept.close()

    async def take(self, heard: Heard) -> None:
        """Execute one event.

        Raises:
            OmniError: if the event is wrong, or not allowed now.
        """
        if isinstance(heard.event, sent.AudioAppend):
            data = await self._read.sound(heard.event.audio, heard.strings, "audio", _nothing)
            await self._hearing.append(data)
            return
        self._answering.forget_prepared()  # the event may change the input of the next answer
        match heard.event:
            case sent.AudioCommit():
                self._items.conversation.check_room()
                self._add_sound(*await self._hearing.commit())
            case sent.AudioClear():
                self._hearing.clear()
                self._answering.stop_listening()
                self._tell("input_audio_buffer.cleared")
            case sent.SessionUpdate():
                self._session = self._services.rules.update(self._session, heard.event.session)
                await self._hearing.change(self._session)
                self._tell("session.updated", session=self._shown_session())
            case sent.ItemCreate():
                await self._create(heard, heard.event)
            case sent.ItemRetrieve():
                item = self._items.found(heard.event.item_id, code="item_retrieve_invalid_item_id")
                self._tell("conversation.item.retrieved", item=shown(item))
            case sent.ItemDelete():
                item = self._items.found(heard.event.item_id, code="item_delete_invalid_item_id")
                self._items.remove(item)
                self._tell("conversation.item.deleted", item_id=item.id)
            case sent.ItemTruncate():
                self._truncate(heard.event)
            case sent.ResponseCreate():
                await self._respond(heard, heard.event.response or sent.ResponseOptions())
            case sent.ResponseCancel():
                self._answering.cancel(heard.event.response_id)

    def _shown_session(self) -> dict[str, Any]:
        party = self._party
        return session_object(self._session, party.session_id, party.model, party.expires_at)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._outbox.put(event(kind, **fields))

    # --- the user's turns, see `TurnActs` ---

    def begin_turn(self, item_id: str, at_ms: int) -> None:
        """End the answer, because the user has begun to speak."""
        self._tell("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=item_id)
        if self._turn_settings.interrupt_response:
            self._answering.give_way()

    def pause_turn(self, item_id: str, sound: bytes) -> None:
        """Prepare the answer to the turn that may have ended."""
        if self._turn_settings.create_response:
            item = Message(item_id, "user", [sound_of(sound, "audio")])
            self._answering.prepare(self._session, item, sound)

    def resume_turn(self) -> None:
        """Discard the prepared answer."""
        self._answering.forget_prepared()

    def continue_turn(self, sound: bytes) -> None:
        """Compute the beginning of the turn early, while the user is still speaking."""
        self._answering.listen(self._session, Message("", "user", [sound_of(sound, "audio")]))

    def end_turn(self, item_id: str, sound: bytes, at_ms: int) -> None:
        """Add the turn to the conversation, and answer it."""
        self._tell("input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=item_id)
        self._answering.forget_prepared(unless=sound)
        self._add_turn(item_id, sound)

    def break_silence(self, item_id: str, sound: bytes, timeout: IdleTimeout) -> None:
        """Begin an answer, because the user has been silent for the idle time."""
        self._tell(
            "input_audio_buffer.timeout_triggered",
            audio_start_ms=timeout.start_ms,
            audio_end_ms=timeout.at_ms,
            item_id=item_id,
        )
        self._add_turn(item_id, sound)

    def _add_turn(self, item_id: str, sound: bytes) -> None:
        try:
            self._add_sound(item_id, sound)
            if self._turn_settings.create_response:
                self._answering.answer_turn(self._session)
        except OmniError as error:  # handled here, because no event of the client has caused the error
            self._answering.forget_prepared()
            self._outbox.put(error_event(error.info))

    @property
    def _turn_settings(self) -> TurnSettings:
        options = self._session.turn_detection
        assert options is not None
        return options

    # --- items ---

    def _add_sound(self, item_id: str, sound: bytes) -> None:
        """Add committed sound to the conversation as a new item. If the session asks for transcripts, transcribe the
        sound.
        """
        content = sound_of(sound, "audio")
        item = Message(item_id, "user", [content])
        before = self._items.add(item)
        self._tell("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        self._announce(item, before)
        if self._session.transcription is not None:
            self._transcriber.add(item.id, content, self._session.transcription)

    async def _create(self, heard: Heard, create: sent.ItemCreate) -> None:
        self._items.conversation.check_room()
        item = await self._read_item(heard, create.item, "item")
        self._announce(item, self._items.add(item, create.previous_item_id))

    async def _read_item(self, heard: Heard, item: sent_items.Item, path: str) -> Item:
        """The item that a client describes. While the item is read, its bytes are counted. When this method returns,
        the bytes are released.
        """
        taken = 0

        def hold(count: int) -> None:
            nonlocal taken
            self._kept.hold(count)
            taken += count

        try:
            return await self._read.item(item, heard.strings, self._session.input_format, path, hold)
        finally:
            self._kept.release(taken)

    def _announce(self, item: Item, before: str | None) -> None:
        self._tell("conversation.item.added", previous_item_id=before, item=shown(item))
        self._tell("conversation.item.done", previous_item_id=before, item=shown(item))

    def _truncate(self, truncate: sent.ItemTruncate) -> None:
        item = self._items.found(truncate.item_id, code="item_truncate_invalid_item_id")
        if not isinstance(item, Message) or item.role != "assistant":
            raise bad_request(
                "Only a message with the role 'assistant' can be truncated.",
                param="item_id",
                code="item_truncate_invalid_item_id",
            )
        for content in item.content:
            if isinstance(content, SpokenContent):
                content.cut(samples_in(truncate.audio_end_ms))
        self._tell(
            "conversation.item.truncated",
            item_id=item.id,
            content_index=truncate.content_index,
            audio_end_ms=int(truncate.audio_end_ms),
        )

    # --- responses ---

    async def _respond(self, heard: Heard, options: sent.ResponseOptions) -> None:
        session = self._services.rules.for_response(self._session, options)
        items: list[Item] | None = None
        if options.input is not None:
            items = []
            for index, item in enumerate(options.input):
                path = f"response.input[{index}]"
                if isinstance(item, sent_items.ItemReference):
                    items.append(self._items.found(item.id or "", code="invalid_value", param=f"{path}.id"))
                else:
                    items.append(await self._read_item(heard, item, path))
        self._answering.respond(session, items, options.metadata, aside=options.conversation == "none")


def _nothing(count: int) -> None:
    """Count no bytes. `Hearing.append` counts the bytes that are kept."""
