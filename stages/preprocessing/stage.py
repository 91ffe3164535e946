"""The stage preprocessing: turns text and undecoded media into the inputs of the model's parts.

A request passes through these phases, each of which may refuse it. Reader processes do everything that takes long or
touches untrusted bytes, so a step never waits, and requests overtake each other.

1. `TEXT`: The text's size is compared with the token limit. A short text is tokenised here, a long one by a reader.
   A request without media is complete.
2. `SURVEY`: A reader finds the sizes of the media from their headers (`survey.MediumSurvey`). Text and media together
   are compared with the token limit.
3. `GRANT`: The sizes are known and nothing is decoded. The stage claims the memory that the media will take, and waits
   until the main process grants the claim.
4. `READ`: A reader decodes the media. If they are larger than their headers say, they are dropped, and the request goes
   back to `GRANT` with their true size.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy
from msgspec import Struct, structs
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeProcessor

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import ErrorInfo, OmniError, internal
from omni_pipeline.logs import fields
from omni_pipeline.wire.messages import Claim, Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.model_config import read
from stages.checkpoint.weights import read_config
from stages.messages import (
    AudioItem,
    AudioWork,
    ChatRequest,
    Media,
    MediaRef,
    MediaSpan,
    Modality,
    Prompt,
    SpeechOptions,
    SpokenPrompt,
    VisionItem,
    VisionWork,
)
from stages.options import PreprocessingOptions
from stages.preprocessing.conversation import ChatTokenizer
from stages.preprocessing.decoded_size import ByteSizes, DecodedBytes, DecodedMedia, size_in_headers, size_of
from stages.preprocessing.features import CHUNK_FRAMES, DEFAULTS, Features
from stages.preprocessing.layout import PromptLayout, lay_out
from stages.preprocessing.media import MediaReader, ReadMedia
from stages.preprocessing.positions import mrope_positions
from stages.preprocessing.readers.pool import ReaderPool, reader_count
from stages.preprocessing.readers.process import Answer, Read, ReaderWork, Survey, Surveys, Tokenise, Tokens
from stages.preprocessing.spoken import Roles, spoken_prompt
from stages.preprocessing.survey import MediumSurvey, reading_seconds, survey_seconds
from stages.preprocessing.token_limit import TextLimit, TokenLimit

# Time scale with which the reference's processor merges a clip's frames with its sound. For positions the model has its
# own time scale (see `_position_ids_per_second`), and the two may differ in a checkpoint.
MERGE_IDS_PER_SECOND: float = DEFAULTS["videos_kwargs"]["position_id_per_seconds"]


# A conversation with more bytes is tokenised by a reader. Tokenising so much text takes 20 to 40 ms.
SHORT_TEXT_BYTES = 16 * 1024

# Size that each turn and each part counts besides its text, because rendering also takes time.
_PART_BYTES = 64

# Estimated time to tokenise a byte.
_SECONDS_PER_BYTE = 2e-6

logger = logging.getLogger(__name__)


class Phase(enum.Enum):
    """The phase of a request's preparation; see the module's docstring."""

    TEXT = enum.auto()
    SURVEY = enum.auto()
    GRANT = enum.auto()
    READ = enum.auto()


class Preparation(Struct):
    """A request that is being prepared.

    Attributes:
        request: The request.
        placed: The request's media in prompt order.
        phase: The phase that the request is in.
        skeleton: The ids of the request's text, with a placeholder for each media item; known from `SURVEY` on.
        surveys: The sizes of `placed`; known from `GRANT` on.
        claimed: The memory that has been claimed for the media.
    """

    request: ChatRequest
    placed: list[Media]
    phase: Phase = Phase.TEXT
    skeleton: list[int] = []
    surveys: list[MediumSurvey] = []
    claimed: DecodedBytes = DecodedBytes()

    @property
    def text_tokens(self) -> int:
        """Number of prompt tokens besides the media."""
        return len(self.skeleton) - len(self.placed)


class Preprocessing:
    """Takes `ChatRequest`; sends `Prompt`. Also sends `VisionWork` if there are pictures or clips, and `AudioWork` if
    there are sounds.
    """

    def __init__(self, context: StageContext) -> None:
        self.name = context.name
        options: PreprocessingOptions = context.options
        processor = Qwen3OmniMoeProcessor.from_pretrained(context.model_path)
        whole = Qwen3OmniMoeConfig.from_pretrained(context.model_path)
        config = whole.thinker_config
        self._limit = TokenLimit(options.max_prompt_tokens or config.text_config.max_position_embeddings)
        self._text_limit = TextLimit.of(self._limit, processor.tokenizer.backend_tokenizer)
        self._chat = ChatTokenizer(processor, self._text_limit)
        features = Features(processor, options.max_resized_pixels)
        self._merge, self._mel_rate = features.merge, features.mel_rate
        self._sizes = ByteSizes.of(read(read_config(context.model_path)))
        work = ReaderWork(self._chat, MediaReader(features, options, self._limit))
        self._readers = ReaderPool(work, reader_count(options.readers), options.reading_seconds)
        self._position_ids_per_second: float = config.position_id_per_seconds
        self._roles = Roles.of(whole) if "talker_ar" in context.stages else None
        self._preparing: dict[str, Preparation] = {}
        self._fresh: deque[str] = deque()
        self._claims: list[Claim] = []
        self._granted: deque[str] = deque()
        self._refused = 0
        self.batch: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._fresh or self._granted) or self._readers.has_news

    @property
    def waits_on(self) -> int:
        return self._readers.waits_on

    def receive(self, message: Work) -> None:
        request: ChatRequest = message.body
        parts = [part for turn in request.turns for part in turn.content]
        placed = [request.media[part.index] for part in parts if isinstance(part, MediaRef)]
        self._preparing[message.request_id] = Preparation(request, placed)
        self._fresh.append(message.request_id)

    def grant(self, request_id: str) -> None:
        """Have a request's media decoded."""
        if request_id in self._preparing:
            self._granted.append(request_id)

    def step(self) -> Iterable[Work | Failed | Claim]:
        """Process the readers' results, begin with the oldest new request, and give readers their next jobs."""
        self.batch = []
        messages: list[Work | Failed | Claim] = []
        for done in self._readers.collect():
            messages += self._advance(done.request_id, done.result)
        if self._fresh:
            messages += self._advance(self._fresh.popleft(), None)
        while self._granted:
            self._read(self._granted.popleft())
        self._readers.dispatch()
        claims, self._claims = self._claims, []
        return messages + claims

    def abort(self, request_id: str) -> None:
        if self._preparing.pop(request_id, None) is not None:
            self._fresh = deque(fresh for fresh in self._fresh if fresh != request_id)
            self._granted = deque(granted for granted in self._granted if granted != request_id)
            self._readers.cancel(request_id)

    def live(self) -> Collection[str]:
        return self._preparing.keys()

    def stats(self) -> dict[str, float]:
        return {
            "queued_requests": len(self._fresh) + self._readers.queued,
            "refused": self._refused,
            "readers": self._readers.count,
            "readers_busy": self._readers.busy,
            "readers_replaced": self._readers.restarted,
            "cancelled_readings": self._readers.cancelled,
            "demoted_readings": self._readers.demoted,
        }

    def close(self) -> None:
        self._readers.close()

    # --- phases ---

    def _advance(self, request_id: str, result: Answer | ErrorInfo | None) -> list[Work | Failed]:
        """Move a request to its next phase. Returns the request's messages if the request is complete or refused.

        Args:
            result: The answer or error from a reader; None for a new request.
        """
        preparation = self._preparing[request_id]
        self.batch.append(request_id)
        try:
            if isinstance(result, ErrorInfo):
                raise OmniError(result)
            messages = list(self._next_phase(request_id, preparation, result))
        except OmniError as error:
            self._refused += 1
            messages = [Failed(request_id, self.name, structs.replace(error.info, stage=self.name))]
        except Exception:
            logger.exception("a request could not be prepared", extra=fields(answer_id=request_id))
            messages = [Failed(request_id, self.name, internal(f"The {self.name} stage failed unexpectedly.").info)]
        if messages:
            del self._preparing[request_id]
        return messages

    def _next_phase(self, request_id: str, preparation: Preparation, result: Answer | None) -> Iterable[Work | Failed]:
        match result:
            case None:
                return self._take_text(request_id, preparation)
            case Tokens():
                return self._take_ids(request_id, preparation, result.ids.numpy().tolist())
            case Surveys():
                return self._take_surveys(request_id, preparation, result.items)
            case ReadMedia():
                return self._take_media(request_id, preparation, result)

    def _take_text(self, request_id: str, preparation: Preparation) -> Iterable[Work]:
        request = preparation.request
        parts = sum(1 + len(turn.content) for turn in request.turns)
        size = self._text_limit.check(request.turns) + parts * _PART_BYTES
        if size <= SHORT_TEXT_BYTES:
            ids = self._chat.skeleton(request.turns, request.media, request.thinking)
            return self._take_ids(request_id, preparation, ids)
        media = [Media(medium.kind, Tensor.of(b""), medium.param) for medium in request.media]
        self._readers.submit(request_id, Tokenise(request.turns, media, request.thinking), size * _SECONDS_PER_BYTE)
        return ()

    def _take_ids(self, request_id: str, preparation: Preparation, skeleton: list[int]) -> Iterable[Work]:
        self._limit.check(len(skeleton))
        preparation.skeleton = skeleton
        if not preparation.placed:
            return self._complete(request_id, preparation, ReadMedia([], [], AudioWork([], CHUNK_FRAMES), []))
        preparation.phase = Phase.SURVEY
        question = Survey(preparation.placed, preparation.request.video, preparation.text_tokens)
        self._readers.submit(request_id, question, survey_seconds(preparation.placed))
        return ()

    def _take_surveys(self, request_id: str, preparation: Preparation, surveys: list[MediumSurvey]) -> Iterable[Work]:
        self._limit.check(preparation.text_tokens + sum(survey.least_rows for survey in surveys))
        preparation.surveys = surveys
        size = size_in_headers(surveys, self._mel_rate, self._limit.tokens)
        self._claim(request_id, preparation, self._missing(preparation, size))
        return ()

    def _missing(self, preparation: Preparation, size: DecodedMedia) -> DecodedBytes:
        """The memory for media of this size that has not been claimed."""
        spoken = preparation.request.speech is not None
        return self._sizes.bytes_of(size, spoken=spoken).beyond(preparation.claimed)

    def _claim(self, request_id: str, preparation: Preparation, missing: DecodedBytes) -> None:
        """Claim memory. Media whose headers cannot be read claim nothing, and most of them will be refused."""
        preparation.phase = Phase.GRANT
        if not missing.passing + missing.lasting:
            self._granted.append(request_id)
            return
        preparation.claimed = preparation.claimed.plus(missing)
        self._claims.append(Claim(request_id, self.name, missing.passing, missing.lasting))

    def _read(self, request_id: str) -> None:
        """Have a request's media decoded."""
        preparation = self._preparing[request_id]
        preparation.phase = Phase.READ
        question = Read(preparation.placed, preparation.request.video, preparation.text_tokens, preparation.surveys)
        self._readers.submit(request_id, question, reading_seconds(preparation.surveys))

    def _take_media(self, request_id: str, preparation: Preparation, media: ReadMedia) -> Iterable[Work]:
        size = size_of([*media.pictures, *media.clips], media.sounds.items, self._merge)
        missing = self._missing(preparation, size)
        if missing.passing + missing.lasting:
            self._claim(request_id, preparation, missing)
            return ()
        return self._complete(request_id, preparation, media)

    def _complete(self, request_id: str, preparation: Preparation, media: ReadMedia) -> Iterator[Work]:
        layout = lay_out(preparation.skeleton, media.rows, self._chat.tokens, MERGE_IDS_PER_SECOND)
        self._limit.check(len(layout.ids))
        if media.pictures or media.clips:
            yield Start(request_id, self.name, "image_encoder", VisionWork(media.pictures + media.clips))
        if media.sounds.items:
            yield Start(request_id, self.name, "audio_encoder", media.sounds)
        yield Start(request_id, self.name, "mm_aggregate", self._prompt(layout, media, preparation.request))

    def _prompt(self, layout: PromptLayout, media: ReadMedia, request: ChatRequest) -> Prompt:
        positions, delta = mrope_positions(layout.gaps, media.rows, self._position_ids_per_second)
        kinds = [medium.kind for medium in media.rows]
        seen = list(zip(kinds, layout.visual_rows, strict=True))
        pictures = [rows for kind, rows in seen if kind == "image"]
        clips = [rows for kind, rows in seen if kind == "video"]
        heard = [rows for rows in layout.audio_rows if len(rows)]
        return Prompt(
            ids=Tensor.of(layout.ids),
            positions=None if positions is None else Tensor.of(positions),
            position_delta=delta,
            vision=_spans("image", media.pictures, pictures) + _spans("video", media.clips, clips),
            audio=_spans("audio", media.sounds.items, heard),
            thinker=request.thinker,
            text=request.text,
            spoken=self._spoken(layout, media, request.speech),
        )

    def _spoken(self, layout: PromptLayout, media: ReadMedia, speech: SpeechOptions | None) -> SpokenPrompt | None:
        if speech is None:
            return None
        if self._roles is None:
            raise internal("Speech was requested from a pipeline without a talker.")
        return spoken_prompt(layout, media.rows, self._roles, speech)


def _spans(
    kind: Modality, items: Sequence[VisionItem] | Sequence[AudioItem], rows: Sequence[numpy.ndarray]
) -> list[MediaSpan]:
    keys = [item.key for item in items]
    return [MediaSpan(kind, key, Tensor.of(own)) for key, own in zip(keys, rows, strict=True)]
