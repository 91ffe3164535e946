"""The simulated stage `code2wav`. The module `chunk_order` of the real stage decides the order of the chunks."""

from __future__ import annotations

from collections.abc import Sequence

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.simulation import MESSAGE_BYTES, Batch, Output, SimulatedMessage, StageSite
from stages.code2wav.chunk_order import NOTHING, ArrivalOrder, ChunkOrder, ListenerOrder
from stages.playback import FRAME_SECONDS
from stages.simulation.speech_messages import Frame, UtteranceEnd, UtteranceStart, VocoderAdvice

SAMPLE_BYTES = 4
SAMPLES = 24_000
"""Samples of a second of sound."""


class Vocoder:
    """Decodes one batch of chunks in each step. The items of a batch are its frames."""

    patient = False

    def __init__(self, site: StageSite) -> None:
        options = site.options
        self.name = site.name
        self._replica = site.replica
        self._advises = "talker_ar" in site.stages
        max_batch = options.max_batch or (options.max_streams if site.on_gpu else 1)
        kind = ListenerOrder if options.just_in_time else ArrivalOrder
        self._order: ChunkOrder = kind(options.chunk_frames, options.max_streams, max_batch)
        self._waiting: dict[str, int] = {}
        self._ended: set[str] = set()
        self._outbox: list[SimulatedMessage] = []
        self._chunk = NOTHING
        self._began = 0.0

    def has_work(self, now: float) -> bool:
        return bool(self._outbox) or self.computes(now)

    def computes(self, now: float) -> bool:
        return bool(self._order.next_chunk(now).request_ids)

    def urgent(self, now: float) -> bool:
        return False

    def wakes_at(self, now: float) -> float | None:
        return self._order.wakes_at(now)

    def receive(self, message: SimulatedMessage, now: float) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, UtteranceStart):
            self._waiting[request_id] = 0
            self._order.begin(request_id, streamed=True)
        elif isinstance(body, Frame):
            self._waiting[request_id] += 1
            self._order.add_frame(request_id, now)
        elif isinstance(body, UtteranceEnd):
            self._ended.add(request_id)
            self._order.end(request_id, now)
            if not self._waiting[request_id]:
                self._outbox.append(self._close(request_id))

    def begin(self, now: float) -> Batch:
        self._began = now
        self._chunk = self._order.next_chunk(now)
        return Batch(len(self._chunk.request_ids) * self._chunk.frames)

    def finish(self, now: float) -> Sequence[SimulatedMessage]:
        messages, self._outbox = self._outbox, []
        chunk, self._chunk = self._chunk, NOTHING
        if not chunk.request_ids:
            return messages
        sound = chunk.frames * FRAME_SECONDS
        size = MESSAGE_BYTES + round(sound * SAMPLES) * SAMPLE_BYTES
        messages += [
            SimulatedMessage(request_id, self.name, COLLECTOR, Output(sound=sound), size)
            for request_id in chunk.request_ids
        ]
        playing = self._order.sent(chunk, self._began, now)
        if playing is not None and self._advises:
            messages.append(SimulatedMessage("", self.name, "talker_ar", VocoderAdvice(self._replica, playing)))
        for request_id in chunk.request_ids:
            self._waiting[request_id] -= chunk.frames
            if request_id in self._ended and not self._waiting[request_id]:
                messages.append(self._close(request_id))
        return messages

    def _close(self, request_id: str) -> SimulatedMessage:
        del self._waiting[request_id]
        self._ended.discard(request_id)
        self._order.forget(request_id)
        return SimulatedMessage(request_id, self.name, COLLECTOR, Output(last=True))
