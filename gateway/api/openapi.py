"""Describes the HTTP API as OpenAPI 3.1, from the structs that read requests and write answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias, get_args

import msgspec

from gateway.api import companions, health_report, pipeline_view, responses, schema, speech_request, speech_responses
from gateway.api.health_report import HealthReport
from gateway.api.pipeline_view import PipelineView
from gateway.api.responses import Completion, CompletionChunk, ErrorBody, Index, Model, ModelList
from gateway.api.responses_api import objects
from gateway.api.responses_api import schema as responses_schema
from gateway.api.responses_api.objects import Event, Response
from gateway.api.responses_api.schema import ResponsesRequest
from gateway.api.schema import EXTRA, ChatCompletionRequest
from gateway.api.speech_request import SpeechBody
from gateway.api.speech_responses import MEDIA_TYPES, SpeechAudioDelta, SpeechAudioDone, VoiceList
from gateway.api.transcription import request as transcription
from gateway.api.transcription import responses as transcripts
from gateway.api.unserved_fields import IGNORED, REFUSED
from gateway.traces import timelines_for_clients
from gateway.traces.timelines_for_clients import RequestTimeline
from omni_pipeline import __version__

Json: TypeAlias = dict[str, Any]
Refused: TypeAlias = Mapping[str, tuple[tuple[Any, ...], str]]

_JSON = "application/json"
_PLACE = "#/components/schemas/{name}"
_KEY = "api_key"

# All HTTP statuses except 200 that a chat request may get, each with its cause. `docs/api.md` lists the error codes of
# each status.
CHAT_ERRORS = {
    400: "The request is wrong; `param` is the name of the wrong field",
    401: "The request needs one of the server's API keys",
    403: "The `Host` header contains a name that this server does not accept",
    404: "The id of a spoken answer is unknown or has expired",
    408: "The request did not arrive in time",
    413: "The body or a media item is too large",
    415: "The body is compressed, or has a wrong content type",
    429: "Too many requests; `Retry-After` is the number of seconds to wait",
    431: "The request line or the headers are too large",
    500: "A bug in the server",
    503: "The server cannot answer now; `Retry-After`, if present, is the number of seconds to wait",
    504: "The answer took too long",
}
SPEECH_ERRORS = {status: meaning for status, meaning in CHAT_ERRORS.items() if status != 404}
# The error statuses of requests that need no key. These requests do not ask for an answer of the model.
_OPEN_ERRORS = {403: CHAT_ERRORS[403]}
# The error statuses of requests that need a key but do not ask for an answer of the model.
_PLAIN_ERRORS = {401: CHAT_ERRORS[401], **_OPEN_ERRORS, 500: CHAT_ERRORS[500]}

_TRANSCRIPT_EVENTS = """\
With `stream`, the response is a stream of server-sent events: `TranscriptDelta` for each new piece of
text, and one `TranscriptDone` and `[DONE]` at the end. If an error occurs after the first event, the last event
contains an `ErrorBody`."""

_EVENTS = """\
With `stream`, the response is a stream of server-sent events. The data of the last event is `[DONE]`. The data of each
other event is a `CompletionChunk`. If an error occurs after the first event, the last event contains an `ErrorBody`
instead. Lines that begin with `:` are comments."""

_SPEECH_EVENTS = """\
With `"stream_format": "sse"`, the response is a stream of server-sent events: `SpeechAudioDelta` for each piece of
sound, and `SpeechAudioDone` at the end. If an error occurs after the first event, the last event contains an
`ErrorBody`."""


_RESPONSE_EVENTS = """\
With `stream`, the response is a stream of server-sent events. The name of each event is its `type`. The last event is
`response.completed`, `response.incomplete` or `response.failed`. Lines that begin with `:` are comments."""


def openapi_document(*, with_keys: bool) -> Json:
    """The OpenAPI document of this server.

    Args:
        with_keys: Whether requests below ``/v1/`` need a key.
    """
    kinds: tuple[type, ...] = (
        *(ChatCompletionRequest, Completion, CompletionChunk, ErrorBody, Model, ModelList, HealthReport, Index),
        *(transcripts.Transcript, transcripts.VerboseTranscript, transcripts.TranscriptDelta),
        transcripts.TranscriptDone,
        *(SpeechBody, SpeechAudioDelta, SpeechAudioDone, VoiceList),
        *(PipelineView, RequestTimeline),
    )
    kinds += (ResponsesRequest, Response, *get_args(Event))
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_PLACE)
    _describe_request(schemas, ChatCompletionRequest, IGNORED, REFUSED, {"type": "array"})
    _describe_companions(schemas)
    _describe_responses_request(schemas)
    _describe_request(schemas, SpeechBody, speech_request.IGNORED, speech_request.REFUSED, {"type": "string"})
    own = [kind for kind in vars(objects).values() if getattr(kind, "__module__", None) == objects.__name__]
    _describe_answers(schemas, own)
    for module in (responses, health_report, speech_responses, transcripts, pipeline_view, timelines_for_clients):
        _describe_answers(schemas, vars(module).values())
    components: Json = {"schemas": schemas}
    if with_keys:
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "omni-pipeline",
            "version": __version__,
            "description": "OpenAI's API, with fields for pictures, sound, video and spoken answers.",
        },
        "paths": _paths([{_KEY: []}] if with_keys else []),
        "components": components,
    }


def _describe_answers(schemas: Json, kinds: Iterable[Any]) -> None:
    """In the schema of each struct in `kinds`, mark the fields that are in every answer as required."""
    for kind in kinds:
        if isinstance(kind, type) and kind.__name__ in schemas:
            schemas[kind.__name__]["required"] = _always_there(kind)


def _always_there(kind: type[msgspec.Struct]) -> list[str]:
    """The fields that a response always has. Only fields whose default is UNSET can be left out of a response."""
    return [field.name for field in msgspec.structs.fields(kind) if field.default is not msgspec.UNSET]


def _describe_request(
    schemas: Json,
    kind: type,
    ignored: Iterable[str],
    refused: Refused,
    required: Json,
) -> None:
    """Complete the schemas of a request. The structs of the request do not express all rules. This function adds these
    rules to the schemas:

    - Some fields are ignored, and some fields are refused.
    - A field that is null counts as missing.
    - `extra_body` may have the same fields as the request.

    Args:
        kind: The struct of the request.
        ignored, refused: The ignored and refused fields, as in `body_fields.BodyFields`.
        required: Additional schema for the one required field of the request.
    """
    request = schemas[kind.__name__]
    (name_of_required,) = request.pop("required")
    _allow_nulls(kind.__name__, schemas)
    fields = request["properties"]
    fields |= _unserved_fields(ignored, refused)
    extra = {"type": "object", "properties": dict(fields), "additionalProperties": {"type": "null"}}
    fields[EXTRA] = {
        "anyOf": [extra, {"type": "null"}],
        "description": "The fields of this object count as fields of the request.",
    }
    direct = _with(name_of_required, required)
    request["anyOf"] = [direct, _with(EXTRA, direct)]


def _describe_companions(schemas: Json) -> None:
    """Add the fields of messages and parts that are accepted and ignored."""
    for union, names in ((schema.ChatMessage, companions.OF_MESSAGES), (schema.Part, companions.OF_PARTS)):
        for kind in get_args(union):
            schemas[kind.__name__]["properties"] |= _ignored(names)
    for kind, names in (
        (schema.EarlierCall, companions.OF_CALLS),
        (schema.EarlierFunction, companions.OF_FUNCTIONS_OF_CALLS),
        (schema.FunctionTool, companions.OF_TOOLS),
    ):
        schemas[kind.__name__]["properties"] |= _ignored(names)


def _describe_responses_request(schemas: Json) -> None:
    """Does the same as `_describe_request`, for the fields that only a request of the Responses API has. Call this
    function after `_describe_request`, which describes the fields that requests of both APIs have.
    """
    _allow_nulls(ResponsesRequest.__name__, schemas)
    for kind in get_args(responses_schema.Item):
        schemas[kind.__name__]["properties"] |= _ignored(responses_schema.ITEM_COMPANIONS)
    for kind in get_args(responses_schema.Part):
        schemas[kind.__name__]["properties"] |= _ignored(companions.OF_PARTS)
    output_text = schemas[responses_schema.OutputTextPart.__name__]
    output_text["properties"] |= _ignored(responses_schema.OUTPUT_TEXT_COMPANIONS)
    message = schemas[responses_schema.MessageItem.__name__]
    message["required"].remove("type")
    fields = schemas[ResponsesRequest.__name__]["properties"]
    fields |= _unserved_fields(responses_schema.IGNORED, responses_schema.REFUSED)


def _allow_nulls(request: str, schemas: Json) -> None:
    """In the objects of a request, allow null for every optional field, and for unknown fields."""
    for described in _reachable(request, schemas):
        always = described.get("required", ())
        for name, field in described["properties"].items():
            if name not in always and field and {"type": "null"} not in field.get("anyOf", ()):
                described["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        described["additionalProperties"] = {"type": "null"}


def _with(name: str, value: Json) -> Json:
    """The schema of an object whose field `name` matches the schema `value`."""
    return {"type": "object", "required": [name], "properties": {name: value}}


def _reachable(name: str, schemas: Json) -> list[Json]:
    """The schemas of the objects that can be reached through references from the schema `name`. The schema `name` is
    included, if it describes an object.
    """
    found: dict[str, Json] = {}
    wanted = [name]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = schemas[name]
            wanted += re.findall(_PLACE.format(name=r"(\w+)"), repr(schemas[name]))
    return [described for described in found.values() if "properties" in described]


def _ignored(names: Iterable[str]) -> Json:
    return {name: {"description": "Accepted and ignored."} for name in sorted(names)}


def _unserved_fields(ignored: Iterable[str], refused: Refused) -> Json:
    """The schemas of the fields that the server recognises but does not support."""
    described = {
        name: {"description": f"Refused: {reason}.", "enum": [*harmless, None]}
        for name, (harmless, reason) in refused.items()
    }
    return _ignored(ignored) | described


def _paths(security: list[Json]) -> Json:
    return {
        "/v1/chat/completions": {"post": _chat() | {"security": security}},
        "/v1/audio/transcriptions": {
            "post": _transcript(transcription.TranscriptRequest, "Transcribes the speech in a sound file")
            | {"operationId": "create_transcription", "security": security}
        },
        "/v1/audio/translations": {
            "post": _transcript(transcription.TranslationRequest, "Translates the speech in a sound file")
            | {"operationId": "create_translation", "security": security}
        },
        "/v1/audio/speech": {"post": _speech() | {"security": security}},
        "/v1/audio/voices": {"get": _get("Lists the voices", VoiceList, _PLAIN_ERRORS) | {"security": security}},
        "/v1/models": {"get": _get("Lists the server's only model", ModelList, _PLAIN_ERRORS) | {"security": security}},
        "/v1/models/{model}": {
            "get": _get("Shows the model", Model, _PLAIN_ERRORS | {404: "There is no such model"})
            | {"security": security, "parameters": [_MODEL_NAME]}
        },
        "/v1/responses": {"post": _responses() | {"security": security}},
        "/v1/realtime": {"get": _realtime() | {"security": security}},
        "/v1/realtime/client_secrets": {"post": _client_secret() | {"security": security}},
        "/v1/pipeline": {"get": _pipeline() | {"security": security}},
        "/v1/pipeline/timelines/{answer}": {
            "get": _get("Shows when each stage worked on an answer", RequestTimeline, _TIMELINE_ERRORS)
            | {"security": security, "parameters": [_ANSWER_ID]}
        },
        "/health": {"get": _health()},
        "/metrics": {"get": _get("Metrics for Prometheus", None, _OPEN_ERRORS)},
        "/openapi.json": {"get": _get("This document", dict, _OPEN_ERRORS)},
        "/": {"get": _get("Name and version of the server, its model and its endpoints", Index, _OPEN_ERRORS)},
    }


_MODEL_NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


_ANSWER_ID = {"name": "answer", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_TIMELINE_ERRORS = _PLAIN_ERRORS | {404: "No timeline has this id, or the answer belongs to another client"}


def _pipeline() -> Json:
    described = _get("Shows what each stage does, every half second", None, _PLAIN_ERRORS)
    stream = {"schema": {"type": "string"}, "x-event": _schema(PipelineView)}
    described["responses"]["200"] = _response("Server-sent events", {"text/event-stream": stream})
    described["responses"]["429"] = _errors(CHAT_ERRORS)["429"]
    return described


def _chat() -> Json:
    content = _content(Completion) | {
        "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}, "x-event": _schema(CompletionChunk)}
    }
    return {
        "summary": "Answers a conversation; the answer is sent whole or as a stream",
        "operationId": "create_chat_completion",
        "requestBody": {"required": True, "content": _content(ChatCompletionRequest)},
        "responses": {"200": _response("The answer", content), **_errors(CHAT_ERRORS)},
    }


def _transcript(kind: type[transcription.TranscriptRequest], summary: str) -> Json:
    events = [_schema(transcripts.TranscriptDelta), _schema(transcripts.TranscriptDone)]
    content = {
        _JSON: {"schema": {"anyOf": [_schema(transcripts.Transcript), _schema(transcripts.VerboseTranscript)]}},
        "text/plain": {"schema": {"type": "string"}},
        "text/event-stream": {
            "schema": {"type": "string", "description": _TRANSCRIPT_EVENTS},
            "x-event": {"anyOf": events},
        },
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _form(kind)}}},
        "responses": {"200": _response("The text", content), **_errors(CHAT_ERRORS)},
    }


def _form(kind: type[transcription.TranscriptRequest]) -> Json:
    """The schema of a form. Each field is sent as text. The schema describes the value that the text represents."""
    _, schemas = msgspec.json.schema_components([kind], ref_template=_PLACE)
    fields = schemas[kind.__name__]["properties"]
    fields |= {transcription.FILE: {"type": "string", "contentMediaType": "application/octet-stream"}}
    fields |= _ignored(transcription.IGNORED)
    return {
        "type": "object",
        "description": kind.__doc__.partition("\n")[0] if kind.__doc__ else "",
        "properties": fields,
        "required": [transcription.FILE],
        "additionalProperties": False,
    }


def _speech() -> Json:
    sound: Json = {media_type: {} for media_type in MEDIA_TYPES.values()}
    events = {
        "schema": {"type": "string", "description": _SPEECH_EVENTS},
        "x-event": {"anyOf": [_schema(SpeechAudioDelta), _schema(SpeechAudioDone)]},
    }
    return {
        "summary": "Reads a text aloud; the sound is sent while it is generated",
        "operationId": "create_speech",
        "requestBody": {"required": True, "content": _content(SpeechBody)},
        "responses": {"200": _response("The sound", sound | {"text/event-stream": events}), **_errors(SPEECH_ERRORS)},
    }


def _realtime() -> Json:
    statuses = (401, 403, 426, 503)
    errors = {str(status): _response(HTTPStatus(status).phrase, _content(ErrorBody)) for status in statuses}
    return {
        "summary": "Opens a WebSocket for a spoken conversation; its messages are the events of OpenAI's Realtime API",
        "operationId": "connect_realtime",
        "responses": {"101": {"description": "The WebSocket is open"}, **errors},
    }


def _client_secret() -> Json:
    return {
        "summary": "Creates a short-lived key that opens spoken conversations",
        "operationId": "create_client_secret",
        "requestBody": {"required": True, "content": _content(dict)},
        "responses": {
            "200": _response("The key, and the settings of the sessions that the key opens", _content(dict)),
            **_errors(SPEECH_ERRORS),
        },
    }


def _errors(meanings: Mapping[int, str]) -> Json:
    errors = {str(status): _response(meaning, _content(ErrorBody)) for status, meaning in meanings.items()}
    for status in ("429", "503"):
        errors[status]["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return errors


def _responses() -> Json:
    event = {"oneOf": [*map(_schema, get_args(Event))]}
    content = _content(Response) | {
        "text/event-stream": {"schema": {"type": "string", "description": _RESPONSE_EVENTS}, "x-event": event}
    }
    return {
        "summary": "Answers a conversation as OpenAI's Responses API does; the answer is sent whole or as a stream",
        "operationId": "create_response",
        "requestBody": {"required": True, "content": _content(ResponsesRequest)},
        "responses": {"200": _response("The answer", content), **_errors(CHAT_ERRORS)},
    }


def _health() -> Json:
    described = _get("Shows whether the server can answer requests", HealthReport, _OPEN_ERRORS)
    described["responses"]["503"] = _response(
        "The server cannot answer requests; `problem` is the reason", _content(HealthReport)
    )
    return described


def _get(summary: str, kind: type | None, errors: dict[int, str]) -> Json:
    content = {"text/plain": {"schema": {"type": "string"}}} if kind is None else _content(kind)
    refusals = {str(status): _response(meaning, _content(ErrorBody)) for status, meaning in errors.items()}
    return {"summary": summary, "responses": {"200": _response(HTTPStatus.OK.phrase, content), **refusals}}


def _response(description: str, content: Json) -> Json:
    return {"description": description, "content": content}


def _content(kind: type) -> Json:
    return {_JSON: {"schema": _schema(kind)}}


def _schema(kind: type) -> Json:
    return {"type": "object"} if kind is dict else {"$ref": _PLACE.format(name=kind.__name__)}
