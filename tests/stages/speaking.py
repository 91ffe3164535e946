"""Simulates the stages that speak, with the real orders of talker and vocoder, on a virtual clock and without a model.

The talker and its code predictor make one batch of frames after the other. At the same time, the vocoder makes one
batch of chunks after the other. The test sets the duration of each batch (see `Laws`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.playback import Player
from stages.code2wav.chunk_order import ChunkOrder, NextChunk
from stages.playback import FRAME_SECONDS
from stages.talker_ar.voice_order import VoiceOrder


@dataclass
class Laws:
    """Durations of each kind of work, in seconds.

    Attributes:
        prompt: Duration of the talker's prefill of one prompt. During the prefill, no utterance gets a frame.
        step: Duration of a batch of frames. The argument is the number of utterances.
        chunk: Duration of a batch of chunks. The arguments are the number of utterances, and the number of frames of
            each utterance.
    """

    prompt: float
    step: Callable[[int], float]
    chunk: Callable[[int, int], float]


@dataclass
class Utterance:
    """An utterance of `frames` frames that begins at the time `begins`.

    If `then` is set, the utterance `then` begins when this utterance has been sent completely.

    Attributes:
        made, heard: Numbers of frames that talker and vocoder have made.
        player: The client's player.
        first_at, ended_at: Time of the first and of the last sound.
    """

    name: str
    begins: float
    frames: int
    streamed: bool = True
    then: Utterance | None = None
    made: int = 0
    heard: int = 0
    player: Player = field(default_factory=Player)
    first_at: float | None = None
    ended_at: float | None = None


class Speakers:
    """Runs utterances through a talker and a vocoder.

    Args:
        order: The talker's order; None for a talker that always continues all utterances.
        chunks: The vocoder's order.
    """

    def __init__(self, laws: Laws, order: VoiceOrder | None, chunks: ChunkOrder) -> None:
        self._laws = laws
        self._order = order
        self._chunks = chunks
        self._utterances: dict[str, Utterance] = {}
        self._prompts: list[str] = []
        self._makeable: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._talking = self._decoding = False
        self._wakings: list[float] = []
        self.now = 0.0

    def run(self, utterances: Iterable[Utterance], *, until: float = 1e6) -> None:
        """Continue until all utterances have ended, or until the time `until`."""
        for each in utterances:
            self._at(each.begins, lambda each=each: self._begin(each))  # type: ignore[misc]
        while self._events and self._events[0][0] <= until:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
            self._talk()
            self._decode()

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))

    def _wake(self, when: float) -> None:
        """Step both stages again at the time `when`."""
        when = max(when, self.now)
        if not any(self.now <= waking <= when for waking in self._wakings):
            self._wakings = [waking for waking in self._wakings if waking >= self.now] + [when]
            self._at(when + 1e-6, lambda: None)

    def _begin(self, each: Utterance) -> None:
        self._utterances[each.name] = each
        self._prompts.append(each.name)
        if self._order is not None:
            self._order.begin(each.name, streamed=each.streamed)
        self._chunks.begin(each.name, streamed=each.streamed)

    def _talk(self) -> None:
        if self._talking:
            return
        seconds, going = self._laws.prompt, self._prompts[:1]
        if going:
            del self._prompts[0]
        else:
            if self._order is None:
                going = list(self._makeable)
            else:
                going = self._order.next_step(self._makeable, self.now, running=False)
                when = self._order.wakes_at(self._makeable, self.now)
                if not going and when is not None:
                    self._wake(when)
            self._makeable = [name for name in self._makeable if name not in going]
            seconds = self._laws.step(len(going))
        if going:
            self._talking = True
            for name in going:
                if self._order is not None:
                    self._order.make_frame(name)
            self._at(self.now + seconds, lambda: self._made(going))

    def _made(self, names: list[str]) -> None:
        self._talking = False
        for name in names:
            each = self._utterances[name]
            each.made += 1
            self._chunks.add_frame(name, self.now)
            if each.made < each.frames:
                self._makeable.append(name)
            else:
                self._chunks.end(name, self.now)
                if self._order is not None:
                    self._order.forget(name)

    def _decode(self) -> None:
        if self._decoding:
            return
        chunk = self._chunks.next_chunk(self.now)
        if not chunk.request_ids:
            when = self._chunks.wakes_at(self.now)
            if when is not None:
                self._wake(when)
            return
        self._decoding = True
        began = self.now
        seconds = self._laws.chunk(len(chunk.request_ids), chunk.frames)
        self._at(self.now + seconds, lambda: self._sent(chunk, began))

    def _sent(self, chunk: NextChunk, began: float) -> None:
        self._decoding = False
        advice = self._chunks.sent(chunk, began, self.now)
        if advice is not None and self._order is not None:
            self._order.behind = advice.behind
            for name, since in advice.since.items():
                self._order.play_since(name, since)
        for name in chunk.request_ids:
            each = self._utterances[name]
            each.heard += chunk.frames
            each.player.feed(self.now, chunk.frames * FRAME_SECONDS)
            each.first_at = self.now if each.first_at is None else each.first_at
            if each.heard == each.frames:
                each.ended_at = self.now
                self._chunks.forget(name)
                if each.then is not None:
                    each.then.begins = self.now
                    self._begin(each.then)
