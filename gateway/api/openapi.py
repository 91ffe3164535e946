"""Describes the HTTP API as OpenAPI 3.1, from the structs that read requests and write answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, TypeAlias, get_args

import msgspec

from gateway.api import companions, health_report, responses, schema
from gateway.api.health_report import HealthReport
from gateway.api.responses import Completion, CompletionChunk, ErrorBody, Index, Model, ModelList
from gateway.api.schema import EXTRA, ChatCompletionRequest
from gateway.api.unserved_fields import IGNORED, REFUSED
from omni_pipeline import __version__

Json: TypeAlias = dict[str, Any]

_JSON = "application/json"
_PLACE = "#/components/schemas/{name}"
_KEY = "api_key"

# Statuses other than 200 that a chat request may get, each with its cause. `docs/api.md` lists the error codes of each
# status.
CHAT_ERRORS = {
    400: "Something in the request is wrong; `param` names the field",
    401: "The request needs one of the server's API keys",
    403: "The request names a host that is not this server",
    404: "The id of a spoken answer is unknown or has expired",
    408: "The request did not arrive in time",
    413: "The body or a media item is too large",
    415: "The body is not plain JSON",
    429: "Too many requests; `Retry-After` says when to try again",
    431: "The request line or the headers are too large",
    500: "A bug in the server",
    503: "The server cannot answer now; `Retry-After`, if there, says when to try again",
    504: "The answer took too long",
}
# Error statuses of all other requests: first of requests that need no key, then of requests that need a key.
_OPEN_ERRORS = {403: CHAT_ERRORS[403]}
_PLAIN_ERRORS = {401: CHAT_ERRORS[401], **_OPEN_ERRORS, 500: CHAT_ERRORS[500]}

_EVENTS = """\
With `stream`, server-sent events. The data of each event is a `CompletionChunk`; that of the last is `[DONE]`. If an
error occurs after the first event, the last event carries an `ErrorBody`. Lines that begin with `:` are comments."""


def openapi_document(*, with_keys: bool) -> Json:
    """The OpenAPI document of this server.

    Args:
        with_keys: Whether requests below ``/v1/`` need a key.
    """
    kinds = (ChatCompletionRequest, Completion, CompletionChunk, ErrorBody, Model, ModelList, HealthReport, Index)
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_PLACE)
    _describe_request(schemas)
    for kind in (*vars(responses).values(), *vars(health_report).values()):
        if isinstance(kind, type) and kind.__name__ in schemas:
            schemas[kind.__name__]["required"] = _always_there(kind)
    components: Json = {"schemas": schemas}
    if with_keys:
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "omni-pipeline",
            "version": __version__,
            "description": "OpenAI's chat completions for models that see, hear and speak.",
        },
        "paths": _paths([{_KEY: []}] if with_keys else []),
        "components": components,
    }


def _always_there(kind: type[msgspec.Struct]) -> list[str]:
    """The fields that a response always has. These are all fields except the fields that are left out when they are
    unset.
    """
    return [field.name for field in msgspec.structs.fields(kind) if field.default is not msgspec.UNSET]


def _describe_request(schemas: Json) -> None:
    """Add to the schemas of a request what its structs do not say: foreign fields, nulls in place of nothing, and
    fields that may be inside of `extra_body`.
    """
    request = schemas[ChatCompletionRequest.__name__]
    (required,) = request.pop("required")
    objects = _reachable(ChatCompletionRequest.__name__, schemas)
    for described in objects:
        always = described.get("required", ())
        for name, field in described["properties"].items():
            if name not in always and {"type": "null"} not in field.get("anyOf", ()):
                described["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        described["additionalProperties"] = {"type": "null"}
    for union, names in ((schema.ChatMessage, companions.OF_MESSAGES), (schema.Part, companions.OF_PARTS)):
        for kind in get_args(union):
            schemas[kind.__name__]["properties"] |= _ignored(names)
    fields = request["properties"]
    fields |= _unserved_fields()
    extra = {"type": "object", "properties": dict(fields), "additionalProperties": {"type": "null"}}
    fields[EXTRA] = {"anyOf": [extra, {"type": "null"}], "description": "Its fields count as fields of the request."}
    request["anyOf"] = [_with(required, {"type": "array"}), _with(EXTRA, _with(required, {"type": "array"}))]


def _with(name: str, value: Json) -> Json:
    """The schema of an object whose field `name` matches the schema `value`."""
    return {"type": "object", "required": [name], "properties": {name: value}}


def _reachable(name: str, schemas: Json) -> list[Json]:
    """The schemas of objects that `name` leads to, itself included."""
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


def _unserved_fields() -> Json:
    """The schemas of the fields that the server recognises but does not support."""
    refused = {
        name: {"description": f"Refused: {reason}.", "enum": [*harmless, None]}
        for name, (harmless, reason) in REFUSED.items()
    }
    return _ignored(IGNORED) | refused


def _paths(security: list[Json]) -> Json:
    return {
        "/v1/chat/completions": {"post": _chat() | {"security": security}},
        "/v1/models": {"get": _get("Lists the one model", ModelList, _PLAIN_ERRORS) | {"security": security}},
        "/v1/models/{model}": {
            "get": _get("Shows the model", Model, _PLAIN_ERRORS | {404: "There is no such model"})
            | {"security": security, "parameters": [_MODEL_NAME]}
        },
        "/health": {"get": _health()},
        "/metrics": {"get": _get("Metrics for Prometheus", None, _OPEN_ERRORS)},
        "/openapi.json": {"get": _get("This document", dict, _OPEN_ERRORS)},
        "/": {"get": _get("Name and version of the server, its model and its endpoints", Index, _OPEN_ERRORS)},
    }


_MODEL_NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _chat() -> Json:
    content = _content(Completion) | {
        "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}, "x-event": _schema(CompletionChunk)}
    }
    errors = {str(status): _response(meaning, _content(ErrorBody)) for status, meaning in CHAT_ERRORS.items()}
    for status in ("429", "503"):
        errors[status]["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return {
        "summary": "Answers a conversation, whole or streamed",
        "operationId": "create_chat_completion",
        "requestBody": {"required": True, "content": _content(ChatCompletionRequest)},
        "responses": {"200": _response("The answer", content), **errors},
    }


def _health() -> Json:
    described = _get("Whether requests can be answered", HealthReport, _OPEN_ERRORS)
    described["responses"]["503"] = _response("Requests cannot be answered; `problem` says why", _content(HealthReport))
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
