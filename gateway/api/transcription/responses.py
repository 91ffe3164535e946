"""Defines the answers to requests for transcripts, as JSON and as events of a stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.api.responses import Logprob, token_logprob
from stages.messages import FinishReason, RecordingCut, TextDelta, TokenUsage, TranscriptTask

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer; CJK punctuation, kana, Chinese characters, and their
# full-width forms.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3000, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)


class InputDetails(Struct):
    """Parts of the prompts, in tokens."""

    audio_tokens: int
    text_tokens: int


class TranscriptUsage(Struct):
    """Tokens of all pieces of a sound."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: InputDetails
    type: Literal["tokens"] = "tokens"


class DurationUsage(Struct):
    """The usage of a request. The usage is the length of the sound in seconds, not a number of tokens."""

    seconds: float
    type: Literal["duration"] = "duration"


class Transcript(Struct):
    """The text of a sound.

    `logprobs` is only present if it was asked for. `finish_reason` is ``length`` if the text of a piece of the sound
    was cut off at its limit.
    """

    text: str
    usage: TranscriptUsage
    finish_reason: FinishReason
    logprobs: list[Logprob] | UnsetType = UNSET


class Segment(Struct):
    """The text of one piece of a sound. The server cuts a sound only if it would otherwise be too long.

    `compression_ratio` is the size of the text in UTF-8 divided by its size after compression: a high ratio means that
    the text repeats itself.
    """

    id: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    finish_reason: FinishReason


class VerboseTranscript(Struct):
    """The text of a sound, with its pieces. `language` is the language of the text; null if it is not known."""

    task: TranscriptTask
    language: str | None
    duration: float
    text: str
    segments: list[Segment]
    usage: DurationUsage


class TranscriptDelta(Struct):
    """Further text."""

    delta: str
    logprobs: list[Logprob] | UnsetType = UNSET
    type: Literal["transcript.text.delta"] = "transcript.text.delta"


class TranscriptDone(Struct):
    """The whole text, after all deltas. This event has the same fields as `Transcript`."""

    text: str
    usage: TranscriptUsage
    finish_reason: FinishReason
    logprobs: list[Logprob] | UnsetType = UNSET
    type: Literal["transcript.text.done"] = "transcript.text.done"


class PieceText(Struct):
    """The text of a piece that is complete.

    Attributes:
        separator: The text between the previous piece and this piece.
    """

    separator: str
    deltas: list[TextDelta]
    finish_reason: FinishReason
    usage: TokenUsage

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


def separator(before: str, after: str) -> str:
    """The text to insert between two texts: a space, or nothing if there is a space already or if the script has no
    spaces.

    Args:
        before, after: The end of the first text and the beginning of the second.
    """
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return "" if _has_no_spaces(before[-1]) and _has_no_spaces(after[0]) else " "


def whole_text(pieces: Iterable[PieceText]) -> str:
    """The text of a sound."""
    return "".join(piece.separator + piece.text for piece in pieces)


def logprobs(deltas: Iterable[TextDelta]) -> list[Logprob]:
    """The log-probabilities of the tokens of some text."""
    return [token_logprob(token.chosen) for delta in deltas for token in delta.logprobs]


def transcript(pieces: Sequence[PieceText], *, with_logprobs: bool) -> Transcript:
    """The answer in the format ``json``."""
    prompt = sum(piece.usage.prompt_tokens for piece in pieces)
    audio = sum(piece.usage.media_tokens.get("audio", 0) for piece in pieces)
    output = sum(piece.usage.completion_tokens for piece in pieces)
    return Transcript(
        text=whole_text(pieces),
        usage=TranscriptUsage(prompt, output, prompt + output, InputDetails(audio, prompt - audio)),
        finish_reason="length" if any(piece.finish_reason == "length" for piece in pieces) else "stop",
        logprobs=logprobs(delta for piece in pieces for delta in piece.deltas) if with_logprobs else UNSET,
    )


def verbose_transcript(
    pieces: Sequence[PieceText], cut: RecordingCut, task: TranscriptTask, temperature: float
) -> VerboseTranscript:
    """The answer in the format ``verbose_json``."""
    times = zip(pieces, [0.0, *cut.ends[:-1]], cut.ends, strict=True)
    return VerboseTranscript(
        task=task,
        language=None if cut.language is None else cut.language.lower(),  # this is OpenAI's form
        duration=cut.ends[-1],
        text=whole_text(pieces),
        segments=[_segment(index, piece, start, end, temperature) for index, (piece, start, end) in enumerate(times)],
        usage=DurationUsage(cut.ends[-1]),
    )


def _segment(index: int, piece: PieceText, start: float, end: float, temperature: float) -> Segment:
    tokens = logprobs(piece.deltas)
    text = piece.text.encode()
    return Segment(
        id=index,
        start=start,
        end=end,
        text=piece.text,
        tokens=[id_ for delta in piece.deltas for id_ in delta.ids],
        temperature=temperature,
        avg_logprob=sum(token.logprob for token in tokens) / max(len(tokens), 1),
        compression_ratio=len(text) / len(zlib.compress(text)),
        finish_reason=piece.finish_reason,
    )


def _has_no_spaces(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _WITHOUT_SPACES)
