"""Records the times of one measured request: the arrival of each piece of the answer, and the end of the answer."""

from __future__ import annotations

from msgspec import Struct


class Failure(Struct, frozen=True):
    """The reason why a request has no complete answer.

    Attributes:
        code: The server's error code, ``http_STATUS`` if the server sent no code, or one of the client's own codes:
            ``connection_failed``, ``timeout``, ``stream_cut``, ``invalid_stream``, ``invalid_answer``,
            ``invalid_audio``.
        message: One sentence.
        status: HTTP status; None if there was no response, 200 if the stream had begun.
        param: The request field in the server's error.
    """

    code: str
    message: str
    status: int | None = None
    param: str | None = None


class AudioChunk(Struct, frozen=True):
    """One piece of speech: the seconds from sending the request to the arrival of the piece, and the seconds of sound
    in the piece.
    """

    at: float
    seconds: float


class PromptTokens(Struct, frozen=True):
    """Number of tokens in a prompt, and number of those that came from the server's prefix cache."""

    total: int
    cached: int


class RequestTimes(Struct, kw_only=True):
    """The times of one request, in seconds after the request was sent.

    Attributes:
        began: Time at which the request was sent, from the clock `time.perf_counter`.
        texts: Arrival time of each event with text.
        sounds: Each event with sound.
        whole_seconds: Seconds of sound in an answer that was not streamed. An answer that was not streamed has no
            `texts` and no `sounds`, because it arrives in one piece.
        ended: Time when the answer was complete, or failed.
        tokens: Number of text tokens in the server's `usage`; None if the server sent no `usage`.
        prompt: The prompt's tokens in the server's `usage`; None if the server does not report cached tokens.
        finish_reason: The finish reason that the server sent.
        failure: None for a complete answer.
    """

    began: float = 0.0
    texts: list[float] = []
    sounds: list[AudioChunk] = []
    whole_seconds: float = 0.0
    ended: float = 0.0
    tokens: int | None = None
    prompt: PromptTokens | None = None
    finish_reason: str | None = None
    failure: Failure | None = None

    @property
    def first_text(self) -> float | None:
        return self.texts[0] if self.texts else None

    @property
    def first_audio(self) -> float | None:
        return self.sounds[0].at if self.sounds else None

    @property
    def audio_seconds(self) -> float:
        return self.whole_seconds + sum(sound.seconds for sound in self.sounds)

    @property
    def real_time_factor(self) -> float | None:
        """Seconds until the last sound had arrived, divided by the length of all sound in seconds; None for an answer
        that was not streamed.
        """
        return self.sounds[-1].at / self.audio_seconds if self.sounds else None

    @property
    def text_tokens(self) -> int:
        """The number of text tokens in `usage`; without `usage`, the number of events with text."""
        return len(self.texts) if self.tokens is None else self.tokens
