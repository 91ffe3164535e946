"""Decides which utterances the vocoder decodes next.

A chunk is a number of consecutive frames of one utterance, which are decoded and sent together. There are two orders.
`ArrivalOrder` decodes chunks in the order in which they become complete. `ListenerOrder` first decodes for the listener
whose player will run out of sound first. `ListenerOrder` also delays the first chunk of a new utterance if starting the
utterance now would probably make a later chunk arrive too late. The later chunk may belong to any utterance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple, Protocol

from stages.code2wav.chunk_cost import ChunkCost
from stages.code2wav.start_reserve import LATE_SECONDS, StartReserve
from stages.messages import Playing
from stages.playback import AMPLE_SECONDS, FRAME_SECONDS, SHORT_SECONDS, Player

PATIENCE_SECONDS = 0.5
"""If nobody plays an utterance while it is made, each chunk of the utterance is due this number of seconds after the
chunk is complete.
"""

MARGIN_SECONDS = 0.02
"""Time, in seconds, that a chunk needs to get from the vocoder to the player."""

TOLERANCE_SECONDS = 0.03
"""A predicted silence of up to this length, in seconds, is accepted. A listener does not notice it."""

AHEAD_SECONDS = 0.5
"""Before an utterance starts, all chunks that are due in this number of seconds must be expected in time."""

LONGEST_HOLD_SECONDS = 3.0
"""After waiting for this number of seconds, an utterance starts even if silences are expected to follow."""

MOST_LOAD = 0.9
"""The largest share of the vocoder's time that playing utterances may need. A new utterance does not start if the new
utterance and all playing utterances together would need more than this share.
"""

BEHIND_SECONDS = 0.3
"""The vocoder counts as behind when it would need this number of seconds to decode the waiting frames. It no longer
counts as behind when it would need only half of this time.
"""

PACE_RESERVE = 1.1
"""The later frames of an utterance are expected to take longer than its early frames by this factor."""

EARLY_FRAMES = 8
"""Number of frames that count as the early frames of an utterance. Their pace predicts when the second chunk of a new
utterance will be complete.
"""

LONGEST_DELAY_SECONDS = 0.5
"""A longer delay of a frame counts as this number of seconds. Such a delay is an exception and not a pace: the talker
compiles code for its first request, or another program uses the processor.
"""

MEAN_OF = 20
"""A mean covers about this number of recent delays."""

HALF_LIFE_SECONDS = 2.0
"""A delay counts less as it gets older: half as much after this number of seconds."""


class NextChunk(NamedTuple):
    """The chunks to decode next: one chunk of each utterance in `request_ids`. All these chunks have the same number of
    `frames`. Either all of them are the first chunks of their utterances, or all of them are later chunks.
    """

    request_ids: list[str]
    frames: int


NOTHING = NextChunk([], 0)


class ChunkOrder(Protocol):
    """Counts the waiting frames of each utterance, and decides the order of decoding. Times are from
    `time.monotonic`.
    """

    def begin(self, request_id: str, *, streamed: bool) -> None:
        """Note a new utterance, whose prompt the talker is about to compute."""

    def add_frame(self, request_id: str, now: float) -> None:
        """Note that another frame of an utterance has arrived."""

    def end(self, request_id: str, now: float) -> None:
        """Note that all frames of an utterance have arrived."""

    def forget(self, request_id: str) -> None:
        """Forget an utterance, and free its slot in the vocoder. Ignores unknown ids."""

    def next_chunk(self, now: float) -> NextChunk:
        """The chunk to decode now, or `NOTHING`."""

    def wakes_at(self, now: float) -> float | None:
        """The next time at which `next_chunk` must be called again even if no further frame arrives."""

    def sent(self, chunk: NextChunk, began: float, now: float) -> Playing | None:
        """Note that a chunk has been decoded and is being sent. Returns a report about the players, which the talker
        uses to order its work. Returns None if there is nothing to report.
        """

    @property
    def ready(self) -> int:
        """Number of utterances with a chunk that could be decoded."""


class _Frames:
    """The frames of one utterance.

    Attributes:
        streamed: Whether a client plays the utterance while it is made.
        player: The listener's player, if `streamed`.
        waiting: Number of frames that have arrived and are not decoded.
        decoded: Number of decoded frames.
        ended: Whether all frames have arrived.
        first_at, last_at: Arrival of the first and of the latest frame.
        complete_at: Time at which the waiting chunk became complete, or at which the utterance ended.
    """

    __slots__ = ("complete_at", "decoded", "ended", "first_at", "last_at", "player", "streamed", "waiting")

    def __init__(self, *, streamed: bool) -> None:
        self.streamed = streamed
        self.player = Player()
        self.waiting = self.decoded = 0
        self.ended = False
        self.first_at = self.last_at = self.complete_at = 0.0

    @property
    def playing(self) -> bool:
        return self.player.since is not None

    @property
    def starting(self) -> bool:
        return self.streamed and not self.playing

    @property
    def dry_at(self) -> float:
        return self.player.dry_at(self.decoded)

    @property
    def exhausted(self) -> bool:
        return self.ended and not self.waiting

    @property
    def last(self) -> float:
        """Number of frames of the whole utterance; infinity while it is unknown."""
        return self.decoded + self.waiting if self.ended else math.inf

    def take(self, frames: int) -> None:
        self.waiting -= frames
        self.decoded += frames


class _Lead(NamedTuple):
    """The player of an utterance runs out of sound at `dry_at`, unless another chunk comes. This chunk begins when
    `decoded` frames have been decoded. The utterance has at most `last` frames.
    """

    dry_at: float
    decoded: int
    last: float


class _Sizes:
    """The sizes of an utterance's chunks.

    Attributes:
        full: Largest size.
        steady_from: Number of frames up to the end of the second chunk of the largest size. Until then, the chunks
            grow, so the player's lead is small.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self.full = max(sizes)
        self.steady_from = sum(sizes[: sizes.index(self.full) + 1]) + self.full

    def after(self, decoded: int) -> int:
        """Size of the chunk that begins when this number of frames has been decoded."""
        for size in self._sizes:
            if decoded < size:
                return size
            decoded -= size
        return self._sizes[-1]


class _Recent:
    """The longest of the recent delays. The older a delay is, the less it counts."""

    def __init__(self) -> None:
        self._longest = self._at = 0.0

    def note(self, seconds: float, now: float) -> None:
        if seconds > self.seconds(now):
            self._longest, self._at = seconds, now

    def seconds(self, now: float) -> float:
        return float(self._longest * 0.5 ** ((now - self._at) / HALF_LIFE_SECONDS))


class _Mean:
    """The mean of recent delays; 0 before the first delay.

    Attributes:
        seconds: The mean.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._notes = 0

    def note(self, seconds: float) -> None:
        self._notes = min(self._notes + 1, MEAN_OF)
        self.seconds += (seconds - self.seconds) / self._notes


class _Utterances:
    """The utterances that a `ChunkOrder` manages, and the batches that they can form.

    Args:
        sizes: Sizes of the first chunk, the second chunk, and so on. The last size applies to all later chunks.
        slots: Number of utterances whose state the vocoder can keep.
        max_batch: Maximum number of utterances in a batch.
    """

    def __init__(self, sizes: Sequence[int], slots: int, max_batch: int) -> None:
        self._sizes = _Sizes(sizes)
        self._slots = slots
        self._max_batch = max_batch
        self._utterances: dict[str, _Frames] = {}

    def begin(self, request_id: str, *, streamed: bool) -> None:
        self._utterances[request_id] = _Frames(streamed=streamed)

    def forget(self, request_id: str) -> None:
        self._utterances.pop(request_id, None)

    def _complete(self, each: _Frames) -> bool:
        return each.waiting >= self._sizes.after(each.decoded)

    def _ready(self, each: _Frames) -> bool:
        return each.waiting > 0 and (each.ended or self._complete(each))

    def _size(self, each: _Frames) -> int:
        return min(self._sizes.after(each.decoded), each.waiting)

    def _free(self) -> int:
        """Number of slots that no utterance uses."""
        return self._slots - sum(each.decoded > 0 for each in self._utterances.values())

    def _batch(self, order: Iterable[str]) -> NextChunk:
        """A batch of chunks. The first chunk belongs to the first utterance in `order` that has a slot or can get a
        slot. The other chunks belong to later utterances, and can be decoded together with the first chunk.
        """
        chosen: list[str] = []
        shape: tuple[int, bool] | None = None
        free = self._free()
        for request_id in order:
            each = self._utterances[request_id]
            fresh = not each.decoded
            own = self._size(each), fresh
            if own != (shape or own) or (fresh and not free):
                continue
            shape = own
            free -= fresh
            chosen.append(request_id)
            if len(chosen) == self._max_batch:
                break
        return NextChunk(chosen, shape[0]) if shape else NOTHING


class ArrivalOrder(_Utterances):
    """Decodes chunks in the order in which they became complete. `ChunkOrder` describes the methods, and `_Utterances`
    the arguments.
    """

    def __init__(self, sizes: Sequence[int], slots: int, max_batch: int) -> None:
        super().__init__(sizes, slots, max_batch)
        self._queue: dict[str, None] = {}  # utterances with a complete chunk, oldest chunk first

    def add_frame(self, request_id: str, now: float) -> None:
        self._utterances[request_id].waiting += 1
        self._queue_if_ready(request_id)

    def end(self, request_id: str, now: float) -> None:
        self._utterances[request_id].ended = True
        self._queue_if_ready(request_id)

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self._queue.pop(request_id, None)

    def next_chunk(self, now: float) -> NextChunk:
        return self._batch(self._queue)

    def wakes_at(self, now: float) -> float | None:
        return None

    def sent(self, chunk: NextChunk, began: float, now: float) -> Playing | None:
        for request_id in chunk.request_ids:
            del self._queue[request_id]
            self._utterances[request_id].take(chunk.frames)
            self._queue_if_ready(request_id)  # the next chunk waits behind the chunks that were complete before
        return None

    @property
    def ready(self) -> int:
        return len(self._queue)

    def _queue_if_ready(self, request_id: str) -> None:
        if self._ready(self._utterances[request_id]):
            self._queue.setdefault(request_id)


class ListenerOrder(_Utterances):
    """Decodes first for the listener whose player will run out of sound first. `ChunkOrder` describes the methods, and
    `_Utterances` the arguments. `cost` may already know how long some chunks take.

    There are three kinds of utterances. A *playing* utterance is due when its player runs out of sound. A *starting*
    utterance will be played, but its first chunk has not been sent. `_can_start` decides whether a starting utterance
    is decoded before the playing utterances. The third kind are utterances that nobody plays. They are due
    `PATIENCE_SECONDS` after their chunk is complete, so that they do not wait for ever.

    The sizes of an utterance's chunks do not depend on other utterances. Its samples do not depend on them either,
    except for rounding if a batch contains several utterances.
    """

    def __init__(self, sizes: Sequence[int], slots: int, max_batch: int, cost: ChunkCost | None = None) -> None:
        super().__init__(sizes, slots, max_batch)
        self._cost = ChunkCost() if cost is None else cost
        self._frame_delay = _Recent()  # delay between two early frames of an utterance
        self._frame_pace = _Mean()
        self._reserve = StartReserve()
        self._behind = False

    def add_frame(self, request_id: str, now: float) -> None:
        each = self._utterances[request_id]
        made = each.decoded + each.waiting
        if not made:
            each.first_at = now
        elif made < EARLY_FRAMES:
            delay = min(now - each.last_at, LONGEST_DELAY_SECONDS)
            self._frame_delay.note(delay, now)
            self._frame_pace.note(delay)
        each.last_at = now
        each.waiting += 1
        if each.waiting == self._sizes.after(each.decoded):
            each.complete_at = now

    def end(self, request_id: str, now: float) -> None:
        each = self._utterances[request_id]
        each.ended = True
        if not self._complete(each):
            each.complete_at = now

    def next_chunk(self, now: float) -> NextChunk:
        ready = {request_id: each for request_id, each in self._utterances.items() if self._ready(each)}
        starting = sorted((each.first_at, request_id) for request_id, each in ready.items() if each.starting)
        if self._free():
            for number, (_, request_id) in enumerate(starting):
                if self._can_start(request_id, now):
                    others = starting[:number] + starting[number + 1 :]
                    return self._batch([request_id, *(other for _, other in others)])
        return self._batch(request_id for _, request_id in sorted(self._due(ready, now)))

    def wakes_at(self, now: float) -> float | None:
        return min((time for time in self._changes() if time > now), default=None)

    def sent(self, chunk: NextChunk, began: float, now: float) -> Playing | None:
        self._cost.note(chunk.frames, now - began)
        since: dict[str, float] = {}
        for request_id in chunk.request_ids:
            each = self._utterances[request_id]
            if each.playing and each.decoded < self._sizes.steady_from and now > each.dry_at + LATE_SECONDS:
                self._reserve.grow(now)
            if each.streamed and each.player.receive(now, each.decoded):
                assert each.player.since is not None
                since[request_id] = each.player.since
            each.take(chunk.frames)
            each.complete_at = now
        if not self._turned() and not since:
            return None
        return Playing(since, self._behind)

    @property
    def ready(self) -> int:
        return sum(self._ready(each) for each in self._utterances.values())

    def _due(self, ready: dict[str, _Frames], now: float) -> Iterator[tuple[float, str]]:
        """Yields the utterances that have a chunk to decode, each with the time at which the chunk is due. Starting
        utterances are left out. If `_anyone_short` is true, utterances whose players have more than `AMPLE_SECONDS` of
        speech left are left out too.
        """
        short = self._anyone_short(now)
        for request_id, each in ready.items():
            if not each.streamed:
                yield each.complete_at + PATIENCE_SECONDS, request_id
            elif each.playing and not (short and each.dry_at - now > AMPLE_SECONDS):
                yield each.dry_at, request_id

    def _anyone_short(self, now: float) -> bool:
        """Whether an utterance is short of speech because its next frames are not made yet. If so, the stages that make
        frames need the processors more urgently than the vocoder does.
        """
        return any(
            each.streamed
            and not each.waiting
            and not each.ended
            and (not each.playing or each.dry_at - now < SHORT_SECONDS)
            for each in self._utterances.values()
        )

    def _changes(self) -> Iterator[float]:
        """Times at which the result of `next_chunk` may change although nothing arrives."""
        for each in self._utterances.values():
            if each.waiting and each.starting:
                yield each.first_at + LONGEST_HOLD_SECONDS
            elif each.waiting and each.playing:
                yield each.dry_at - AMPLE_SECONDS

    def _can_start(self, request_id: str, now: float) -> bool:
        """Whether all players, including the utterance's own, are expected to get their next chunks in time if the
        utterance starts now. Always true in three cases: there is no other utterance, all frames of the utterance have
        arrived, or the utterance has waited for `LONGEST_HOLD_SECONDS`.
        """
        each = self._utterances[request_id]
        if len(self._utterances) == 1 or each.ended or now - each.first_at >= LONGEST_HOLD_SECONDS:
            return True
        playing = [other for other in self._utterances.values() if other.playing and not other.exhausted]
        load = (len(playing) + 1) * self._cost.seconds(self._sizes.full) / self._max_batch
        if load > MOST_LOAD * FRAME_SECONDS * self._sizes.full:
            return False
        size = self._size(each)
        begun = now + self._cost.seconds(size)
        # All frames that have arrived will be decoded soon. While the player plays them, the next frame must be made,
        # decoded and sent.
        reserve = self._reserve.seconds(now)
        bridged = FRAME_SECONDS * each.waiting + TOLERANCE_SECONDS - reserve
        if self._frame_delay.seconds(now) + self._cost.seconds(1) + MARGIN_SECONDS > bridged:
            return False
        if not self._keeps_up(size, each.waiting, reserve):
            return False
        leads = [_Lead(other.dry_at, other.decoded, other.last) for other in playing]
        return self._in_time(begun, [*leads, _Lead(begun + FRAME_SECONDS * size, size, each.last)])

    def _keeps_up(self, first: int, waiting: int, reserve: float) -> bool:
        """Whether each later chunk of an utterance, up to the second full chunk, is expected in time. The prediction
        assumes:
        - the decoding of the first chunk, which has `first` frames, begins now;
        - `waiting` frames have been made, including the frames of the first chunk;
        - the later frames are made at the usual pace, but `reserve` seconds later.
        """
        sent, full = first, 0
        while full < 2:
            size = self._sizes.after(sent)
            missing = sent + size - waiting
            made_in = reserve + missing * self._frame_pace.seconds * PACE_RESERVE if missing > 0 else 0.0
            decoded_in = made_in + self._cost.seconds(size) - self._cost.seconds(first)
            if decoded_in > FRAME_SECONDS * sent + TOLERANCE_SECONDS:
                return False
            sent += size
            full += size == self._sizes.full
        return True

    def _in_time(self, begin: float, leads: list[_Lead]) -> bool:
        """Whether the vocoder can decode all chunks that are due in `AHEAD_SECONDS` in time. The prediction assumes
        that the vocoder is free from `begin` on, that it always decodes the chunk that is due first, and that the
        frames are made in time.
        """
        heapify(leads)
        done = begin + MARGIN_SECONDS
        while leads and leads[0].dry_at < begin + AHEAD_SECONDS:
            dry_at, decoded, last = leads[0]
            if decoded >= last:
                heappop(leads)
                continue
            size = self._sizes.after(decoded)
            done += self._cost.seconds(size) / self._max_batch
            if done > dry_at + TOLERANCE_SECONDS:
                return False
            heapreplace(leads, _Lead(dry_at + FRAME_SECONDS * size, decoded + size, last))
        return True

    def _turned(self) -> bool:
        """Whether the vocoder has fallen behind or caught up since the last call. The talker must then be informed."""
        waiting = sum(each.waiting for each in self._utterances.values())
        seconds = waiting * self._cost.seconds(self._sizes.full) / self._sizes.full / self._max_batch
        before, self._behind = self._behind, seconds > BEHIND_SECONDS / (2 if self._behind else 1)
        return self._behind != before
