"""The stage talker_ar: turns the text of an answer, while it is generated, into codec frames. Its engine is SGLang.

Two stages make the frames of an utterance in turn. This stage's engine picks codebook 0 of a frame. The code predictor
fills in the other codebooks and returns the frame's summed embedding. This embedding plus the next row of text is the
engine's next input. If an utterance's text or frame is late, only this utterance waits. An utterance may also wait
while its listener has enough unplayed speech and another listener does not have enough; see `voice_order`.

A text that is read aloud comes in passages. Here, each passage is generated as a separate utterance. The code predictor
and the vocoder get the frames of all passages as one utterance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import msgspec
import torch

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Advice, Chunk, End, Failed, Paused, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import read_config
from stages.messages import (
    Finished,
    FinishReason,
    FrameFeedback,
    FrameSeed,
    Passage,
    Playing,
    PredictorStart,
    SpeechFinished,
    TalkerPrompt,
    TextPace,
    Tokens,
)
from stages.options import TalkerOptions
from stages.sglang_engine.checkpoint_view import talker_view
from stages.sglang_engine.engine import Broken, Done, Event, Generation, Token
from stages.sglang_engine.fed_engine import FedEngine
from stages.sglang_engine.prompt_rows import PromptRows
from stages.talker_ar.cache_ids import prompt_cache_ids
from stages.talker_ar.reading import Reading
from stages.talker_ar.rows import PromptInput, TalkerRows
from stages.talker_ar.text_pace import TextOrder
from stages.talker_ar.voice_order import PRESSING_SECONDS, VoiceOrder

ARCHITECTURE = "Qwen3OmniTalker"
PREDICTOR = "code_predictor"
THINKER = "thinker"
ENTRY = "preprocessing"

# Number of control codes. They are the last ids of the vocabulary. The engine is allowed to pick only one control code:
# the code that ends an utterance.
CONTROL_CODES = 1024

# Maximum number of consecutive steps for urgent utterances while new prompts wait.
URGENT_STEPS = 3


@dataclass(slots=True)
class _Utterance:
    """The state of one spoken answer while it is generated.

    Attributes:
        prompt: The message of the thinker, or of preprocessing if a text is read aloud.
        reading: The rest of a text that is read aloud; None if the thinker writes the text.
        first: Input row of the first generated text token; None until the token has arrived.
        first_id: The id of this token.
        text: Rows of the later text tokens that have arrived.
        ended: Whether the text is complete.
        begun: Whether the engine has the prompt.
        frames: Number of frames whose text row has been used.
        feedback: Summed embedding of the latest frame. It is kept until two conditions are true: the row of text for
            the same input has arrived, and the next frame is due. Then the engine gets the embedding.

    If a text is read aloud, `first`, `first_id`, `text`, `ended`, `begun` and `frames` describe the current passage.
    """

    prompt: TalkerPrompt
    reading: Reading | None = None
    first: torch.Tensor | None = None
    first_id: int = 0
    text: list[torch.Tensor] = field(default_factory=list)
    ended: bool = False
    begun: bool = False
    frames: int = 0
    feedback: torch.Tensor | None = None


class Talker:
    """Speaks all requests in one continuous batch; see `contract.stage.Stage` for the methods."""

    def __init__(self, context: StageContext) -> None:
        options: TalkerOptions = context.options
        config = read_config(context.model_path)
        talker = config["talker_config"]
        self.name = context.name
        self._default_max_tokens = options.default_max_tokens
        self._voices: dict[str, _Utterance] = {}
        self._outbox: list[Work | Paused | Advice[TextPace]] = []
        self._out: set[str] = set()  # utterances whose latest frame is at the code predictor
        # the row of text for each utterance whose next frame can be made
        self._makeable: dict[str, torch.Tensor] = {}
        self._order = VoiceOrder(just_in_time=options.just_in_time)
        self._behind: set[int] = set()  # the replicas of the vocoder that are behind
        self._text_order = TextOrder()
        self._urgent_steps = 0
        self.batch: list[str] = []
        self._engine = FedEngine(
            model_path=talker_view(context.model_path, context.scratch),
            architecture=ARCHITECTURE,
            device=context.device,
            dtype=options.dtype,
            eos_ids=[talker["codec_eos_token_id"]],
            max_total_tokens=options.max_total_tokens,
            max_running_requests=options.max_running_requests,
            static_bytes=context.static,
            # On a CPU, a batch of prompts is not faster than single prompts, and would delay the frames of other
            # utterances.
            options={**({"prefill_max_requests": 1} if context.device == "cpu" else {}), **options.engine},
        )
        self._rows = TalkerRows(self._engine, config, context.model_path)
        vocabulary = talker["text_config"]["vocab_size"]
        self._end = int(talker["codec_eos_token_id"])
        self._suppressed = torch.zeros(vocabulary, dtype=torch.bool, device=context.device)
        self._suppressed[vocabulary - CONTROL_CODES :] = True
        self._endless = self._suppressed.clone()
        self._suppressed[self._end] = False

    @property
    def has_work(self) -> bool:
        """Whether a step is worthwhile now.

        While most frames are at the code predictor, the frames that have returned wait for the other frames, which will
        certainly return too. This saves steps, because a step takes about the same time for one utterance as for many.
        As a result, the utterances form two groups: while the engine works for one group, the predictor works for the
        other.
        """
        if self._outbox:
            return True
        if self._makeable:
            self._feed()
        enough = self._engine.ready >= len(self._out)
        return self._engine.has_work and (enough or self._engine.must_step)

    @property
    def urgent(self) -> bool:
        """Whether a listener needs the next frame before the thinker's next step. False if an utterance is short of
        speech because its text has not been written. Such an utterance needs the thinker's step first.
        """
        lacking = (
            request_id
            for request_id, voice in self._voices.items()
            if voice.feedback is not None and request_id not in self._makeable
        )
        makeable = [*self._makeable, *self._engine.fed]
        now = time.monotonic()
        return self._order.urgent(makeable, now, least=PRESSING_SECONDS) and not self._order.urgent(
            lacking, now, least=PRESSING_SECONDS
        )

    @property
    def wakes_at(self) -> float | None:
        return self._order.wakes_at(self._makeable, time.monotonic())

    def advise(self, advice: Advice[Playing]) -> None:
        (self._behind.add if advice.body.behind else self._behind.discard)(advice.replica)
        self._order.behind = bool(self._behind)
        for request_id, since in advice.body.since.items():
            self._order.play_since(request_id, since)

    def receive(self, message: Work) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, TalkerPrompt):
            reading = Reading(body) if message.source == ENTRY else None
            self._voices[request_id] = _Utterance(body, reading)
            self._order.begin(request_id, streamed=body.speech.streamed)
            return
        voice = self._voices.get(request_id)
        if voice is None:  # the utterance ended while this message was on its way
            return
        if isinstance(body, Tokens):
            rows = list(self._rows.text(torch.tensor(body.ids)))
            if voice.first is None:
                voice.first, voice.first_id = rows.pop(0), body.ids[0]
            voice.text += rows
        elif isinstance(body, Finished):
            voice.ended = True
        elif isinstance(body, Passage):
            assert voice.reading is not None
            voice.reading.take(body.ids, last=isinstance(message, End))
            self._read_on(request_id, voice)
        elif isinstance(body, FrameFeedback):
            voice.feedback = body.embedding.torch()
            self._out.discard(request_id)
        else:
            raise TypeError(f"talker_ar does not accept messages of the type {type(body).__name__}")
        self._advance(request_id, voice)

    def grant(self, request_id: str) -> None:
        """Continue with the next passage of a text that is read aloud."""
        voice = self._voices.get(request_id)
        if voice is not None and voice.reading is not None:
            voice.reading.paused = False
            self._read_on(request_id, voice)
            self._advance(request_id, voice)

    def step(self) -> Iterable[Work | Failed | Paused | Advice[TextPace]]:
        self.batch = []
        if self._outbox:
            # These messages are sent before the engine's step. So the vocoder is informed of a new utterance while the
            # utterance's prompt is computed. The vocoder can then let utterances with ample speech wait.
            outbox, self._outbox = self._outbox, []
            yield from outbox
            return
        seeds: dict[str, FrameSeed] = {}
        if self._engine.has_work:
            events = self._engine.step(decode_first=self._decodes_first())
            self.batch = self._engine.batch
            for event in events:
                yield from self._tell(event, seeds)
        self._out.update(seeds)
        for request_id, seed in seeds.items():
            yield Chunk(request_id, self.name, PREDICTOR, seed)
        yield from self._pace_text()

    def abort(self, request_id: str) -> None:
        self._drop(request_id)
        self._out.discard(request_id)
        self._engine.abort(request_id)
        self._outbox = [
            message for message in self._outbox if isinstance(message, Advice) or message.request_id != request_id
        ]

    def live(self) -> Collection[str]:
        return self._voices.keys()

    def stats(self) -> dict[str, float]:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()

    def _advance(self, request_id: str, voice: _Utterance) -> None:
        """Begin, feed or finish an utterance if the necessary data has arrived."""
        if not voice.begun:
            if voice.first is not None:
                self._begin(request_id, voice, voice.first)
            elif voice.ended:  # an answer without words is silent
                self._begin_stream(request_id, voice)
                self._finish(request_id, "stop")
        elif voice.feedback is not None:
            text = self._next_text(voice)
            if text is not None:
                self._makeable[request_id] = text

    def _feed(self) -> None:
        """Send the engine the inputs of the frames to make in this step."""
        going = self._order.next_step(self._makeable, time.monotonic(), running=self._engine.ready > 0)
        for request_id in going:
            voice = self._voices[request_id]
            assert voice.feedback is not None
            self._engine.feed(request_id, voice.feedback, self._makeable.pop(request_id))
            voice.feedback = None
            voice.frames += 1
            self._order.make_frame(request_id)

    def _decodes_first(self) -> bool:
        """Whether the next step is for utterances that have begun already, even if new prompts wait."""
        urgent = (
            self._engine.must_step
            and self._urgent_steps < URGENT_STEPS
            and self._order.urgent(self._engine.fed, time.monotonic())
        )
        self._urgent_steps = self._urgent_steps + 1 if urgent else 0
        return urgent

    def _pace_text(self) -> Iterable[Advice[TextPace]]:
        ahead = {
            request_id: len(voice.text) - voice.frames
            for request_id, voice in self._voices.items()
            if voice.reading is None and not voice.ended
        }
        pace = self._text_order.pace(ahead, pressed=self._order.sufficient_lead(time.monotonic()) < math.inf)
        if pace is not None:
            yield Advice(self.name, THINKER, pace)

    def _drop(self, request_id: str) -> None:
        self._voices.pop(request_id, None)
        self._makeable.pop(request_id, None)
        self._order.forget(request_id)

    def _next_text(self, voice: _Utterance) -> torch.Tensor | None:
        """The row of text for the next frame. None while it is not known."""
        if voice.frames < len(voice.text):
            return voice.text[voice.frames]
        if not voice.ended:
            return None
        return self._rows.text_end if voice.frames == len(voice.text) else self._rows.silence

    def _begin(self, request_id: str, voice: _Utterance, first: torch.Tensor) -> None:
        prompt = voice.prompt
        rows = PromptInput(self._rows, prompt, first)
        sampling = prompt.speech.talker
        limit = sampling.max_tokens if voice.reading is None else voice.reading.tokens_left
        sampling = msgspec.structs.replace(sampling, max_tokens=limit or self._default_max_tokens)
        self._engine.add(
            Generation(
                request_id=request_id,
                cache_ids=prompt_cache_ids(prompt, speaker=self._rows.speaker(prompt), first=voice.first_id),
                rows=PromptRows(
                    ids=torch.zeros(len(rows), dtype=torch.int64),
                    positions=None if prompt.positions is None else prompt.positions.torch(),
                    delta=prompt.position_delta,
                    make=rows.make,
                ),
                sampling=sampling,
                penalize_prompt=False,
                suppressed=self._endless if sampling.ignore_eos else self._suppressed,
            )
        )
        voice.begun = True
        self._order.make_frame(request_id)
        if voice.reading is None or voice.reading.passages == 1:
            self._begin_stream(request_id, voice)

    def _begin_stream(self, request_id: str, voice: _Utterance) -> None:
        speech = voice.prompt.speech
        started = PredictorStart(speech.predictor, streamed=speech.streamed)
        self._outbox.append(Start(request_id, self.name, PREDICTOR, started))

    def _finish(self, request_id: str, reason: FinishReason) -> None:
        voice = self._voices[request_id]
        if not voice.ended:
            self._outbox.append(Advice(self.name, THINKER, TextPace([], [request_id])))
        self._drop(request_id)
        read = 0 if voice.reading is None else voice.reading.tokens
        self._outbox.append(End(request_id, self.name, PREDICTOR, SpeechFinished(reason, read)))

    def _end_generation(self, request_id: str, reason: FinishReason) -> None:
        """End an utterance, or continue with the next passage of a text that is read aloud."""
        voice = self._voices[request_id]
        reading = voice.reading
        if reading is None or reading.end_passage(voice.frames):
            self._finish(request_id, reason)
            return
        if reading.exhausted:
            self._finish(request_id, "length")
            return
        self._order.pause(request_id)
        self._voices[request_id] = _Utterance(voice.prompt, reading)
        self._outbox.append(Paused(request_id, self.name))

    def _read_on(self, request_id: str, voice: _Utterance) -> None:
        """Begin the next passage of a text that is read aloud, if it has arrived and does not have to wait."""
        assert voice.reading is not None
        if not voice.ended and (ids := voice.reading.next_passage()):
            voice.first, *voice.text = self._rows.text(torch.tensor(ids))
            voice.first_id = ids[0]
            voice.ended = True

    def _tell(self, event: Event, seeds: dict[str, FrameSeed]) -> Iterable[Work | Failed]:
        """The messages for one event of the engine. A token is first stored in `seeds`, because it may be the token
        that ends the utterance. The token that ends the utterance is not a frame: the event `Done` follows this token,
        and removes it from `seeds`.
        """
        request_id = event.request_id
        if isinstance(event, Token):
            assert event.state is not None
            seeds[request_id] = FrameSeed(Tensor.of(event.state), event.id)
        elif isinstance(event, Done):
            seeds.pop(request_id, None)
            self._end_generation(request_id, event.reason)
        elif isinstance(event, Broken):
            seeds.pop(request_id, None)
            self._drop(request_id)
            yield Failed(request_id, self.name, event.error)
