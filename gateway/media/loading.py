"""Loads the media of a request from its body, the web or local files."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote, urlsplit

from gateway.api.conversion import MediaSource
from gateway.bodies.json_body import LongString
from gateway.media.addresses import not_allowed
from gateway.media.base64_text import Base64Decoder, encoded_size
from gateway.media.intake import Budget, Intake
from gateway.media.local_files import LocalFiles
from gateway.media.names import Names
from gateway.media.picture_clips import check_number, pictures_in_url
from gateway.media.remote import Downloader, Resolve
from gateway.media.threads import Threads
from omni_pipeline.config.schema import MediaPolicy
from omni_pipeline.errors import OmniError, bad_request
from omni_pipeline.wire.tensor import Tensor
from stages.messages import Media

_AT_ONCE = 8  # maximum number of media items of one request that are loaded at the same time
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")
# PATH_MAX of Linux without the final zero byte. The base64 of a file is often longer than this.
_LONGEST_PATH = 4095
# Maximum number of characters of a data URL before the comma.
_LONGEST_HEAD = 1024
# Number of base64 characters that one call of `binascii` decodes. During the call, no stream makes progress, because
# `binascii` holds the interpreter lock.
_SLICE = 1 << 20

# Number of threads that read local files, and number of threads that decode base64. A thread that reads a file may be
# blocked for a long time if the disk does not answer.
FILE_THREADS = 16
BASE64_THREADS = 2


class MediaLoader:
    """Loads media under one policy.

    Args:
        policy: Allowed sources of media, and maximum size of an item.
        total_bytes: Largest total size of the media of one request.
        resolver: Resolves the names of hosts to addresses; None means the system's resolver.
    """

    def __init__(self, policy: MediaPolicy, *, total_bytes: int, resolver: Resolve | None = None) -> None:
        self._policy = policy
        self._total_bytes = total_bytes
        self._files = LocalFiles(policy.local_path)
        self._downloader = Downloader(policy, resolver or Names().resolve)
        self._file_threads = Threads("read file", FILE_THREADS)
        self._base64_threads = Threads("decode base64", BASE64_THREADS)

    async def load(self, sources: Sequence[MediaSource], hold: Callable[[int], None], *, client: str) -> list[Media]:
        """The media of one request, in order. If an item cannot be loaded, the loading of all other items is stopped,
        and then the error is raised.

        Args:
            hold: Called with the size of each piece before the piece is kept. An error from `hold` refuses the piece.
            client: Client that sent the request.

        Raises:
            OmniError: the error of `hold`; 400 or 413 for the first item that cannot be loaded, see `docs/api.md`.
        """
        if len(sources) > self._policy.max_items:
            raise bad_request(
                f"The request has {len(sources)} media items; this server allows {self._policy.max_items}.",
                param=sources[self._policy.max_items].param,
                code="too_many_media",
            )
        for source in sources:
            check_number(len(source.frames), self._policy.max_frames, source.param)
        places = asyncio.Semaphore(_AT_ONCE)
        budget = Budget(self._total_bytes, hold)

        async def file(source: MediaSource) -> Tensor:
            intake = Intake(source.param, self._policy.max_bytes, budget)
            await self._take_in(source, intake, client)
            if not intake.data:
                raise bad_request(f"'{source.param}' is empty.", param=source.param, code=f"invalid_{source.kind}")
            return Tensor.of(intake.data)

        async def one(source: MediaSource) -> Media:
            async with places:
                if pictures := pictures_in_url(source, self._policy.max_frames):
                    frames = [await file(picture) for picture in pictures]
                    return Media(source.kind, Tensor.of(b""), source.param, video=source.video, frames=frames)
                return Media(source.kind, await file(source), source.param, source.size, source.video)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [[group.create_task(one(item)) for item in source.frames or [source]] for source in sources]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [
            _clip(source, [task.result() for task in own]) if source.frames else own[0].result()
            for source, own in zip(sources, tasks, strict=True)
        ]

    async def _take_in(self, source: MediaSource, intake: Intake, client: str) -> None:
        value = source.value
        if isinstance(value, LongString):
            await self._decode_long(value, source, intake, client)
            return
        if source.form == "base64":
            await self._decode(value, 0, source.param, intake, client)
            return
        match = _SCHEME.match(value)
        scheme = match[1].lower() if match else "path"
        match scheme:
            case "data":
                await self._decode(value, _start_of_data(value, source.param), source.param, intake, client)
            case "http" | "https":
                await self._downloader.fetch(value, intake, param=source.param, client=client)
            case "file":
                await self._read(_file_path(value, source.param), source.param, intake, client)
            case "path":
                if len(value) > _LONGEST_PATH:
                    raise bad_request(
                        f"'{source.param}' is too long for a path; base64 must be sent as a data URL, "
                        "data:TYPE;base64,DATA.",
                        param=source.param,
                        code="invalid_url",
                    )
                await self._read(value, source.param, intake, client)
            case _:
                raise bad_request(
                    f"'{source.param}' is not a usable URL: it must begin with http:, https:, data: or file:, "
                    "or be a local path.",
                    param=source.param,
                    code="invalid_url",
                )

    async def _read(self, path: str, param: str, intake: Intake, client: str) -> None:
        file = await self._file_threads.run(client, functools.partial(self._files.open, path, param))
        intake.expect(file.size)
        while piece := await self._file_threads.run(client, file.read):
            intake.add(piece)

    async def _decode_long(self, string: LongString, source: MediaSource, intake: Intake, client: str) -> None:
        """Decode the file that a long string contains as base64 or as a data URL, and add the bytes to the intake."""
        start = 0
        if source.form == "address":
            start = _start_of_data(string.content[:_LONGEST_HEAD].decode("latin-1"), source.param)
        await self._decode(string, start, source.param, intake, client)

    async def _decode(self, text: str | LongString, start: int, param: str, intake: Intake, client: str) -> None:
        """Decode the base64 in ``text[start:]``, and add the decoded bytes to the intake. Accepts all forms that
        `Base64Decoder` accepts.

        Raises:
            OmniError: 413 ``media_too_large``, if possible before anything is decoded; 400 ``invalid_base64``.
        """
        length = len(text) if isinstance(text, str) else len(text.content)
        decoder = Base64Decoder()
        if encoded_size(length - start) > intake.allowed:
            intake.expect(encoded_size(length - start - await self._skipped(text, start, client)))
        position = start
        try:
            while position < length:
                take = functools.partial(_decode_slice, decoder, text, position)
                piece, position = await self._base64_threads.run(client, take)
                intake.add(piece)
            intake.add(decoder.finish())
        except ValueError as error:  # a binascii.Error, or the error for a wrong escape or a character beyond ASCII
            raise _not_base64(param) from error

    async def _skipped(self, text: str | LongString, start: int, client: str) -> int:
        """Estimate how many bytes of `text`, from `start` on, encode no data, such as white space. The estimate is
        never too low.
        """
        if isinstance(text, str):  # the text is short, because a long text is a `LongString`
            return sum(text.count(character, start) for character in " \t\r\n=")
        skipped = 0
        for begin in range(start, len(text.content), _SLICE):
            count = functools.partial(text.skipped, begin, begin + _SLICE)
            skipped += await self._base64_threads.run(client, count)
        return skipped


def _clip(source: MediaSource, pictures: Sequence[Media]) -> Media:
    """The clip whose frames are `pictures`."""
    frames = [picture.data for picture in pictures]
    return Media(source.kind, Tensor.of(b""), source.param, video=source.video, frames=frames)


def _decode_slice(decoder: Base64Decoder, text: str | LongString, begin: int) -> tuple[bytes, int]:
    if isinstance(text, str):
        return decoder.decode(text[begin : begin + _SLICE]), begin + _SLICE
    characters, end = text.characters(begin, _SLICE)
    return decoder.decode(characters), end


def _start_of_data(head: str, param: str) -> int:
    """The index at which the base64 of a data URL begins. The media type is ignored, because the type is detected from
    the content.
    """
    comma = head.find(",", 0, _LONGEST_HEAD)
    if comma < 0 or not head[:comma].lower().endswith(";base64"):
        raise bad_request(
            f"'{param}' is not a usable URL: a data URL must have the form data:TYPE;base64,DATA.",
            param=param,
            code="invalid_url",
        )
    return comma + 1


def _not_base64(param: str) -> OmniError:
    return bad_request(f"'{param}' is not valid base64.", param=param, code="invalid_base64")


def _file_path(address: str, param: str) -> str:
    try:
        url = urlsplit(address)
    except ValueError as error:
        raise bad_request(f"'{param}' is not a usable URL.", param=param, code="invalid_url") from error
    if url.netloc not in ("", "localhost"):
        raise not_allowed("the host of a file URL must be empty or localhost", param)
    return unquote(url.path)
