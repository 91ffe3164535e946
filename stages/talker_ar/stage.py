"""The talker stage: turns the text, as it is being written, into codec frames, on SGLang.

Each utterance goes round a ring. The engine picks codebook 0 of a frame. The code predictor fills in the other
codebooks and returns the frame's summed embedding. This embedding plus the next row of text is the engine's next input.
If an utterance's text or frame is late, only this utterance waits. An utterance whose listener has enough to hear may
wait too, while others have not; see `voice_order`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import unavailable
from omni_pipeline.wire.messages import Advice, Chunk, End, Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import read_config, read_tensors
from stages.messages import (
    Finished,
    FinishReason,
    FrameFeedback,
    FrameSeed,
    Playing,
    PredictorStart,
    SpeechFinished,
    TalkerPrompt,
    TextPace,
    Tokens,
)
from stages.options import TalkerOptions
from stages.sglang_engine.checkpoint_view import talker_view
from stages.sglang_engine.engine import Broken, Done, Engine, Event, Generation, Token
from stages.sglang_engine.fed_engine import FedEngine
from stages.sglang_engine.prompt_rows import PromptRows
from stages.talker_ar.text_pace import TextOrder
from stages.talker_ar.voice_order import VoiceOrder

ARCHITECTURE = "Qwen3OmniTalker"
PREDICTOR = "code_predictor"
THINKER = "thinker"

# Number of control codes, which are the last ids of the vocabulary. The only control code that the engine may pick is
# the code that ends an utterance.
CONTROL_CODES = 1024

# Maximum number of steps in a row that are made for urgent utterances while new prompts wait.
URGENT_STEPS = 3


@dataclass(slots=True)
class _Utterance:
    """The state of one answer while it is spoken.

    Attributes:
        prompt: The thinker's message.
        first: Row of the first generated text token, once it is known.
        text: Rows of the later text tokens, as far as these tokens have arrived.
        ended: Whether the text is complete.
        begun: Whether the engine has the prompt.
        frames: Number of frames whose text row has been used.
        feedback: Summed embedding of the latest frame, kept until the row of text for the same input has arrived and
            the frame is to be made.
    """

    prompt: TalkerPrompt
    first: torch.Tensor | None = None
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
        self._outbox: list[Work | Advice[TextPace]] = []
        self._out: set[str] = set()  # utterances whose frame is at the predictor
        # for each utterance whose next frame can be made: its row of text
        self._makeable: dict[str, torch.Tensor] = {}
        self._order = VoiceOrder(just_in_time=options.just_in_time)
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
            # Prompts with equal ids may have different rows, so two prompts cannot share cached keys and values. On a
            # CPU a batch of prompts is not faster than single prompts, and would delay the frames of others.
            options={
                "disable_radix_cache": True,
                **({"prefill_max_requests": 1} if context.device == "cpu" else {}),
                **options.engine,
            },
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

        While most frames are at the predictor, the frames that have returned wait for the remaining frames, which are
        sure to return. This saves steps, because a step costs about the same for one utterance as for many. As a
        result, two groups of frames go round the ring: while one group is in the engine, the other group is at the
        predictor.
        """
        if self._outbox:
            return True
        if self._makeable:
            self._feed()
        enough = self._engine.ready >= len(self._out)
        return self._engine.has_work and (enough or self._engine.must_step)

    @property
    def wakes_at(self) -> float | None:
        return self._order.wakes_at(self._makeable, time.monotonic())

    def advise(self, advice: Advice[Playing]) -> None:
        self._order.behind = advice.body.behind
        for request_id, since in advice.body.since.items():
            self._order.play_since(request_id, since)

    def receive(self, message: Work) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, TalkerPrompt):
            self._voices[request_id] = _Utterance(body)
            self._order.begin(request_id, streamed=body.speech.streamed)
            return
        voice = self._voices.get(request_id)
        if voice is None:  # the utterance has ended, but the sender did not know this yet
            return
        if isinstance(body, Tokens):
            rows = list(self._rows.text(torch.tensor(body.ids)))
            if voice.first is None:
                voice.first = rows.pop(0)
            voice.text += rows
        elif isinstance(body, Finished):
            voice.ended = True
        elif isinstance(body, FrameFeedback):
            voice.feedback = body.embedding.torch()
            self._out.discard(request_id)
        else:
            raise TypeError(f"talker_ar cannot take a {type(body).__name__}")
        self._advance(request_id, voice)

    def step(self) -> Iterable[Work | Failed | Advice[TextPace]]:
        self.batch = []
        if self._outbox:
            # These messages leave before the engine's step. So the vocoder knows of an utterance while its prompt is
            # computed, and leaves players with ample speech aside.
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
        """Begin, feed or finish an utterance, as far as the data that has arrived allows."""
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
        """Give the engine the inputs of the frames that are to be made now."""
        going = self._order.next_step(self._makeable, time.monotonic(), running=self._engine.ready > 0)
        for request_id in going:
            voice = self._voices[request_id]
            assert voice.feedback is not None
            self._engine.feed(request_id, voice.feedback, self._makeable.pop(request_id))
            voice.feedback = None
            voice.frames += 1
            self._order.make_frame(request_id)

    def _decodes_first(self) -> bool:
        """Whether the next step is made for utterances that are spoken already, although new prompts wait."""
        urgent = (
            self._engine.must_step
            and self._urgent_steps < URGENT_STEPS
            and self._order.urgent(self._engine.fed, time.monotonic())
        )
        self._urgent_steps = self._urgent_steps + 1 if urgent else 0
        return urgent

    def _pace_text(self) -> Iterable[Advice[TextPace]]:
        ahead = {
            request_id: len(voice.text) - voice.frames for request_id, voice in self._voices.items() if not voice.ended
        }
        pace = self._text_order.pace(ahead, pressed=self._order.sufficient_lead(time.monotonic()) < math.inf)
        if pace is not None:
            yield Advice(self.name, THINKER, pace)

    def _drop(self, request_id: str) -> None:
        self._voices.pop(request_id, None)
        self._makeable.pop(request_id, None)
        self._order.forget(request_id)

    def _next_text(self, voice: _Utterance) -> torch.Tensor | None:
        """The row of text for the next frame, or None while it is not known."""
        if voice.frames < len(voice.text):
            return voice.text[voice.frames]
        if not voice.ended:
            return None
        return self._rows.text_end if voice.frames == len(voice.text) else self._rows.silence

    def _begin(self, request_id: str, voice: _Utterance, first: torch.Tensor) -> None:
        prompt = voice.prompt
        rows = self._rows.prompt(prompt, first)
        sampling = prompt.speech.talker
        if sampling.max_tokens is None:
            sampling = msgspec.structs.replace(sampling, max_tokens=self._default_max_tokens)
        ids = torch.zeros(len(rows), dtype=torch.int64)
        self._engine.add(
            Generation(
                request_id=request_id,
                cache_ids=ids,
                rows=PromptRows(
                    ids=ids,
                    positions=None if prompt.positions is None else prompt.positions.torch(),
                    delta=prompt.position_delta,
                    media_rows=torch.arange(len(rows)),
                    media_embeds=rows,
                ),
                sampling=sampling,
                penalize_prompt=False,
                suppressed=self._endless if sampling.ignore_eos else self._suppressed,
            )
        )
        voice.begun = True
        self._order.make_frame(request_id)
        self._begin_stream(request_id, voice)

    def _begin_stream(self, request_id: str, voice: _Utterance) -> None:
        speech = voice.prompt.speech
        started = PredictorStart(speech.predictor, streamed=speech.streamed)
        self._outbox.append(Start(request_id, self.name, PREDICTOR, started))

    def _finish(self, request_id: str, reason: FinishReason) -> None:
        if not self._voices[request_id].ended:
            self._outbox.append(Advice(self.name, THINKER, TextPace([], [request_id])))
        self._drop(request_id)
        self._outbox.append(End(request_id, self.name, PREDICTOR, SpeechFinished(reason)))

    def _tell(self, event: Event, seeds: dict[str, FrameSeed]) -> Iterable[Work | Failed]:
        """The messages for one event of the engine. A token is first stored in `seeds`, because it may be the token
        that ends the utterance. That token is not a frame, and is removed at `Done`.
        """
        request_id = event.request_id
        if isinstance(event, Token):
            assert event.state is not None
            seeds[request_id] = FrameSeed(Tensor.of(event.state), event.id)
        elif isinstance(event, Done):
            seeds.pop(request_id, None)
            self._finish(request_id, event.reason)
        elif isinstance(event, Broken):
            seeds.pop(request_id, None)
            self._drop(request_id)
            error = unavailable(event.message, code="engine", retry_after=None)
            yield Failed(request_id, self.name, error.info)


class TalkerRows:
    """Makes the talker's input rows (of width h) as the reference does.

    Args:
        engine: The talker's engine, which has the projections and the codec embedding.
        config: The checkpoint's config.json.
        model_path: The checkpoint. The thinker's embedding table is not loaded: only the rows that a text needs are
            read from the checkpoint's files.

    Attributes:
        text_end: [h], the text row after the last word.
        silence: [h], the text row of every frame after the frame with `text_end`.
    """

    def __init__(self, engine: Engine, config: dict[str, Any], model_path: str) -> None:
        self._engine = engine
        self._model = engine.model
        self._table = read_tensors(model_path, "thinker.model.embed_tokens.")["weight"]
        weight = self._model.text_projection.linear_fc1.weight
        self._device, self._dtype = weight.device, weight.dtype
        talker = config["talker_config"]
        self._speakers = {name.lower(): code for name, code in talker["speaker_id"].items()}
        names = ("codec_nothink_id", "codec_think_bos_id", "codec_think_eos_id", "codec_pad_id", "codec_bos_id")
        self._codec = dict(zip(names, self._codec_rows([talker[name] for name in names]), strict=True))
        special = torch.tensor([config[f"tts_{name}_token_id"] for name in ("bos", "eos", "pad")])
        self._text_start, self.text_end, self.silence = self.text(special)

    @torch.inference_mode()
    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of text tokens: int64 [n] to [n, h]."""
        return self._model.text_projection(self._table[ids].to(self._device, self._dtype))

    @torch.inference_mode()
    def prompt(self, prompt: TalkerPrompt, first: torch.Tensor) -> torch.Tensor:
        """The rows of a whole prompt, [r + 9, h]: the user turns, then the `ASSISTANT_ROWS` rows that open the
        assistant's turn.

        Args:
            first: Row of the first generated text token, [h].
        """
        ids = prompt.ids.torch()
        user = self.text(ids)
        if prompt.media_rows is not None and prompt.media_hidden is not None:
            hidden = prompt.media_hidden.torch().to(self._device, self._dtype)
            user[prompt.media_rows.torch()] = self._model.hidden_projection(hidden)
        [speaker] = self._codec_rows([self._speakers[prompt.speech.speaker]])
        opening = self.text(torch.tensor(prompt.assistant_ids))
        codec = self._codec
        spoken = torch.stack(
            [
                self.silence + codec["codec_nothink_id"],
                self.silence + codec["codec_think_bos_id"],
                self.silence + codec["codec_think_eos_id"],
                self.silence + speaker,
                self._text_start + codec["codec_pad_id"],
                first + codec["codec_bos_id"],
            ]
        )
        return torch.cat([user, opening, spoken])

    def _codec_rows(self, codes: list[int]) -> torch.Tensor:
        return self._engine.embed(torch.tensor(codes))
