"""The simulated code_predictor."""

from __future__ import annotations

from collections.abc import Sequence

from omni_pipeline.contract.simulation import MESSAGE_BYTES, Batch, SimulatedMessage, StageSite
from stages.simulation.preparing import Passive
from stages.simulation.speech_messages import Frame, FrameFeedback, FrameSeed, UtteranceEnd, UtteranceStart

EMBEDDING_BYTES = 1024 * 2
"""Bytes of the summed embedding of a frame."""

CODES_BYTES = 16 * 8
"""Bytes of the codes of a frame."""


class CodePredictor(Passive):
    """Completes one frame of every utterance whose `FrameSeed` has arrived."""

    def __init__(self, site: StageSite) -> None:
        self.name = site.name
        self._max_batch = site.options.max_batch
        self._ready: dict[str, None] = {}
        self._outbox: list[SimulatedMessage] = []
        self._batch: list[str] = []

    def has_work(self, now: float) -> bool:
        return bool(self._ready or self._outbox)

    def computes(self, now: float) -> bool:
        return bool(self._ready)

    def receive(self, message: SimulatedMessage, now: float) -> None:
        body = message.body
        if isinstance(body, FrameSeed):
            self._ready[message.request_id] = None
        elif isinstance(body, (UtteranceStart, UtteranceEnd)):
            self._outbox.append(SimulatedMessage(message.request_id, self.name, "code2wav", body))

    def begin(self, now: float) -> Batch:
        self._batch = list(self._ready)[: self._max_batch]
        for request_id in self._batch:
            del self._ready[request_id]
        return Batch(len(self._batch))

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        outbox, self._outbox = self._outbox, []
        size = MESSAGE_BYTES + EMBEDDING_BYTES
        outbox += [SimulatedMessage(each, self.name, "talker_ar", FrameFeedback(), size) for each in self._batch]
        size = MESSAGE_BYTES + CODES_BYTES
        outbox += [SimulatedMessage(each, self.name, "code2wav", Frame(), size) for each in self._batch]
        self._batch = []
        return outbox
