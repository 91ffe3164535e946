"""The simulated stage `talker_ar`. Modules of the real stage decide the order of the frames and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from omni_pipeline.contract.simulation import Batch, SimulatedMessage, SimulatedRequest, StageSite
from stages.messages import TextPace
from stages.simulation.engine import EngineStep, engine_of
from stages.simulation.speech_messages import (
    FrameFeedback,
    FrameSeed,
    TextEnd,
    TextTokens,
    UtteranceEnd,
    UtteranceStart,
    VocoderAdvice,
)
from stages.talker_ar.text_pace import TextOrder
from stages.talker_ar.voice_order import PRESSING_SECONDS, VoiceOrder

OPENING_ROWS = 9
"""Rows of the prompt in addition to those of the user's turns."""

URGENT_STEPS = 3
"""A copy of `stages.talker_ar.stage.URGENT_STEPS`. The simulation cannot import that module, which needs torch."""


class _Utterance(Struct):
    """The state of one utterance.

    Attributes:
        text: Number of text tokens that have arrived.
        ended: Whether the text is complete.
        begun: Whether the engine has the prompt.
        frames: Number of frames whose text row has been used.
        fed_back: Whether the latest frame has come back from the code predictor, and the engine has not got it yet.
    """

    request: SimulatedRequest
    text: int = 0
    ended: bool = False
    begun: bool = False
    frames: int = 0
    fed_back: bool = False

    @property
    def has_text(self) -> bool:
        """Whether the row of text for the next frame is known. The first token is part of the prompt."""
        return self.ended or self.frames < self.text - 1


class Talker:
    """Speaks all answers in one continuous batch, as `stages.talker_ar.stage.Talker` does."""

    patient = False

    def __init__(self, site: StageSite) -> None:
        self.name = site.name
        self._engine = engine_of(site.options, on_gpu=site.on_gpu, single_prompts=True)
        self._utterances: dict[str, _Utterance] = {}
        self._outbox: list[SimulatedMessage] = []
        self._out: set[str] = set()  # utterances whose latest frame is at the code predictor
        self._makeable: dict[str, None] = {}
        self._fed: dict[str, None] = {}
        self._order = VoiceOrder(just_in_time=site.options.just_in_time)
        self._behind: set[int] = set()
        self._text_order = TextOrder()
        self._urgent_steps = 0
        self._step = EngineStep()
        self._only_messages = False

    def has_work(self, now: float) -> bool:
        if self._outbox:
            return True
        if self._makeable:
            self._feed(now)
        enough = len(self._fed) >= len(self._out)
        return (bool(self._fed) and enough) or self._engine.can_prefill

    def computes(self, now: float) -> bool:
        return not self._outbox

    def urgent(self, now: float) -> bool:
        lacking = [each for each, state in self._utterances.items() if state.fed_back and each not in self._makeable]
        return self._order.urgent(
            [*self._makeable, *self._fed], now, least=PRESSING_SECONDS
        ) and not self._order.urgent(lacking, now, least=PRESSING_SECONDS)

    def wakes_at(self, now: float) -> float | None:
        return self._order.wakes_at(self._makeable, now)

    def receive(self, message: SimulatedMessage, now: float) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, VocoderAdvice):
            (self._behind.add if body.playing.behind else self._behind.discard)(body.replica)
            self._order.behind = bool(self._behind)
            for each, since in body.playing.since.items():
                self._order.play_since(each, since)
            return
        if isinstance(body, UtteranceStart):
            self._utterances[request_id] = _Utterance(body.request)
            self._order.begin(request_id, streamed=True)
            return
        state = self._utterances.get(request_id)
        if state is None:  # the utterance ended before its text
            return
        if isinstance(body, TextTokens):
            state.text += body.tokens
        elif isinstance(body, TextEnd):
            state.ended = True
        elif isinstance(body, FrameFeedback):
            state.fed_back = True
            self._out.discard(request_id)
        if not state.begun and state.text:
            self._begin_utterance(request_id, state)
        elif state.fed_back and state.has_text:
            self._makeable[request_id] = None

    def begin(self, now: float) -> Batch:
        self._only_messages = bool(self._outbox)
        self._step = EngineStep()
        if self._only_messages:
            return Batch()
        if self._engine.can_prefill and not self._decodes_first(now):
            self._step = self._engine.prefill()
        else:
            self._step = self._engine.decode(list(self._fed))
            self._fed.clear()
        return Batch(len(self._step.ids), self._step.tokens)

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        outbox, self._outbox = self._outbox, []
        if self._only_messages:
            return outbox
        messages = []
        for request_id in self._step.prefilled if self._step.tokens else self._step.ids:
            if self._engine.generate(request_id):
                self._end_utterance(request_id)
            else:
                self._out.add(request_id)
                messages.append(SimulatedMessage(request_id, self.name, "code_predictor", FrameSeed()))
        pace = self._text_order.pace(
            {
                request_id: state.text - 1 - state.frames
                for request_id, state in self._utterances.items()
                if not state.ended
            },
            pressed=self._order.sufficient_lead(now) < math.inf,
        )
        if pace is not None:
            messages.append(SimulatedMessage("", self.name, "thinker", pace))
        return messages

    def _begin_utterance(self, request_id: str, state: _Utterance) -> None:
        state.begun = True
        prompt = state.request.prompt_tokens + OPENING_ROWS
        # the last token ends the speech and is not a frame
        self._engine.add(request_id, prompt, state.request.audio_frames + 1)
        self._order.make_frame(request_id)
        start = UtteranceStart(state.request)
        self._outbox.append(SimulatedMessage(request_id, self.name, "code_predictor", start))

    def _end_utterance(self, request_id: str) -> None:
        state = self._utterances.pop(request_id)
        self._makeable.pop(request_id, None)
        self._order.forget(request_id)
        if not state.ended:
            self._outbox.append(SimulatedMessage("", self.name, "thinker", TextPace([], [request_id])))
        self._outbox.append(SimulatedMessage(request_id, self.name, "code_predictor", UtteranceEnd()))

    def _feed(self, now: float) -> None:
        """Select the frames to make in the next step."""
        for request_id in self._order.next_step(self._makeable, now, running=bool(self._fed)):
            state = self._utterances[request_id]
            del self._makeable[request_id]
            self._fed[request_id] = None
            state.fed_back = False
            state.frames += 1
            self._order.make_frame(request_id)

    def _decodes_first(self, now: float) -> bool:
        """Whether utterances that have begun go before the prompts of new utterances."""
        urgent = self._urgent_steps < URGENT_STEPS and self._order.urgent(self._fed, now)
        self._urgent_steps = self._urgent_steps + 1 if urgent else 0
        return urgent
