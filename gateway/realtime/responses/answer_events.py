"""Converts the pipeline's messages for one response into the events and items of the response, in the protocol's
order.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from gateway.api.responses import usage as counted
from gateway.realtime.items.conversation import (
    Call,
    Conversation,
    Item,
    Message,
    SpokenContent,
    TextContent,
    new_id,
    shown,
)
from gateway.realtime.items.heard_words import SpokenWords
from gateway.realtime.protocol.server_events import Event, event
from gateway.realtime.protocol.session import Session, modalities, output_object
from gateway.realtime.sounds.sound_formats import OutputSound
from omni_pipeline.errors import ErrorInfo
from stages.messages import AudioDelta, AudioDone, TextDelta, TextDone, ToolCall

EndStatus = Literal["completed", "cancelled", "failed", "incomplete"]


class Ending(Struct, frozen=True):
    """How a response has ended.

    Attributes:
        reason: Why the response was cancelled or is incomplete.
        error: Why the response has failed.
    """

    status: EndStatus
    reason: str | None = None
    error: ErrorInfo | None = None


class ResponseFields(Struct, frozen=True):
    """The fields that are known at the beginning of a response and are shown in its events."""

    id: str
    session: Session
    metadata: dict[str, str] | None
    conversation_id: str | None


class AnswerEvents:
    """The events of one response.

    Args:
        fields: The fields that are shown in the response's events.
        conversation: The items of the response are added to this conversation. None for a response outside of the
            conversation.
        put: Sends an event.
    """

    def __init__(self, fields: ResponseFields, conversation: Conversation | None, put: Callable[[Event], None]) -> None:
        self._fields = fields
        self._conversation = conversation
        self._last = conversation.last_id if conversation is not None else None
        self._put = put
        self._spoken = fields.session.spoken
        self._sound = OutputSound(fields.session.output_format) if self._spoken else None
        self.items: list[Item] = []
        self._message: Message | None = None
        self._text: list[str] = []
        self._held = ""  # white space that belongs to a message only if more text follows
        self._calls: list[ToolCall] = []
        self._generated: list[int] = []
        self.words = SpokenWords()
        self.text_done: TextDone | None = None
        self.audio_done: AudioDone | None = None

    @property
    def complete(self) -> bool:
        """Whether all parts of the answer have arrived."""
        return self.text_done is not None and (not self._spoken or self.audio_done is not None)

    @property
    def message(self) -> Message | None:
        """The message of the response, if it has begun."""
        return next((item for item in self.items if isinstance(item, Message)), None)

    def begin(self) -> None:
        """Send the event that opens the response."""
        self._put(event("response.created", response=self._response("in_progress")))

    def take(self, body: Any) -> None:
        """Send the events for one message of the pipeline."""
        match body:
            case TextDelta():
                self._take_text(body)
            case AudioDelta():
                self._take_sound(body)
            case TextDone():
                self.text_done = body
            case AudioDone():
                self.audio_done = body

    def end(self, ending: Ending) -> None:
        """Send the last events."""
        completed = ending.status == "completed"
        if ending.status == "completed" and not self.items and not self._calls:
            self._open_message()  # an answer without text has an empty message
        if self._message is not None:
            self.words.complete = self.audio_done is not None
            self._close_message("completed" if completed else "incomplete")
        for call in self._calls if ending.status in ("completed", "incomplete") else ():
            self._add_call(call)
        response = self._response(ending.status)
        response["output"] = [shown(item) for item in self.items]
        details: dict[str, Any] = {"type": ending.status}
        if ending.reason is not None:
            details["reason"] = ending.reason
        if ending.error is not None:
            info = ending.error
            details["error"] = {"type": info.type, "code": info.code, "message": _with_place(info)}
        response["status_details"] = details
        if self.text_done is not None:
            response["usage"] = _usage(self.text_done, self.audio_done)
        self._put(event("response.done", response=response))

    # --- parts of the answer ---

    def _take_text(self, delta: TextDelta) -> None:
        self._calls += delta.calls
        self._generated += delta.ids
        text = self._held + delta.text
        if self._message is None and not text.strip():
            self._held = text
            return
        self._held = ""
        if not text:
            return
        message = self._open_message()
        self._text.append(text)
        self.words.add_text(text, len(delta.ids))
        kind = "response.output_audio_transcript.delta" if self._spoken else "response.output_text.delta"
        self._put(event(kind, **self._place(message), delta=text))

    def _take_sound(self, delta: AudioDelta) -> None:
        if self._sound is None or not delta.samples.shape[0]:
            return
        message = self._open_message()
        self.words.add_sound(delta.samples.shape[0])
        self._put_sound(message, self._sound.feed(delta.samples.numpy()))

    def _put_sound(self, message: Message, data: bytes) -> None:
        if data:
            delta = base64.b64encode(data).decode()
            self._put(event("response.output_audio.delta", **self._place(message), delta=delta))

    def _open_message(self) -> Message:
        if self._message is None:
            message = self._message = Message(new_id("item"), "assistant", [], "in_progress")
            before = self._add(message)
            self._put_item_added(message, before)
            part = {"type": "audio", "transcript": ""} if self._spoken else {"type": "text", "text": ""}
            self._put(event("response.content_part.added", **self._place(message), part=part))
            content = SpokenContent(self.words) if self._spoken else TextContent("")
            message.content.append(content)
        return self._message

    def _close_message(self, status: Literal["completed", "incomplete"]) -> None:
        message, self._message = self._message, None
        assert message is not None
        text, place = "".join(self._text), self._place(message)
        [content] = message.content
        if isinstance(content, SpokenContent) and self._sound is not None:
            self._put_sound(message, self._sound.finish())
            self._put(event("response.output_audio.done", **place))
            self._put(event("response.output_audio_transcript.done", **place, transcript=text))
            part = {"type": "audio", "transcript": text}
        else:
            assert isinstance(content, TextContent)
            content.text = text
            self._put(event("response.output_text.done", **place, text=text))
            part = {"type": "text", "text": text}
        self._put(event("response.content_part.done", **place, part=part))
        message.status = status
        self._put_item_done(message)

    def _add_call(self, call: ToolCall) -> None:
        """Add a complete call. The arguments of the call are sent in one piece."""
        item = Call(new_id("item"), new_id("call")[:32], call.name, "", "in_progress")
        before = self._add(item)
        self._put_item_added(item, before)
        item.arguments = call.arguments
        place = self._place(item)
        del place["content_index"]
        place["call_id"] = item.call_id
        self._put(event("response.function_call_arguments.delta", **place, delta=call.arguments))
        self._put(event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments))
        item.status = "completed"
        self._put_item_done(item)

    # --- items ---

    def _add(self, item: Message | Call) -> str | None:
        """Add an item to the response and to the conversation. Returns the id of the item before the new item.

        The items of the response come directly after the items that the response answers, even if the user has said
        more in the meantime.
        """
        if not self.items:
            item.generated = self._generated  # not a copy, because more ids are added to the list later
        self.items.append(item)
        if self._conversation is None:
            return None
        before = self._conversation.insert(item, self._last)
        self._last = item.id
        return before

    def _put_item_added(self, item: Item, before: str | None) -> None:
        self._put(event("response.output_item.added", **self._index(item), item=shown(item)))
        if self._conversation is not None:
            self._put(event("conversation.item.added", previous_item_id=before, item=shown(item)))

    def _put_item_done(self, item: Item) -> None:
        self._put(event("response.output_item.done", **self._index(item), item=shown(item)))
        if self._conversation is not None:
            before = self._conversation.before(item)
            self._put(event("conversation.item.done", previous_item_id=before, item=shown(item)))

    def _index(self, item: Item) -> dict[str, Any]:
        index = next(index for index, own in enumerate(self.items) if own is item)
        return {"response_id": self._fields.id, "output_index": index}

    def _place(self, item: Item) -> dict[str, Any]:
        return {**self._index(item), "item_id": item.id, "content_index": 0}

    def _response(self, status: str) -> dict[str, Any]:
        session = self._fields.session
        response: dict[str, Any] = {
            "object": "realtime.response",
            "id": self._fields.id,
            "status": status,
            "output": [],
            "output_modalities": modalities(session),
            "max_output_tokens": session.max_output_tokens,
            "audio": {"output": _without_speed(output_object(session))},
        }
        if self._fields.conversation_id is not None:
            response["conversation_id"] = self._fields.conversation_id
        if self._fields.metadata is not None:
            response["metadata"] = self._fields.metadata
        return response


def _with_place(info: ErrorInfo) -> str:
    """The message of an error. If the error is about a part of an item, the message names the part, because responses
    have no field for the name of the part.
    """
    param = info.param or ""
    return f"{param}: {info.message}" if ".content[" in param and param not in info.message else info.message


def _without_speed(output: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in output.items() if name != "speed"}


def _usage(text: TextDone, audio: AudioDone | None) -> dict[str, Any]:
    """The token counts of a response."""
    counts = counted([text], audio.frames if audio is not None else 0)
    prompt, completion = counts.prompt_tokens_details, counts.completion_tokens_details
    image_tokens = prompt.image_tokens + prompt.video_tokens
    return {
        "total_tokens": counts.total_tokens,
        "input_tokens": counts.prompt_tokens,
        "output_tokens": counts.completion_tokens,
        "input_token_details": {
            "text_tokens": counts.prompt_tokens - prompt.audio_tokens - image_tokens,
            "audio_tokens": prompt.audio_tokens,
            "image_tokens": image_tokens,
            "cached_tokens": prompt.cached_tokens,
        },
        "output_token_details": {
            "text_tokens": completion.text_tokens,
            "audio_tokens": completion.audio_tokens,
        },
    }
