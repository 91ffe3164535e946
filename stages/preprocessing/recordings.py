"""Keeps the recordings that are being transcribed or translated, and provides their pieces.

A reader decodes a recording once, and finds where to cut it. This module keeps the decoded sound until the main process
aborts the recording's request. Each piece is prepared in the same way as the sound of a chat request.

A claim is a message that asks the main process for memory. The main process grants the claim when enough memory is
free. Before a recording is decoded, the stage claims all memory that the recording will need: for the decoded sound,
and for the encoder inputs and embedding rows of all pieces that can be in the pipeline at a time. So the pieces
themselves claim no memory. If recordings that already have memory had to wait for more memory, they could wait for each
other for ever.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy
from msgspec import Struct

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.errors import unavailable
from omni_pipeline.wire.messages import Chunk, Claim
from omni_pipeline.wire.tensor import Tensor
from stages.messages import ChatRequest, Media, PieceRequest, Recording, RecordingCut
from stages.options import PreprocessingOptions
from stages.preprocessing.decoded_size import ByteSizes, DecodedBytes, size_in_headers
from stages.preprocessing.readers.pool import ReaderPool
from stages.preprocessing.readers.process import Answer, Cut, CutSound, Measure, Surveys
from stages.preprocessing.survey import MediumSurvey, reading_seconds, survey_seconds
from stages.preprocessing.transcript_prompts import TranscriptPrompt, transcript_prompt

_SAMPLE_BYTES = 4
# Number of additional copies of a sound that exist while the sound is decoded and sent to this process. After that,
# one copy remains in memory.
_PASSING_COPIES = 2


class SoundRates(Struct, frozen=True):
    """Samples and mel frames for each second of sound, in the model's audio processor."""

    samples: int
    mel_frames: float


class RecordingBytes(Struct, frozen=True):
    """The memory that a recording needs. The fields have the same meaning as in `Claim`."""

    passing: int
    lasting: int

    def beyond(self, other: RecordingBytes) -> RecordingBytes:
        """The part of this memory that exceeds `other`."""
        return RecordingBytes(max(self.passing - other.passing, 0), max(self.lasting - other.lasting, 0))

    def plus(self, other: RecordingBytes) -> RecordingBytes:
        """The sum of this memory and `other`."""
        return RecordingBytes(self.passing + other.passing, self.lasting + other.lasting)


class _Kept(Struct):
    """A recording.

    Attributes:
        media: The undecoded sound; empty once it is decoded.
        prompt: The prompt for the pieces.
        at_once: Maximum number of pieces in the pipeline at a time.
        sender: Number of the client, see `messages.Sampling.sender`.
        survey: The length of the recording; known before memory is claimed.
        claimed: The memory that has been claimed; None before the first claim.
        samples, ends: The sound, float32 [samples], and the sample at which each piece ends. Known when the sound has
            been decoded.
    """

    media: list[Media]
    prompt: TranscriptPrompt
    at_once: int
    sender: int
    survey: MediumSurvey = MediumSurvey("audio")
    claimed: RecordingBytes | None = None
    samples: numpy.ndarray | None = None
    ends: list[int] = []


class Recordings:
    """All recordings of the stage.

    Args:
        stage: Name of the stage.
        readers: The processes that decode.
        sizes: Sizes of decoded media.
        most_rows: Maximum number of tokens of a prompt.

    Attributes:
        claims: Claims that the stage has to send.
    """

    def __init__(
        self,
        stage: str,
        readers: ReaderPool,
        options: PreprocessingOptions,
        sizes: ByteSizes,
        rates: SoundRates,
        most_rows: int,
    ) -> None:
        self.claims: list[Claim] = []
        self._stage = stage
        self._readers = readers
        self._options = options
        self._sizes = sizes
        self._rates = rates
        self._most_rows = most_rows
        self._kept: dict[str, _Kept] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._kept

    @property
    def ids(self) -> Collection[str]:
        """The request ids of all recordings."""
        return self._kept.keys()

    @property
    def seconds(self) -> float:
        """Total length of the decoded recordings."""
        return sum(len(kept.samples) for kept in self._kept.values() if kept.samples is not None) / self._rates.samples

    def add(self, request_id: str, recording: Recording) -> None:
        """Accept a recording. Raises OmniError (400) for an unknown language."""
        prompt = transcript_prompt(recording, self._options)
        self._kept[request_id] = _Kept([recording.sound], prompt, recording.at_once, recording.sender)

    def advance(self, request_id: str, answer: Answer | None) -> list[Chunk[RecordingCut]]:
        """Move a recording to its next phase. There are three phases: a reader finds the recording's length, the stage
        claims memory, and a reader decodes the recording. Returns the pieces when they are known.

        Args:
            answer: The answer of a reader; None for a new recording.
        """
        kept = self._kept[request_id]
        match answer:
            case None:
                self._readers.submit(request_id, Measure(kept.media), survey_seconds(kept.media), kept.sender)
            case Surveys():
                [kept.survey] = answer.items
                self._claim(request_id, kept, kept.survey.sound_seconds)
            case CutSound():
                seconds = answer.samples.shape[0] / self._rates.samples
                if self._claim(request_id, kept, seconds):
                    return []  # longer than its header states: it is decoded again after more memory is granted
                kept.media, kept.samples, kept.ends = [], answer.samples.numpy(), answer.ends
                ends = [end / self._rates.samples for end in kept.ends]
                cut = RecordingCut(ends, kept.prompt.language)
                return [Chunk(request_id, self._stage, COLLECTOR, cut)]
        return []

    def read(self, request_id: str) -> None:
        """Let a reader decode a recording, because its memory has been granted."""
        kept = self._kept[request_id]
        question = Cut(kept.media, self._options.transcript_piece_seconds)
        self._readers.submit(request_id, question, reading_seconds([kept.survey]), kept.sender)

    def piece(self, request: PieceRequest) -> tuple[ChatRequest, DecodedBytes]:
        """The chat request for a piece, and the memory that the recording has claimed for this piece.

        Raises:
            OmniError: 503 if the stage does not have the recording any more.
        """
        kept = self._kept.get(request.recording)
        if kept is None or kept.samples is None:
            raise unavailable("The recording was lost, because a worker was restarted.", code="worker_lost")
        begin = kept.ends[request.index - 1] if request.index else 0
        samples = kept.samples[begin : kept.ends[request.index]]
        sound = Media("audio", Tensor.of(samples), "file", decoded=True)
        chat = ChatRequest(kept.prompt.turns, [sound], thinker=request.thinker, text=request.text)
        return chat, self._piece_bytes(len(samples) / self._rates.samples)

    def drop(self, request_id: str) -> bool:
        """Forget a recording. Returns whether the stage had it."""
        return self._kept.pop(request_id, None) is not None

    def _claim(self, request_id: str, kept: _Kept, seconds: float) -> bool:
        """Claim the memory for a recording of this length. Returns False if enough memory has been claimed before."""
        needed = self._needed(kept.at_once, seconds)
        more = needed if kept.claimed is None else needed.beyond(kept.claimed)
        if kept.claimed is not None and not more.passing + more.lasting:
            return False
        kept.claimed = more if kept.claimed is None else kept.claimed.plus(more)
        self.claims.append(Claim(request_id, self._stage, more.passing, more.lasting))
        return True

    def _needed(self, at_once: int, seconds: float) -> RecordingBytes:
        """The memory for a recording and its pieces."""
        wave = math.ceil(seconds * self._rates.samples) * _SAMPLE_BYTES
        longest = self._options.transcript_piece_seconds
        count = min(at_once, int(seconds / (longest / 2)) + 1)
        piece = self._piece_bytes(min(seconds, longest))
        return RecordingBytes(wave * _PASSING_COPIES, wave + count * (piece.passing + piece.lasting))

    def _piece_bytes(self, seconds: float) -> DecodedBytes:
        survey = MediumSurvey("audio", sound_seconds=seconds)
        size = size_in_headers([survey], self._rates.mel_frames, self._most_rows)
        return self._sizes.bytes_of(size, spoken=False)
