"""Keeps the transcripts of spoken answers for a limited time, so that a later request can refer to an answer by its
id.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

from gateway.api.schema import AssistantMessage, ChatCompletionRequest
from gateway.bodies.reader import text_too_large
from gateway.fair_limit import FairLimit
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request

# Approximate size in memory of a transcript without its text.
_ENTRY_BYTES = 512
_LONGEST_QUOTED_ID = 64


class _Kept(Struct, frozen=True):
    """A transcript in UTF-8, the client that got the answer, and the time until which the transcript is kept."""

    client: str
    text: bytes
    expires_at: int

    @property
    def size(self) -> int:
        return len(self.text) + _ENTRY_BYTES


class SpokenHistory:
    """The transcripts of spoken answers. Each transcript is found by the id of its speech.

    An answer states the time until which its id can be used. No transcript is dropped before that time. If there is no
    room for a new transcript, the transcript is not kept, and its answer states that the id has already expired.
    Clients share the number and the bytes of transcripts according to the rules of `FairLimit`.

    Args:
        limits: Limits on the number, the total size and the lifetime of transcripts.
        private: Whether only the client that got an answer may use the id of this answer. False if the server has no
            API keys, because a server without API keys cannot identify clients reliably. If False, any client that
            knows an id may use this id. This is safe, because ids cannot be guessed.
        now: The clock, in seconds since 1970.
    """

    def __init__(self, limits: Limits, *, private: bool, now: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._private = private
        self._now = now
        self._kept: dict[str, _Kept] = {}  # the oldest first
        self._counts = FairLimit(limits.transcripts)
        self._bytes = FairLimit(limits.transcript_bytes)

    def keep(self, client: str, audio_id: str, transcript: str) -> int:
        """Keep the transcript of a complete answer to `client`, if there is room for it.

        Returns the time (in seconds since 1970) until which the transcript is kept. If the transcript is not kept,
        returns the current time.
        """
        now = self._now()
        self._forget_expired(now)
        new = _Kept(client, transcript.encode(), int(now + self._limits.transcript_seconds))
        if not self._counts.fits(client) or not self._bytes.fits(client, new.size):
            return int(now)
        self._kept[audio_id] = new
        self._count(new, 1)
        return new.expires_at

    def transcript(self, client: str, audio_id: str) -> str | None:
        """The transcript of the answer with this id; None if it is not kept for `client`. Any thread may call this."""
        kept = self._kept.get(audio_id)
        if kept is None or self._now() > kept.expires_at or (self._private and kept.client != client):
            return None
        return kept.text.decode()

    def _forget_expired(self, now: float) -> None:
        while self._kept:
            audio_id, oldest = next(iter(self._kept.items()))
            if now <= oldest.expires_at:
                break
            del self._kept[audio_id]
            self._count(oldest, -1)

    def _count(self, kept: _Kept, change: int) -> None:
        self._bytes.take(kept.client, change * kept.size)
        self._counts.take(kept.client, change)


def restore_transcripts(
    request: ChatCompletionRequest, recall: Callable[[str], str | None], *, room: int, most: int
) -> int:
    """Insert the missing transcripts into `request`. An earlier answer in `request` may have the id of its speech, but
    no text. This function inserts the transcript into each earlier answer of this kind.

    Returns the number of bytes of all inserted transcripts.

    Args:
        recall: Returns the transcript for an id, or None.
        room: Maximum number of bytes of all inserted transcripts.
        most: The server's limit on the text of a request. The message of an error contains this limit. `room` is the
            part of this limit that the rest of the request leaves free.

    Raises:
        OmniError: 404 ``audio_not_found`` for an unknown id, 413 ``text_too_large``.
    """
    size = 0
    for index, message in enumerate(request.messages):
        if not isinstance(message, AssistantMessage) or _has_text(message):
            continue
        audio = message.audio
        if audio is None or audio.id is None or audio.transcript is not None:
            continue
        param = f"messages[{index}].audio.id"
        audio.transcript = recall(audio.id)
        if audio.transcript is None:
            raise _not_found(audio.id, param)
        size += len(audio.transcript.encode())
        if size > room:
            raise text_too_large(most, param)
    return size


def _has_text(message: AssistantMessage) -> bool:
    return bool(message.content) or (message.content is None and message.refusal is not None)


def _not_found(audio_id: str, param: str) -> OmniError:
    quoted = audio_id if len(audio_id) <= _LONGEST_QUOTED_ID else audio_id[:_LONGEST_QUOTED_ID] + "…"
    return bad_request(
        f"The spoken answer '{quoted}' does not exist or has expired (see 'expires_at' in the answer); "
        "send its text as 'content' instead.",
        param=param,
        code="audio_not_found",
        status=404,
    )
