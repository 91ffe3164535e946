"""The stage `preprocessing` turns text and undecoded media into the inputs of the model's parts.

A request passes through the four phases below. Each phase may refuse the request. Reader processes do all work that
takes long or touches untrusted bytes. So a step never waits, and one request can overtake another.

If the answer must follow a grammar that the stage has not seen recently, a reader compiles the grammar first. The stage
itself does not compile the grammar, because this may take long or crash the process. The thinker compiles the grammar
too, but it receives only grammars that a reader has compiled without a problem.

1. `TEXT`: The text's size is compared with the token limit. The stage itself tokenises a short text, and a reader
   tokenises a long text. A request without media is complete.
2. `SURVEY`: A reader finds the sizes of the media from their headers (`survey.MediumSurvey`). Text and media together
   are compared with the token limit.
3. `GRANT`: The sizes are known, and nothing has been decoded yet. The stage claims the memory that the media will need,
   and waits until the main process grants the claim.
4. `READ`: A reader decodes the media. If the media are larger than their headers state, the decoded media are dropped,
   and the request goes back to `GRANT` with the true size.

A text to read aloud has no phases: each step tokenises one passage of the text, and sends the passage to the talker.
"""

from __future__ import annotations

import enum
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy
from msgspec import Struct, structs
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeProcessor

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request, internal
from omni_pipeline.logs import fields
from omni_pipeline.wire.messages import Claim, End, Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.model_config import read
from stages.checkpoint.weights import read_config
from stages.grammars.vocabulary import Vocabulary
from stages.messages import (
    AudioItem,
    AudioWork,
    CallParsing,
    ChatRequest,
    EntryRequest,
    Grammar,
    Media,
    MediaRef,
    MediaSpan,
    Modality,
    PieceRequest,
    Prompt,
    ReasoningForm,
    Recording,
    SpeechOptions,
    SpeechRequest,
    SpokenPrompt,
    TextOutput,
    VisionItem,
    VisionWork,
    sender_of,
)
from stages.options import PreprocessingOptions
from stages.preprocessing.call_format import CallFormat
from stages.preprocessing.conversation import ChatTokenizer
from stages.preprocessing.decoded_size import ByteSizes, DecodedBytes, DecodedMedia, size_in_headers, size_of
from stages.preprocessing.features import CHUNK_FRAMES, DEFAULTS, Features
from stages.preprocessing.layout import PromptLayout, lay_out
from stages.preprocessing.media import MediaReader, ReadMedia
from stages.preprocessing.positions import mrope_positions
from stages.preprocessing.readers.pool import ReaderPool, reader_count
from stages.preprocessing.readers.process import (
    COMPILING_SECONDS,
    Answer,
    Check,
    Checked,
    CutSound,
    Question,
    Read,
    ReaderWork,
    Survey,
    Surveys,
    Tokenise,
    Tokens,
)
from stages.preprocessing.reading import ReadingTokenizer
from stages.preprocessing.reasoning_form import find_reasoning_marks
from stages.preprocessing.recordings import Recordings, SoundRates
from stages.preprocessing.sound_windows import SoundWindows
from stages.preprocessing.spoken import Roles, spoken_prompt
from stages.preprocessing.survey import MediumSurvey, reading_seconds, survey_seconds
from stages.preprocessing.token_limit import TextLimit, TokenLimit
from stages.preprocessing.tool_grammar import grammar_with_tools
from stages.queue_order import TurnOrder

# Time scale with which the reference's processor merges a clip's frames with its sound. The time scale for positions is
# a different setting of the model (see `_position_ids_per_second`), and may have another value.
MERGE_IDS_PER_SECOND: float = DEFAULTS["videos_kwargs"]["position_id_per_seconds"]


# Largest conversation, in bytes, that this process tokenises itself; this takes 20 to 40 ms. Larger conversations are
# tokenised by a reader process.
SHORT_TEXT_BYTES = 16 * 1024

# Number of bytes that are counted for each turn and each part in addition to its text, because rendering takes time.
_PART_BYTES = 64

# The stage remembers this number of grammars that have been compiled.
_CHECKED_GRAMMARS = 256

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
        claimed: The memory that has been claimed for the media. For a piece of a recording, the recording has claimed
            it.
        is_piece: Whether the request is for a piece of a recording.
    """

    request: ChatRequest
    placed: list[Media]
    phase: Phase = Phase.TEXT
    skeleton: list[int] = []
    surveys: list[MediumSurvey] = []
    claimed: DecodedBytes = DecodedBytes()
    is_piece: bool = False

    @property
    def text_tokens(self) -> int:
        """Number of prompt tokens besides the media."""
        return len(self.skeleton) - len(self.placed)


class Preprocessing:
    """For a `ChatRequest`, the stage sends `Prompt`. It also sends `VisionWork` if there are pictures or clips, and
    `AudioWork` if there are sounds. For a `SpeechRequest`, the stage sends `TalkerPrompt` and then each `Passage`.

    When the stage receives a `Recording`, it answers the main process with `RecordingCut`, and keeps the recording.
    After that, the stage receives each `PieceRequest` of this recording. It treats the `PieceRequest` as a chat request
    whose sound is the piece.
    """

    def __init__(self, context: StageContext) -> None:
        self.name = context.name
        options: PreprocessingOptions = context.options
        processor = Qwen3OmniMoeProcessor.from_pretrained(context.model_path)
        whole = Qwen3OmniMoeConfig.from_pretrained(context.model_path)
        config = whole.thinker_config
        self._limit = TokenLimit(options.max_prompt_tokens or config.text_config.max_position_embeddings)
        self._text_limit = TextLimit.of(self._limit, processor.tokenizer.backend_tokenizer)
        self._chat = ChatTokenizer(processor, self._text_limit, options.tool_call_parser)
        model = read(read_config(context.model_path))
        self._reasoning = find_reasoning_marks(
            processor.tokenizer, processor.chat_template, options.reasoning_parser, speaks=model.speaks
        )
        features = Features(processor, options.max_resized_pixels)
        self._merge, self._mel_rate = features.merge, features.mel_rate
        self._sizes = ByteSizes.of(model)
        self._windows = SoundWindows(config.audio_config.n_window_infer)
        vocabulary = Vocabulary.of(processor.tokenizer, config.text_config.vocab_size, whole.im_end_token_id)
        work = ReaderWork(self._chat, MediaReader(features, options, self._limit), vocabulary)
        self._readers = ReaderPool(work, reader_count(options.readers), options.reading_seconds)
        rates = SoundRates(features.rate, features.mel_rate)
        self._recordings = Recordings(
            self.name, self._readers, options, self._sizes, rates, most_rows=self._limit.tokens
        )
        self._position_ids_per_second: float = config.position_id_per_seconds
        self._roles = Roles.of(whole) if "talker_ar" in context.stages else None
        self._reading = ReadingTokenizer(self.name, self._chat, self._roles)
        # for each text that is read aloud: its messages, and its sender
        self._texts: dict[str, tuple[Iterator[Work], int]] = {}
        self._text_turns = TurnOrder()
        self._preparing: dict[str, Preparation] = {}
        self._checked: OrderedDict[Grammar, None] = OrderedDict()  # grammars that have been compiled
        self._fresh: dict[str, int] = {}  # for each new request: its sender
        self._fresh_turns = TurnOrder()
        self._claims: list[Claim] = []
        self._granted: deque[str] = deque()
        self._refused = 0
        self.batch: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._fresh or self._granted or self._texts) or self._readers.has_news

    @property
    def waits_on(self) -> int:
        return self._readers.waits_on

    def receive(self, message: Work) -> None:
        body: EntryRequest = message.body
        match body:
            case SpeechRequest():
                self._texts[message.request_id] = self._reading.messages(message.request_id, body), sender_of(body)
                return
            case Recording():
                self._recordings.add(message.request_id, body)
            case PieceRequest():
                request, claimed = self._recordings.piece(body)
                self._preparing[message.request_id] = Preparation(
                    request, request.media, claimed=claimed, is_piece=True
                )
            case ChatRequest():
                parts = [part for turn in body.turns for part in turn.content]
                placed = [body.media[part.index] for part in parts if isinstance(part, MediaRef)]
                self._preparing[message.request_id] = Preparation(body, placed)
        self._fresh[message.request_id] = sender_of(body)

    def grant(self, request_id: str) -> None:
        """Let the next step send a request's media to a reader, because the request's memory has been granted."""
        if request_id in self._preparing or request_id in self._recordings:
            self._granted.append(request_id)

    def step(self) -> Iterable[Work | Failed | Claim]:
        """Process the readers' results, and begin one new request. Then tokenise the next passage of a text to read
        aloud, and send readers their next jobs. Clients take turns.
        """
        self.batch = []
        messages: list[Work | Failed | Claim] = []
        for done in self._readers.collect():
            messages += self._advance(done.request_id, done.result)
        if self._fresh:
            request_id = _next_in_turn(self._fresh, self._fresh_turns)
            del self._fresh[request_id]
            messages += self._advance(request_id, None)
        if self._texts:
            senders = {request_id: sender for request_id, (_, sender) in self._texts.items()}
            messages += self._read_on(_next_in_turn(senders, self._text_turns))
        while self._granted:
            self._read(self._granted.popleft())
        self._readers.dispatch()
        claims, self._claims = self._claims + self._recordings.claims, []
        self._recordings.claims = []
        return messages + claims

    def abort(self, request_id: str) -> None:
        self._texts.pop(request_id, None)
        kept = self._recordings.drop(request_id)
        if self._preparing.pop(request_id, None) is not None or kept:
            self._fresh.pop(request_id, None)
            self._granted = deque(granted for granted in self._granted if granted != request_id)
            self._readers.cancel(request_id)

    def live(self) -> Collection[str]:
        return {*self._preparing, *self._recordings.ids, *self._texts}

    def stats(self) -> dict[str, float]:
        return {
            "queued_requests": len(self._fresh) + len(self._texts) + self._readers.queued,
            "refused": self._refused,
            "recordings": len(self._recordings.ids),
            "recording_seconds": self._recordings.seconds,
            "readers": self._readers.count,
            "readers_busy": self._readers.busy,
            "readers_replaced": self._readers.restarted,
            "cancelled_readings": self._readers.cancelled,
            "demoted_readings": self._readers.demoted,
            "displaced_readings": self._readers.displaced,
        }

    def close(self) -> None:
        self._readers.close()

    # --- phases ---

    def _advance(self, request_id: str, result: Answer | ErrorInfo | None) -> list[Work | Failed]:
        """Move a request to its next phase. Returns the request's messages if the request is complete or refused.

        Args:
            result: The answer or error from a reader; None for a new request.
        """
        preparation = self._preparing.get(request_id)

        def advanced() -> Sequence[Work]:
            if isinstance(result, ErrorInfo):
                raise OmniError(result)
            if preparation is None:
                return self._recordings.advance(request_id, result)
            return list(self._next_phase(request_id, preparation, result))

        messages = self._attempt(request_id, advanced)
        if preparation is None:
            if any(isinstance(message, Failed) for message in messages):
                self._recordings.drop(request_id)
            return messages
        if preparation.is_piece:
            messages = [_about_prompt(message) for message in messages]
        if messages:
            del self._preparing[request_id]
        return messages

    def _read_on(self, request_id: str) -> list[Work | Failed]:
        """The next message of a text that is read aloud. Also queues the text behind its client's other texts."""
        text, sender = self._texts.pop(request_id)
        messages = self._attempt(request_id, lambda: [next(text)])
        if not isinstance(messages[0], End | Failed):
            self._texts[request_id] = text, sender
        return messages

    def _attempt(self, request_id: str, work: Callable[[], Sequence[Work]]) -> list[Work | Failed]:
        """The result of `work`, or the failure of the request."""
        self.batch.append(request_id)
        try:
            return [*work()]
        except OmniError as error:
            self._refused += 1
            return [Failed(request_id, self.name, structs.replace(error.info, stage=self.name))]
        except Exception:
            logger.exception("a request could not be prepared", extra=fields(answer_id=request_id))
            return [Failed(request_id, self.name, internal(f"The {self.name} stage failed unexpectedly.").info)]

    def _next_phase(self, request_id: str, preparation: Preparation, result: Answer | None) -> Iterable[Work]:
        match result:
            case None:
                preparation.request = with_tools(preparation.request, self._chat.call_format)
                return self._take_grammar(request_id, preparation)
            case Checked():
                self._remember(preparation.request.thinker.grammar)
                return self._take_text(request_id, preparation)
            case Tokens():
                return self._take_ids(request_id, preparation, result.ids.numpy().tolist())
            case Surveys():
                return self._take_surveys(request_id, preparation, result.items)
            case ReadMedia():
                return self._take_media(request_id, preparation, result)
            case CutSound():
                raise internal("A chat request was treated as a recording.")

    def _take_grammar(self, request_id: str, preparation: Preparation) -> Iterable[Work]:
        grammar = preparation.request.thinker.grammar
        if grammar is None or grammar in self._checked:
            self._remember(grammar)
            return self._take_text(request_id, preparation)
        self._submit(request_id, preparation, Check(grammar), COMPILING_SECONDS)
        return ()

    def _remember(self, grammar: Grammar | None) -> None:
        """Note that a grammar has been compiled."""
        if grammar is not None:
            self._checked[grammar] = None
            self._checked.move_to_end(grammar)
            if len(self._checked) > _CHECKED_GRAMMARS:
                self._checked.popitem(last=False)

    def _take_text(self, request_id: str, preparation: Preparation) -> Iterable[Work]:
        request = preparation.request
        if request.thinker.thinking_budget is not None and self._reasoning is None:
            raise bad_request(
                "'thinking_token_budget' is not supported: this model does not reason, or the server's setting "
                "'reasoning_parser' is 'none'.",
                param="thinking_token_budget",
                code="unsupported_parameter",
            )
        tools = request.tools.tools if request.tools else []
        parts = sum(1 + len(turn.content) + len(turn.calls) for turn in request.turns)
        size = self._text_limit.check(request.turns, tools) + parts * _PART_BYTES
        if size <= SHORT_TEXT_BYTES:
            ids = self._chat.skeleton(request.turns, request.media, request.thinking, tools)
            return self._take_ids(request_id, preparation, ids)
        media = [Media(medium.kind, Tensor.of(b""), medium.param) for medium in request.media]
        question = Tokenise(request.turns, media, request.thinking, tools)
        self._submit(request_id, preparation, question, size * _SECONDS_PER_BYTE)
        return ()

    def _take_ids(self, request_id: str, preparation: Preparation, skeleton: list[int]) -> Iterable[Work]:
        self._limit.check(len(skeleton))
        preparation.skeleton = skeleton
        if not preparation.placed:
            return self._complete(request_id, preparation, ReadMedia([], [], AudioWork([], CHUNK_FRAMES), []))
        preparation.phase = Phase.SURVEY
        question = Survey(preparation.placed, preparation.request.video, preparation.text_tokens)
        self._submit(request_id, preparation, question, survey_seconds(preparation.placed))
        return ()

    def _take_surveys(self, request_id: str, preparation: Preparation, surveys: list[MediumSurvey]) -> Iterable[Work]:
        self._limit.check(preparation.text_tokens + sum(survey.least_rows for survey in surveys))
        preparation.surveys = surveys
        size = size_in_headers(surveys, self._mel_rate, self._limit.tokens)
        self._claim(request_id, preparation, self._missing(preparation, size))
        return ()

    def _missing(self, preparation: Preparation, size: DecodedMedia) -> DecodedBytes:
        """The memory that the request must still claim for media of this size."""
        spoken = preparation.request.speech is not None
        return self._sizes.bytes_of(size, spoken=spoken).beyond(preparation.claimed)

    def _claim(self, request_id: str, preparation: Preparation, missing: DecodedBytes) -> None:
        """Claim memory. Nothing is claimed for media whose headers cannot be read. Most of these media will be
        refused.
        """
        preparation.phase = Phase.GRANT
        if not missing.passing + missing.lasting:
            self._granted.append(request_id)
            return
        preparation.claimed = preparation.claimed.plus(missing)
        self._claims.append(Claim(request_id, self.name, missing.passing, missing.lasting))

    def _read(self, request_id: str) -> None:
        """Let a reader decode a request's media."""
        if request_id in self._recordings:
            self._recordings.read(request_id)
            return
        preparation = self._preparing[request_id]
        preparation.phase = Phase.READ
        question = Read(preparation.placed, preparation.request.video, preparation.text_tokens, preparation.surveys)
        self._submit(request_id, preparation, question, reading_seconds(preparation.surveys))

    def _submit(self, request_id: str, preparation: Preparation, question: Question, seconds: float) -> None:
        self._readers.submit(request_id, question, seconds, sender_of(preparation.request))

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
        sender = sender_of(preparation.request)
        if media.pictures or media.clips:
            vision = VisionWork(media.pictures + media.clips, sender)
            yield Start(request_id, self.name, "image_encoder", vision)
        windows = [window for item in media.sounds.items for window in self._windows.of(item, media.sounds.pad_frames)]
        if windows:
            yield Start(request_id, self.name, "audio_encoder", AudioWork(windows, media.sounds.pad_frames, sender))
        prompt = self._prompt(layout, media, windows, preparation.request)
        yield Start(request_id, self.name, "mm_aggregate", prompt)

    def _prompt(
        self, layout: PromptLayout, media: ReadMedia, windows: Sequence[AudioItem], request: ChatRequest
    ) -> Prompt:
        positions, delta = mrope_positions(layout.gaps, media.rows, self._position_ids_per_second)
        kinds = [medium.kind for medium in media.rows]
        seen = list(zip(kinds, layout.visual_rows, strict=True))
        pictures = [rows for kind, rows in seen if kind == "image"]
        clips = [rows for kind, rows in seen if kind == "video"]
        heard = [part for rows in layout.audio_rows if len(rows) for part in self._windows.rows_of(rows)]
        reasoning = None if self._reasoning is None else self._reasoning.after(layout.ids)
        return Prompt(
            ids=Tensor.of(layout.ids),
            positions=None if positions is None else Tensor.of(positions),
            position_delta=delta,
            vision=_spans("image", media.pictures, pictures) + _spans("video", media.clips, clips),
            audio=_spans("audio", windows, heard),
            thinker=structs.replace(request.thinker, reasoning=reasoning),
            text=_with_reasoning(request.text, reasoning),
            spoken=self._spoken(layout, media, request.speech),
        )

    def _spoken(self, layout: PromptLayout, media: ReadMedia, speech: SpeechOptions | None) -> SpokenPrompt | None:
        if speech is None:
            return None
        if self._roles is None:
            raise internal("Speech was requested from a pipeline without a talker.")
        return spoken_prompt(layout, media.rows, self._roles, speech)


def _next_in_turn(waiting: Mapping[str, int], turns: TurnOrder) -> str:
    """The request that is served next. `waiting` has the sender of each waiting request, in the order of arrival."""
    index = turns.order(list(waiting.values()))[0]
    request_id = list(waiting)[index]
    turns.serve(waiting[request_id])
    return request_id


def _about_prompt(message: Work | Failed) -> Work | Failed:
    """If an error refers to the request field `messages`, changes the field to `prompt`. In a request for a piece,
    `prompt` is the only text that the client has written.
    """
    if isinstance(message, Failed) and message.error.param == "messages":
        return structs.replace(message, error=structs.replace(message.error, param="prompt"))
    return message


def _with_reasoning(text: TextOutput, reasoning: ReasoningForm | None) -> TextOutput:
    """The options, completed with the markers of the reasoning. A tool call can end the reasoning only if the text is
    searched for calls.
    """
    if reasoning is not None and text.calls is None:
        reasoning = structs.replace(reasoning, interrupting="")
    return structs.replace(text, reasoning=reasoning)


def with_tools(request: ChatRequest, form: CallFormat | None) -> ChatRequest:
    """The request, completed with the data that later stages need for its tools. Raises OmniError like
    `grammar_with_tools`.
    """
    if request.tools is None or form is None:
        return request
    use, thinker = request.tools, request.thinker
    return structs.replace(
        request,
        thinker=structs.replace(thinker, grammar=grammar_with_tools(use, form, thinker.grammar)),
        text=structs.replace(request.text, calls=CallParsing(form.parser, use.callable, use.parallel)),
    )


def _spans(
    kind: Modality, items: Sequence[VisionItem] | Sequence[AudioItem], rows: Sequence[numpy.ndarray]
) -> list[MediaSpan]:
    keys = [item.key for item in items]
    return [MediaSpan(kind, key, Tensor.of(own)) for key, own in zip(keys, rows, strict=True)]
