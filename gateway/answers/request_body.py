"""Reads the body of a request within the limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from gateway.admission import Place
from gateway.bodies.json_body import JsonBody
from gateway.bodies.multipart import FormReader, Part, Room
from gateway.bodies.reader import JsonBodyReader
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request


async def read_json(request: web.Request, place: Place, limits: Limits, deadline: float) -> JsonBody:
    """Read a JSON body. `place` counts the bytes of the body while they arrive.

    Args:
        deadline: Time on the event loop's clock by which the body must be complete. The body must also be complete
            `limits.receive_seconds` after this call.

    Raises:
        OmniError: 415 if the body has another type or is compressed; 413 if the body is too large; 408 if the body
            arrives too late; 400 if the structure of the body exceeds the limits.
    """
    _check_type(request, "application/json")
    reader = JsonBodyReader(limits)
    async for piece in _pieces(request, place, limits, deadline):
        await reader.receive(piece)
    return reader.finish()


async def read_form(
    request: web.Request, place: Place, limits: Limits, deadline: float, room: Callable[[str], Room]
) -> list[Part]:
    """Read the fields of a form. Nothing is written to a disk. All arguments except `room` have the same meaning as in
    `read_json`. The errors are the errors of `read_json` and `FormReader`.

    Args:
        room: The argument `room` of `FormReader`. This function is called with the name of each field as soon as the
            field begins.
    """
    _check_type(request, "multipart/form-data")
    reader = FormReader(request.headers["Content-Type"], room)
    async for piece in _pieces(request, place, limits, deadline):
        reader.feed(piece)
    return reader.finish()


def _check_type(request: web.Request, wanted: str) -> None:
    if request.content_type != wanted:
        raise bad_request(
            f"The body must be sent as 'Content-Type: {wanted}'.", code="invalid_content_type", status=415
        )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise bad_request(
            "The body is compressed; send an uncompressed body, without the header 'Content-Encoding'.",
            code="invalid_content_encoding",
            status=415,
        )


async def _pieces(request: web.Request, place: Place, limits: Limits, deadline: float) -> AsyncIterator[bytes]:
    """The pieces of a body as they arrive. `place` counts the bytes of each piece. These bytes also count towards the
    limits.

    `request.read()` is not used, because it would keep the body in memory until the request ends.
    """
    size = request.content_length or 0
    arrived = 0
    latest = min(asyncio.get_running_loop().time() + limits.receive_seconds, deadline)
    while max(size, arrived) <= limits.body_bytes:
        try:
            async with asyncio.timeout_at(latest):
                piece = await request.content.readany()
        except TimeoutError as error:
            raise too_late("The request did not arrive in time.") from error
        if not piece:
            return
        place.hold(len(piece))
        arrived += len(piece)
        yield piece
    raise bad_request(f"The request body is larger than {limits.body_bytes} bytes.", code="body_too_large", status=413)


def too_late(message: str) -> OmniError:
    """The error for a request that did not arrive in time."""
    return bad_request(message, code="request_timeout", status=408)
