"""Reads media in a separate process, so that a file that crashes a decoder ends only its own request.

The process is forked when the stage is built, before anything computes, and again each time it has ended. It answers
one question at a time over a socket pair. A message is sent as the frames that `omni_pipeline.wire.messages` makes,
each preceded by its length.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from msgspec import Struct

from omni_pipeline.errors import OmniError, bad_request, internal
from omni_pipeline.os_process import die_with_parent, set_title
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Chunk, End, Failed, Start
from omni_pipeline.wire.tensor import Buffer
from stages.messages import Media, VideoOptions
from stages.preprocessing.media import MediaReader, ReadMedia

logger = logging.getLogger(__name__)

_STAGE, _READER = "preprocessing", "reader"
_FRAMES, _SIZE = struct.Struct("=I"), struct.Struct("=Q")
_MOST_BUFFERS = 512  # frames given to the kernel at a time; its limit is 1024


class ReadingJob(Struct):
    """The media to read; the fields are the arguments of `MediaReader.read`."""

    media: list[Media]
    video: VideoOptions
    text_tokens: int


class Reading(Struct, tag="reading"):
    """The reader has begun with the media item at this index."""

    index: int


class _ReadingProgress(Struct):
    """The reader's progress: whether it has begun, and which media item it is reading."""

    begun: bool = False
    index: int = 0


_EDGES: dict[tuple[str, str], Any] = {(_STAGE, _READER): ReadingJob, (_READER, _STAGE): Reading | ReadMedia}


class ReadingProcess:
    """A `MediaReader` in another process.

    Args:
        reader: The reader that runs in the other process.
        seconds: Time limit for the media of one request.
    """

    def __init__(self, reader: MediaReader, seconds: float) -> None:
        self._reader = reader
        self._seconds = seconds
        self._codec = Codec(_EDGES)
        self._pid = 0
        self._socket: socket.socket | None = None
        self._start()

    def read(self, media: Sequence[Media], video: VideoOptions, text_tokens: int) -> ReadMedia:
        """As `MediaReader.read`.

        Raises:
            OmniError: The error of `MediaReader.read`; 400 ``invalid_image``, ``invalid_audio`` or ``invalid_video``
                for a media item that crashed its decoder; 400 ``media_too_slow`` if reading took too long.
        """
        if not media:
            return self._reader.read(media, video, text_tokens)
        question = ReadingJob(list(media), video, text_tokens)
        deadline = time.monotonic() + self._seconds
        while True:
            progress = _ReadingProgress()
            try:
                return self._ask(question, deadline, progress)
            except TimeoutError as error:
                self.close()
                raise bad_request(
                    f"Reading '{media[progress.index].param}' took longer than {self._seconds:g} s.",
                    param=media[progress.index].param,
                    code="media_too_slow",
                ) from error
            except (EOFError, ConnectionError) as error:
                logger.warning("the process that reads media has ended (%s) and is being restarted", self.close())
                if progress.begun:
                    medium = media[progress.index]
                    message = f"The {medium.kind} cannot be decoded: its decoder crashed."
                    raise bad_request(message, param=medium.param, code=f"invalid_{medium.kind}") from error
                # The process ended before it began with any media item.

    def _ask(self, question: ReadingJob, deadline: float, progress: _ReadingProgress) -> ReadMedia:
        if self._socket is None:
            self._start()
        assert self._socket is not None
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        _send(self._socket, self._codec.encode(Start("", _STAGE, _READER, question)))
        while True:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            message = self._codec.decode(_receive(self._socket))
            if isinstance(message, Failed):
                raise OmniError(message.error)
            assert isinstance(message, (Chunk, End))
            if isinstance(message, End):
                return message.body
            progress.begun, progress.index = True, message.body.index

    def close(self) -> str:
        """End the process. Returns its signal or exit code in words."""
        if self._socket is None:
            return "it had ended"
        self._socket.close()
        self._socket = None
        os.kill(self._pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _start(self) -> None:
        ours, its = socket.socketpair()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            ours.close()
            _be_reader(self._reader, its, parent)
        its.close()
        self._socket = ours


def _be_reader(reader: MediaReader, questions: socket.socket, parent: int) -> NoReturn:
    """The process's main loop: answer until there are no more questions."""
    code = 1
    try:
        die_with_parent(parent, signal.SIGKILL)
        set_title("preprocessing: media")
        _leave_output_to_us()
        torch.set_num_threads(1)  # the parent's threads do not exist in this process
        codec = Codec(_EDGES)
        while True:
            question = codec.decode(_receive(questions)).body  # type: ignore[union-attr]

            def begin(index: int) -> None:
                _send(questions, codec.encode(Chunk("", _READER, _STAGE, Reading(index))))

            _send(questions, codec.encode(_answer(reader, question, begin)))
    except (EOFError, ConnectionError):
        code = 0
    except BaseException:
        logger.exception("the process that reads media ends")
    finally:
        os._exit(code)


def _leave_output_to_us() -> None:
    """Discard what C libraries print about clients' files; our own log lines still go to standard error."""
    ours = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    faulthandler.enable(ours)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(ours)


def _answer(reader: MediaReader, question: ReadingJob, begin: Callable[[int], None]) -> End[ReadMedia] | Failed:
    try:
        return End("", _READER, _STAGE, reader.read(question.media, question.video, question.text_tokens, begin))
    except OmniError as error:
        return Failed("", _READER, error.info)
    except Exception:
        logger.exception("media could not be read")
        return Failed("", _READER, internal("The media could not be read.").info)


def _send(to: socket.socket, frames: Sequence[Buffer]) -> None:
    views = [memoryview(frame).cast("B") for frame in frames]
    pieces: list[Buffer] = [_FRAMES.pack(len(views))]
    for view in views:
        pieces += [_SIZE.pack(view.nbytes), view]
    for start in range(0, len(pieces), _MOST_BUFFERS):
        _send_all(to, pieces[start : start + _MOST_BUFFERS])


def _send_all(to: socket.socket, pieces: Sequence[Buffer]) -> None:
    left = [view for piece in pieces if (view := memoryview(piece)).nbytes]
    while left:
        sent = to.sendmsg(left)
        while left and sent >= left[0].nbytes:
            sent -= left.pop(0).nbytes
        if sent:
            left[0] = left[0][sent:]


def _receive(source: socket.socket) -> list[Buffer]:
    """The next message's frames. Raises EOFError at the end."""
    (count,) = _FRAMES.unpack(_exactly(source, _FRAMES.size))
    return [_exactly(source, _SIZE.unpack(_exactly(source, _SIZE.size))[0]) for _ in range(count)]


def _exactly(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view.nbytes:
        read = source.recv_into(view)
        if not read:
            raise EOFError
        view = view[read:]
    return data
