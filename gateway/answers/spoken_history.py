"""Keeps the transcripts of spoken answers for a while, so that a later request can name an answer by its id."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from gateway.api.schema import AssistantMessage, ChatCompletionRequest
from gateway.bodies.reader import text_too_large
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request

# Approximate size in memory of a transcript without its text.
_ENTRY_BYTES = 512
_LONGEST_QUOTED_ID = 64


class _Kept(Struct, frozen=True):
    """A transcript in UTF-8, the client whose answer it is, and the time until which it is kept."""

    client: str
    text: bytes
    expires_at: int

    @property
    def size(self) -> int:
        return len(self.text) + _ENTRY_BYTES


class SpokenHistory:
    """The transcripts of spoken answers, by the id of the speech.

    An answer states until when its id can be used, so no transcript is forgotten before that time. When there is no
    room for one more, it is not kept, and its answer says that the id has expired already. A client may add a
    transcript only while it has fewer (and fewer bytes) of them than are free, so no client can take all the room.

    Args:
        limits: Number, total size and lifetime of transcripts.
        private: Whether only the client that got an answer may use its id. Without API keys, a client is not known for
            sure, so the id itself, which cannot be guessed, is enough.
        now: The clock, in seconds since 1970.
    """

    def __init__(self, limits: Limits, *, private: bool, now: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._private = private
        self._now = now
        self._kept: dict[str, _Kept] = {}  # the oldest first
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._free_bytes = limits.transcript_bytes

    def keep(self, client: str, audio_id: str, transcript: str) -> int:
        """Keep the transcript of a complete answer to `client`, if there is room for it.

        Returns the time (in seconds since 1970) until which it is kept: the present if it is not kept.
        """
        now = self._now()
        self._forget_expired(now)
        new = _Kept(client, transcript.encode(), int(now + self._limits.transcript_seconds))
        free = self._limits.transcripts - len(self._kept)
        if self._counts[client] >= free or self._bytes[client] + new.size > self._free_bytes:
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
        self._free_bytes -= change * kept.size
        self._bytes[kept.client] += change * kept.size
        self._counts[kept.client] += change
        if not self._counts[kept.client]:
            del self._counts[kept.client], self._bytes[kept.client]


def restore_transcripts(
    request: ChatCompletionRequest, recall: Callable[[str], str | None], *, room: int, most: int
) -> int:
    """Give each earlier answer in `request` that has no text but an id of its speech the transcript of that speech.

    Returns the number of bytes of all these transcripts.

    Args:
        recall: Returns the transcript for an id, or None.
        room: Number of bytes that the transcripts may have together.
        most: The limit on text that `room` was computed from, for the error.

    Raises:
        OmniError: 404 ``audio_not_found`` for an id that is not known, 413 ``text_too_large``.
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
        f"There is no spoken answer '{quoted}', or it has expired (see 'expires_at' in the answer); "
        "send its text as 'content' instead.",
        param=param,
        code="audio_not_found",
        status=404,
    )
