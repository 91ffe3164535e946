"""Loads the media of a request from its body, the web or local files."""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote, urlsplit

from gateway.api.conversion import MediaSource
from gateway.bodies.json_body import LongString
from gateway.media.addresses import not_allowed
from gateway.media.local_files import LocalFiles
from gateway.media.remote import Downloader, Resolve, resolve_host, too_large
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError, bad_request
from omni_pipeline.wire.tensor import Tensor
from stages.messages import Media

_AT_ONCE = 8  # media of one request that are loaded at the same time
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")
_LONGEST_HEAD = 1024  # characters of a data URL before the comma
_SLICE = 1 << 20  # base64 characters decoded before the event loop may run; a multiple of 4


class MediaLoader:
    """Loads media under one policy.

    Args:
        policy: Allowed sources of media, and maximum size of an item.
        total_bytes: Largest total size of the media of one request.
        resolver: Resolves the names of hosts to addresses.
    """

    def __init__(self, policy: MediaPolicy, *, total_bytes: int, resolver: Resolve = resolve_host) -> None:
        self._policy = policy
        self._total_bytes = total_bytes
        self._files = LocalFiles(policy.local_path)
        self._downloader = Downloader(policy, resolver)

    async def load(self, sources: Sequence[MediaSource], hold: Callable[[int], None]) -> list[Media]:
        """The media of one request, in order. The first error stops the loading of the others.

        Args:
            hold: Called with the size of each item that has arrived; may raise an error to refuse the item.

        Raises:
            OmniError: the error of `hold`; 400 or 413 for the first item that cannot be loaded, see `docs/api.md`.
        """
        if len(sources) > self._policy.max_items:
            raise bad_request(
                f"The request has {len(sources)} media items; this server allows {self._policy.max_items}.",
                param=sources[self._policy.max_items].param,
                code="too_many_media",
            )
        places = asyncio.Semaphore(_AT_ONCE)
        budget = _Budget(self._total_bytes)

        async def one(source: MediaSource) -> Media:
            async with places:
                data = await self._bytes(source, min(self._policy.max_bytes, budget.left))
            budget.spend(len(data), source.param)
            hold(len(data))
            if not data:
                raise bad_request(f"'{source.param}' is empty.", param=source.param, code=f"invalid_{source.kind}")
            return Media(kind=source.kind, data=Tensor.of(data), param=source.param)

        tasks = [asyncio.create_task(one(source)) for source in sources]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _bytes(self, source: MediaSource, most: int) -> bytes | bytearray:
        value = source.value
        if isinstance(value, LongString):
            return await asyncio.to_thread(_decode_long, value, source, most)
        if source.form == "base64":
            return await asyncio.to_thread(decode_base64, value, 0, param=source.param, most=most)
        match = _SCHEME.match(value)
        scheme = match[1].lower() if match else "path"
        match scheme:
            case "data":
                start = _start_of_data(value, source)
                return await asyncio.to_thread(decode_base64, value, start, param=source.param, most=most)
            case "http" | "https":
                return await self._downloader.fetch(value, param=source.param, most=most)
            case "file":
                path = _file_path(value, source.param)
            case "path":
                path = value
            case _:
                raise bad_request(
                    f"'{source.param}' is not a usable URL: it must begin with http:, https:, data: or file:, "
                    "or be a local path.",
                    param=source.param,
                    code="invalid_url",
                )
        return await asyncio.to_thread(self._files.read, path, param=source.param, most=most)


class _Budget:
    """The bytes that are left for the media of one request."""

    def __init__(self, total: int) -> None:
        self.left = total

    def spend(self, size: int, param: str) -> None:
        if size > self.left:
            raise too_large(param, self.left)
        self.left -= size


def _start_of_data(head: str, source: MediaSource) -> int:
    """Where the base64 of a data URL starts. The media type is ignored, because the content shows the type."""
    comma = head.find(",", 0, _LONGEST_HEAD)
    if comma < 0 or not head[:comma].lower().endswith(";base64"):
        raise bad_request(
            f"'{source.param}' is not a usable URL: a data URL must have the form data:TYPE;base64,DATA.",
            param=source.param,
            code="invalid_url",
        )
    return comma + 1


def _decode_long(string: LongString, source: MediaSource, most: int) -> bytearray:
    """The file in a long string, which is base64 or a data URL. Call it in a thread."""
    try:
        text = string.base64()
    except ValueError as error:
        raise _not_base64(source.param) from error
    start = 0
    if source.form == "address":
        start = _start_of_data(text[:_LONGEST_HEAD].decode("utf-8", "replace"), source)
    return decode_base64(text, start, param=source.param, most=most)


def decode_base64(text: str | bytearray, start: int, *, param: str, most: int) -> bytearray:
    """The bytes that `text[start:]` encodes in standard base64, padded and without white space. Call it in a thread.

    The text is decoded in slices: a single call of `binascii` would hold the interpreter lock, and so stop every
    stream, until it returns.

    Raises:
        OmniError: 413 ``media_too_large`` before anything is decoded; 400 ``invalid_base64``.
    """
    length = len(text) - start
    padding = text[max(start, len(text) - 2) :].count("=" if isinstance(text, str) else b"=")  # type: ignore[arg-type]
    size = length // 4 * 3 - padding
    if size > most:
        raise too_large(param, most)
    data = bytearray()
    try:
        for begin in range(start, len(text), _SLICE):
            data += binascii.a2b_base64(text[begin : begin + _SLICE], strict_mode=True)
    except ValueError as error:  # a binascii.Error, or the error for a character beyond ASCII
        raise _not_base64(param) from error
    if length % 4 or len(data) != size:  # padding in the middle makes the data shorter
        raise _not_base64(param)
    return data


def _not_base64(param: str) -> OmniError:
    return bad_request(f"'{param}' is not valid base64.", param=param, code="invalid_base64")


def _file_path(value: str, param: str) -> str:
    try:
        url = urlsplit(value)
    except ValueError as error:
        raise bad_request(f"'{param}' is not a usable URL.", param=param, code="invalid_url") from error
    if url.netloc not in ("", "localhost"):
        raise not_allowed("the host of a file URL must be empty or localhost", param)
    return unquote(url.path)
