"""Simulates the thinker and the stages that speak in one worker on one GPU, with the real orders of work, on a virtual
clock.

The stages step one after the other, as in `omni_pipeline.worker.loop`. The package `step_law` gives the duration of
each step. There are also answers of text only, so the thinker always has work.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from step_law import laws

from gateway.playback import Player
from omni_pipeline.worker.loop import MOST_PASSES
from stages.code2wav.chunk_order import ArrivalOrder, ListenerOrder
from stages.playback import FRAME_SECONDS
from stages.talker_ar.text_pace import TextOrder
from stages.talker_ar.voice_order import PRESSING_SECONDS, VoiceOrder

SIZES = (1, 1, 2, 3, 4, 6, 8)
PROMPT = 100  # tokens
IDLE_SECONDS = 0.002


@dataclass
class Answer:
    """A spoken answer.

    Attributes:
        text: Number of tokens that the thinker has written; None before the thinker has computed the prompt.
        begun: Whether the talker has computed the prompt.
        made, heard: Numbers of frames that the predictor and the vocoder have made.
        ready: Whether the talker can make the next frame, if it has the text.
    """

    name: str
    begins: float
    text: int | None = None
    begun: bool = False
    made: int = 0
    heard: int = 0
    ready: bool = False
    player: Player = field(default_factory=Player)


class OneLoop:
    """Serves `streams` clients. Each client requests `answers` answers, one after the other without a pause.

    Args:
        just_in_time: Whether listeners decide the order of work.
        texts: Number of text answers that are written all the time.
        passes: Maximum number of rounds in a row in which the thinker may be skipped.

    Attributes:
        done: The answers that are complete.
        now: The time.
        written: Number of the thinker's steps.
    """

    def __init__(
        self,
        streams: int,
        *,
        just_in_time: bool,
        answers: int = 8,
        frames: int = 60,
        tokens: int = 24,
        texts: int = 0,
        passes: int = MOST_PASSES,
    ) -> None:
        self._frames, self._tokens, self._texts, self._most_passes = frames, tokens, texts, passes
        self._answers = answers
        self._voices = VoiceOrder(just_in_time=just_in_time)
        self._chunks: Any = (ListenerOrder if just_in_time else ArrivalOrder)(SIZES, 256, 256)
        self._pace = TextOrder()
        self._held: set[str] = set()
        self._live: dict[str, Answer] = {}
        self._passes = 0
        self.done: list[Answer] = []
        self.now = 0.0
        self.written = 0
        dice = random.Random(streams)
        self._coming = [(dice.uniform(0, frames * FRAME_SECONDS), stream, 0) for stream in range(streams)]
        heapq.heapify(self._coming)

    def run(self) -> None:
        while self._coming or self._live:
            self._arrive()
            worked = [self._think(), self._talk(), self._decode()]
            self.now += 0.0 if any(worked) else IDLE_SECONDS

    @property
    def gapless(self) -> float:
        """The share of answers without a gap, among the answers that began after all clients had begun."""
        full = [each for each in self.done if each.begins > self._frames * FRAME_SECONDS]
        return sum(not each.player.underruns for each in full) / len(full)

    @property
    def sound(self) -> float:
        """Seconds of sound per second."""
        return len(self.done) * self._frames * FRAME_SECONDS / self.now

    def _arrive(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            begins, stream, number = heapq.heappop(self._coming)
            name = f"{stream}-{number}"
            self._live[name] = Answer(name, begins)

    def _think(self) -> bool:
        new = [each for each in self._live.values() if each.text is None]
        writing = [
            each
            for each in self._live.values()
            if each.text is not None and each.text < self._tokens and each.name not in self._held
        ]
        if not new and not writing and not self._texts:
            return False
        makeable, lacking = self._makeable()
        if (
            self._passes < self._most_passes
            and self._voices.urgent(makeable, self.now, least=PRESSING_SECONDS)
            and not self._voices.urgent(lacking, self.now, least=PRESSING_SECONDS)
        ):
            self._passes += 1
            return False
        self._passes = 0
        if new:
            self.now += laws.THINKER.seconds(len(new), PROMPT * len(new))
            for each in new:
                each.text = 1
                self._voices.begin(each.name, streamed=True)
                self._chunks.begin(each.name, streamed=True)
        else:
            self.now += laws.THINKER.seconds(len(writing) + self._texts)
            self.written += 1
            for each in writing:
                each.text = (each.text or 0) + 1
        return True

    def _talk(self) -> bool:
        """A step of the talker, and the code predictor's step that follows it."""
        prompts = [each for each in self._live.values() if each.text is not None and not each.begun]
        makeable, _ = self._makeable()
        if prompts and not self._voices.urgent(makeable, self.now):
            going = prompts
            self.now += laws.TALKER.seconds(len(going), PROMPT * len(going))
        else:
            names = self._voices.next_step(makeable, self.now, running=False)
            going = [self._live[name] for name in names]
            self.now += laws.TALKER.seconds(len(going)) if going else 0.0
        ahead = {
            each.name: each.text - each.made
            for each in self._live.values()
            if each.text is not None and each.text < self._tokens
        }
        pace = self._pace.pace(ahead, pressed=self._voices.sufficient_lead(self.now) < math.inf)
        if pace is not None:
            self._held = self._held.union(pace.hold).difference(pace.resume)
        if not going:
            return False
        self.now += laws.PREDICTOR.seconds(len(going))
        for each in going:
            self._voices.make_frame(each.name)
            each.begun = each.ready = True
            each.made += 1
            self._chunks.add_frame(each.name, self.now)
            if each.made == self._frames:
                self._chunks.end(each.name, self.now)
                self._voices.forget(each.name)
        return True

    def _decode(self) -> bool:
        chunk = self._chunks.next_chunk(self.now)
        if not chunk.request_ids:
            return False
        began = self.now
        self.now += laws.VOCODER.seconds(len(chunk.request_ids) * chunk.frames)
        advice = self._chunks.sent(chunk, began, self.now)
        if advice is not None:
            self._voices.behind = advice.behind
            for name, since in advice.since.items():
                self._voices.play_since(name, since)
        for name in chunk.request_ids:
            each = self._live[name]
            each.heard += chunk.frames
            each.player.feed(self.now, chunk.frames * FRAME_SECONDS)
            if each.heard == self._frames:
                self._chunks.forget(name)
                self._end(each)
        return True

    def _end(self, each: Answer) -> None:
        del self._live[each.name]
        self.done.append(each)
        stream, number = map(int, each.name.split("-"))
        if number + 1 < self._answers:
            heapq.heappush(self._coming, (self.now, stream, number + 1))

    def _makeable(self) -> tuple[Collection[str], Collection[str]]:
        """The utterances whose next frame can be made, and the utterances that lack only text for their next frame."""
        ready = [each for each in self._live.values() if each.ready and each.made < self._frames]
        written = {each.name: (each.text or 0) > each.made or each.text == self._tokens for each in ready}
        return [name for name in written if written[name]], [name for name in written if not written[name]]
