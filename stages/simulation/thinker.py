"""The simulated thinker."""

from __future__ import annotations

from collections.abc import Sequence

from omni_pipeline.contract.simulation import MESSAGE_BYTES, Batch, SimulatedMessage, SimulatedRequest, StageSite
from stages.messages import TextPace
from stages.simulation.engine import EngineStep, engine_of
from stages.simulation.speech_messages import TextEnd, TextTokens, UtteranceStart

HIDDEN_BYTES = 4096
"""Bytes of the hidden state of one media token."""


class Thinker:
    """Writes the texts of all answers in one continuous batch."""

    patient = True

    def __init__(self, site: StageSite) -> None:
        self.name = site.name
        self._speaks = "talker_ar" in site.stages
        self._engine = engine_of(site.options, on_gpu=site.on_gpu, single_prompts=False)
        self._requests: dict[str, SimulatedRequest] = {}
        self._held: set[str] = set()
        self._step = EngineStep()

    def has_work(self, now: float) -> bool:
        return self._engine.can_prefill or any(each not in self._held for each in self._engine.running)

    def computes(self, now: float) -> bool:
        return True

    def urgent(self, now: float) -> bool:
        return False

    def wakes_at(self, now: float) -> float | None:
        return None

    def receive(self, message: SimulatedMessage, now: float) -> None:
        body = message.body
        if isinstance(body, TextPace):
            self._held.update(each for each in body.hold if each in self._requests)
            self._held.difference_update(body.resume)
        else:
            self._requests[body.id] = body
            self._engine.add(body.id, body.prompt_tokens, body.answer_tokens)

    def begin(self, now: float) -> Batch:
        if self._engine.can_prefill:
            self._step = self._engine.prefill()
        else:
            self._step = self._engine.decode([each for each in self._engine.running if each not in self._held])
        return Batch(len(self._step.ids), self._step.tokens)

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        messages = []
        step, self._step = self._step, EngineStep()
        for request_id in step.prefilled if step.tokens else step.ids:
            request = self._requests[request_id]
            targets = ["decode", *(["talker_ar"] if request.audio_frames and self._speaks else [])]
            if step.tokens and "talker_ar" in targets:
                size = MESSAGE_BYTES + 8 * request.prompt_tokens + HIDDEN_BYTES * request.media_tokens
                messages.append(SimulatedMessage(request_id, self.name, "talker_ar", UtteranceStart(request), size))
            messages += [SimulatedMessage(request_id, self.name, target, TextTokens(1)) for target in targets]
            if self._engine.generate(request_id):
                messages += [SimulatedMessage(request_id, self.name, target, TextEnd()) for target in targets]
                del self._requests[request_id]
                self._held.discard(request_id)
        return messages
