"""The events that the server sends, and their names in the beta API."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from gateway.bodies.json_body import JsonBody
from omni_pipeline.errors import ErrorInfo

Event: TypeAlias = dict[str, Any]
"""An event without its `event_id`."""

# Maps the name of an event to its name in the beta API. Events with the same name in both APIs are left out. None means
# that the beta API has no such event.
BETA_NAMES: dict[str, str | None] = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": None,
}
_BETA_CONTENT = {"output_text": "text", "output_audio": "audio"}
_BETA_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}


def event(kind: str, **fields: Any) -> Event:
    """An event of this kind."""
    return {"type": kind, **fields}


def error_event(info: ErrorInfo, event_id: str | None = None) -> Event:
    """The event for an error.

    Args:
        event_id: Id of the client's event that caused the error.
    """
    return event(
        "error",
        error={
            "type": info.type,
            "code": info.code,
            "message": info.message,
            "param": info.param,
            "event_id": event_id,
        },
    )


def beta_event(sent: Event) -> Event | None:
    """An event as the beta API defines it; None if the beta API has no such event."""
    name = BETA_NAMES.get(sent["type"], sent["type"])
    if name is None:
        return None
    changed = {**sent, "type": name}
    if "item" in sent:
        changed["item"] = _beta_item(sent["item"])
    if "response" in sent:
        response = dict(sent["response"])
        response["output"] = [_beta_item(item) for item in response["output"]]
        response["modalities"] = _beta_modalities(response.pop("output_modalities"))
        output = response.pop("audio")["output"]
        response["output_audio_format"] = _BETA_FORMATS[output["format"]["type"]]
        if "voice" in output:
            response["voice"] = output["voice"]
        changed["response"] = response
    if "session" in sent:
        changed["session"] = _beta_session(sent["session"])
    return changed


def _beta_item(item: dict[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return item
    content = [{**part, "type": _BETA_CONTENT.get(part["type"], part["type"])} for part in item["content"]]
    return {**item, "content": content}


def _beta_session(session: dict[str, Any]) -> dict[str, Any]:
    flat = dict(session)
    flat.pop("type")
    audio = flat.pop("audio")
    flat["modalities"] = _beta_modalities(flat.pop("output_modalities"))
    flat["max_response_output_tokens"] = flat.pop("max_output_tokens")
    flat["input_audio_format"] = _BETA_FORMATS[audio["input"]["format"]["type"]]
    flat["output_audio_format"] = _BETA_FORMATS[audio["output"]["format"]["type"]]
    flat["input_audio_transcription"] = audio["input"]["transcription"]
    flat["turn_detection"] = audio["input"]["turn_detection"]
    if "voice" in audio["output"]:
        flat["voice"] = audio["output"]["voice"]
    return flat


def _beta_modalities(modalities: list[str]) -> list[str]:
    return ["audio", "text"] if "audio" in modalities else ["text"]


# --- from the beta API ---

_FORMATS_OF_BETA = {beta: name for name, beta in _BETA_FORMATS.items()}
_BETA_SESSION_PLACES = {
    "voice": ("output", "voice"),
    "speed": ("output", "speed"),
    "turn_detection": ("input", "turn_detection"),
    "input_audio_transcription": ("input", "transcription"),
    "input_audio_noise_reduction": ("input", "noise_reduction"),
    "input_audio_format": ("input", "format"),
    "output_audio_format": ("output", "format"),
}
_BETA_SESSION_NAMES = {"modalities": "output_modalities", "max_response_output_tokens": "max_output_tokens"}


def from_beta(body: JsonBody) -> JsonBody:
    """Converts a client's message from the beta API to the current API. A message that is not a JSON object stays
    unchanged.
    """
    try:
        sent = msgspec.json.decode(body.outline)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    if not isinstance(sent, dict):
        return body
    for name in ("session", "response"):
        if isinstance(sent.get(name), dict):
            sent[name] = _nested(sent[name])
    outline = msgspec.json.encode(sent)
    places = {marker: outline.find(marker.encode()) for marker in body.strings}
    strings = {
        marker: msgspec.structs.replace(body.strings[marker], offset=place)
        for marker, place in sorted(places.items(), key=lambda one: one[1])
        if place >= 0
    }
    return JsonBody(outline, strings)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    audio: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        if name in _BETA_SESSION_PLACES:
            side, field = _BETA_SESSION_PLACES[name]
            if field == "format" and isinstance(value, str):
                value = {"type": _FORMATS_OF_BETA.get(value, value)}
            audio.setdefault(side, {})[field] = value
        else:
            settings[_BETA_SESSION_NAMES.get(name, name)] = value
    return settings | ({"audio": audio} if audio else {})
