"""The settings for finding the turns of the user in a realtime session: `session.audio.input.turn_detection`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from gateway.api.field_errors import FieldErrors, fields_of, tags_of, within
from gateway.api.plain_values import plain

Threshold = Annotated[float, Meta(ge=0, le=1)]
PaddingMs = Annotated[int, Meta(ge=0, le=5_000)]
SilenceMs = Annotated[int, Meta(ge=0, le=10_000)]
IdleMs = Annotated[int, Meta(ge=5_000, le=30_000)]
Eagerness = Literal["low", "medium", "high", "auto"]


class TurnSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings that both kinds of turn detection have.

    Attributes:
        create_response: Whether to answer when a turn ends.
        interrupt_response: Whether to end the current answer when the user begins to speak.
    """

    create_response: bool = True
    interrupt_response: bool = True


class ServerVad(TurnSettings, frozen=True, kw_only=True, tag_field="type", tag="server_vad"):
    """A turn ends after a silence of fixed length.

    Attributes:
        threshold: Lowest probability of speech at which a window of sound counts as speech.
        prefix_padding_ms: Length of the sound before the first speech that also becomes a part of the turn.
        silence_duration_ms: Length of the silence that ends a turn.
        idle_timeout_ms: If the user is silent for this time after an answer has been played, the model speaks without
            being asked. None means that the model never speaks without being asked.
    """

    threshold: Threshold = 0.5
    prefix_padding_ms: PaddingMs = 300
    silence_duration_ms: SilenceMs = 500
    idle_timeout_ms: IdleMs | None = None


class SemanticVad(TurnSettings, frozen=True, kw_only=True, tag_field="type", tag="semantic_vad"):
    """A turn ends after a silence. The required length of the silence depends on how the user has spoken in this turn:
    see `turn_detection`.

    Attributes:
        eagerness: How soon a pause counts as the end of the turn. ``auto`` has the same meaning as ``medium``.
    """

    eagerness: Eagerness = "auto"


TurnOptions: TypeAlias = ServerVad | SemanticVad

_DEFAULT_KIND = "server_vad"


def read_turn_options(value: Any, current: TurnOptions | None, param: str) -> TurnOptions | None:
    """The settings after an update.

    Args:
        value: The decoded JSON of the update. Null and false turn the detection off. In an object, fields may be
            missing or null. If the type stays the same, a missing or null field keeps its current value. If the type
            changes, a missing or null field gets its default. Only `idle_timeout_ms` can be cleared with null. A
            missing type means the current type, or ``server_vad`` if the detection was off.
        current: The settings before the update; None if the detection was off.
        param: The path of the field, for error messages.

    Raises:
        OmniError: 400 with the path of the wrong field.
    """
    if value is None or value is False:
        return None
    try:
        return _read(value, current)
    except msgspec.ValidationError as error:
        name = param.rpartition(".")[2]
        names = {name: fields_of(ServerVad, SemanticVad) | {"type"}}
        values = {"type": tags_of(TurnOptions), "eagerness": ("low", "medium", "high", "auto")}
        raise FieldErrors(names, values, {}).explained(str(within(error, param))) from None


def _read(value: Any, current: TurnOptions | None) -> TurnOptions:
    if not isinstance(value, dict):
        return msgspec.convert(value, TurnOptions)  # raises an error, because the value is not an object
    before = {} if current is None else msgspec.to_builtins(current)
    kind = before.get("type", _DEFAULT_KIND) if value.get("type") is None else value["type"]
    if kind != before.get("type"):
        before = {}
    fields = {**before, **plain(dict(value)), "type": kind}
    if "idle_timeout_ms" in value and value["idle_timeout_ms"] is None:
        fields.pop("idle_timeout_ms", None)
    return msgspec.convert(fields, TurnOptions)
