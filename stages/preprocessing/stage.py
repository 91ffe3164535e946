"""The stage preprocessing: turns text and undecoded media into the inputs of the model's parts, a request at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy
from msgspec import structs
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeProcessor

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import OmniError, internal
from omni_pipeline.wire.messages import Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    AudioItem,
    ChatRequest,
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
from stages.preprocessing.features import DEFAULTS, Features
from stages.preprocessing.layout import PromptLayout, lay_out
from stages.preprocessing.media import MediaReader, ReadMedia
from stages.preprocessing.positions import mrope_positions
from stages.preprocessing.reading import ReadingProcess
from stages.preprocessing.spoken import Roles, spoken_prompt
from stages.preprocessing.token_limit import TokenLimit

# Time scale with which the reference's processor merges a clip's frames with its sound. For positions the model has its
# own time scale (see `_position_ids_per_second`), and the two may differ in a checkpoint.
MERGE_IDS_PER_SECOND: float = DEFAULTS["videos_kwargs"]["position_id_per_seconds"]


class Preprocessing:
    """Takes `ChatRequest`; sends `Prompt`, and `VisionWork` or `AudioWork` if there is something to see or hear."""

    def __init__(self, context: StageContext) -> None:
        self.name = context.name
        options: PreprocessingOptions = context.options
        processor = Qwen3OmniMoeProcessor.from_pretrained(context.model_path)
        whole = Qwen3OmniMoeConfig.from_pretrained(context.model_path)
        config = whole.thinker_config
        features = Features(processor)
        self._chat = ChatTokenizer(processor)
        self._limit = TokenLimit(options.max_prompt_tokens or config.text_config.max_position_embeddings)
        self._reader = ReadingProcess(MediaReader(features, options, self._limit), options.reading_seconds)
        self._position_ids_per_second: float = config.position_id_per_seconds
        self._roles = Roles.of(whole) if "talker_ar" in context.stages else None
        self._queue: deque[tuple[str, ChatRequest]] = deque()
        self._refused = 0
        self.batch: tuple[str, ...] = ()

    @property
    def has_work(self) -> bool:
        return bool(self._queue)

    def receive(self, message: Work) -> None:
        self._queue.append((message.request_id, message.body))

    def step(self) -> Iterable[Work | Failed]:
        """Prepare the oldest request."""
        request_id, request = self._queue.popleft()
        self.batch = (request_id,)
        try:
            return list(self._prepare(request_id, request))
        except OmniError as error:
            self._refused += 1
            return [Failed(request_id, self.name, structs.replace(error.info, stage=self.name))]

    def abort(self, request_id: str) -> None:
        self._queue = deque(entry for entry in self._queue if entry[0] != request_id)

    def live(self) -> Collection[str]:
        return [request_id for request_id, _ in self._queue]

    def stats(self) -> dict[str, float]:
        return {"queued_requests": len(self._queue), "refused": self._refused}

    def close(self) -> None:
        self._reader.close()

    def _prepare(self, request_id: str, request: ChatRequest) -> Iterator[Work]:
        skeleton = self._chat.skeleton(request.turns, request.media)
        self._limit.check(len(skeleton))
        parts = [part for turn in request.turns for part in turn.content]
        placed = [request.media[part.index] for part in parts if isinstance(part, MediaRef)]
        media = self._reader.read(placed, request.video, len(skeleton) - len(placed))
        layout = lay_out(skeleton, media.rows, self._chat.tokens, MERGE_IDS_PER_SECOND)
        self._limit.check(len(layout.ids))
        if media.pictures or media.clips:
            yield Start(request_id, self.name, "image_encoder", VisionWork(media.pictures + media.clips))
        if media.sounds.items:
            yield Start(request_id, self.name, "audio_encoder", media.sounds)
        yield Start(request_id, self.name, "mm_aggregate", self._prompt(layout, media, request))

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
