"""Processes every HTTP request: gives it an id, checks its key, logs it, and turns errors into OpenAI's form."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.api.responses import error_body
from omni_pipeline.errors import ErrorInfo, OmniError, internal
from omni_pipeline.logs import fields

log = logging.getLogger("gateway.access")

# Values that a handler adds to the log line of its request, keyed by name.
NOTES = web.RequestKey("notes", dict[str, object])
REQUEST_ID = web.RequestKey("request_id", str)
# Identifies the client that sent a request: by the API key, or else by the address.
CLIENT = web.RequestKey("client", str)

# The prefix of a WebSocket subprotocol that carries an API key.
KEY_PROTOCOL = "openai-insecure-api-key."

SERVER = "omni-pipeline"
_LONGEST_PATH = 200
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WORDING = {
    404: ("This server has no endpoint {method} {path}.", "not_found"),
    405: ("{path} does not accept {method}; the 'Allow' header lists the accepted methods.", "method_not_allowed"),
}


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, and log its outcome. If the client sends a well-formed id, use this id."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
    request[NOTES] = {}
    request[CLIENT] = request.remote or ""
    began = time.monotonic()
    status: int | str = "cancelled"
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        seconds = round(time.monotonic() - began, 6)
        log.log(
            # debug level, because health checks and scrapes are frequent
            logging.DEBUG if request.method == "GET" else logging.INFO,
            "%s %s",
            request.method,
            # the path is logged undecoded, because a decoded path may contain a line break
            request.rel_url.raw_path[:_LONGEST_PATH],
            extra=fields(
                status=status, seconds=seconds, request_id=request[REQUEST_ID], client=request[CLIENT], **request[NOTES]
            ),
        )


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler that adds the request id to all responses, including streams. The header `Server` contains only a
    name, without a version.
    """
    response.headers["Server"] = SERVER
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]


async def expect(request: web.Request) -> None:
    """Send `100 Continue` to a client that waits for this response before it sends its body. Ignore all other
    expectations.
    """
    if request.headers["Expect"].lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the 100 response does not count as the beginning of the response


@web.middleware
async def explain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into an OpenAI error body with the right HTTP status."""
    headers: dict[str, str] = {}
    try:
        return await handler(request)
    except OmniError as error:
        info = error.info
    except web.HTTPException as error:
        if error.status < 400:
            raise
        wording, code = _WORDING.get(error.status, (error.reason or "", "http_error"))
        message = wording.format(method=request.method, path=request.path[:_LONGEST_PATH])
        info = ErrorInfo(status=error.status, message=message, code=code)
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
    except web.RequestPayloadError:  # for example, broken chunked encoding
        info = ErrorInfo(
            status=400,
            message="The body could not be read: it does not match 'Content-Length' or 'Transfer-Encoding'.",
            code="invalid_body",
        )
    except ConnectionError:
        raise  # the client has left and cannot get an error
    except Exception:
        log.exception("unexpected error", extra=fields(request_id=request[REQUEST_ID]))
        info = internal("Something went wrong inside the server.").info
    request[NOTES]["code"] = info.code
    # the path may contain an unknown field name, which is the client's own text
    if info.param and info.code != "unknown_parameter":
        request[NOTES]["param"] = info.param
    if info.stage:
        request[NOTES]["stage"] = info.stage
    return error_response(info, headers)


def error_response(info: ErrorInfo, headers: dict[str, str]) -> web.Response:
    """An HTTP response that carries `info`."""
    if info.retry_after is not None:
        headers["Retry-After"] = str(info.retry_after)
    if info.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if info.code == "request_timeout":
        headers["X-Should-Retry"] = "false"  # without this header, OpenAI's clients repeat a long request
    return json_response(error_body(info), status=info.status, headers=headers)


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """`body` as JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json")


def token_of(request: web.Request) -> str:
    """The token in a request, which identifies the client; empty if the request has no token.

    A web page in a browser cannot set headers of a WebSocket. So the request for a WebSocket may contain the token in
    one of the subprotocols.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme:
        return token.strip() if scheme.lower() == "bearer" else ""
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
    keys = (one.strip().removeprefix(KEY_PROTOCOL) for one in offered if one.strip().startswith(KEY_PROTOCOL))
    return next(keys, "")


def require_key(keys: Sequence[str], lent: Callable[[web.Request, str], str | None] | None = None) -> Middleware:
    """A middleware that checks the token of each request below ``/v1/``. The token must be one of `keys`, or a
    temporary token that `lent` accepts. All other requests below ``/v1/`` are refused.

    Every comparison with a key takes constant time, so that the response time does not reveal a key.

    Args:
        lent: Called with a request and its token. If the token is a temporary token that allows this request, returns
            the client that asked for the token. Otherwise returns None.
    """
    encoded = [key.encode() for key in keys]

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/v1/"):
            token = token_of(request)
            given = token.encode("utf-8", "surrogateescape")
            fits = [hmac.compare_digest(given, key) for key in encoded]
            client = f"key {fits.index(True)}" if True in fits else lent(request, token) if lent is not None else None
            if client is None:
                raise OmniError(
                    ErrorInfo(
                        status=401,
                        message="This server needs an API key: send one of its keys as 'Authorization: Bearer KEY'.",
                        type="authentication_error",
                        code="invalid_api_key",
                    )
                )
            request[CLIENT] = client
        return await handler(request)

    return check
