"""Decides which utterances the vocoder decodes next, and how many frames of each.

There are two orders. `ArrivalOrder` decodes chunks of fixed sizes, first come, first served. `ListenerOrder` serves the
listener first who would be the first to hear a silence. It starts an utterance only when that delays nobody's next
chunk too long, and when the next chunk of the new utterance is expected in time too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from stages.code2wav.chunk_cost import ChunkCost
from stages.messages import Playing
from stages.playback import AMPLE_SECONDS, FRAME_SECONDS, SHORT_SECONDS, Player

GUARD_SECONDS = 0.1
"""If a player runs dry within this time, its next chunk is decoded with the frames that there are."""

PATIENCE_SECONDS = 0.5
"""A chunk of speech that nobody plays while it is made is due this long after it became complete."""

MARGIN_SECONDS = 0.02
"""Time that a chunk needs from the vocoder to the player."""

TOLERANCE_SECONDS = 0.03
"""A silence of this length is risked in predictions. It is shorter than what a listener notices."""

LONGEST_HOLD_SECONDS = 3.0
"""An utterance that has waited this long starts even if silences will follow."""

MOST_LOAD = 0.9
"""The largest part of the vocoder's time that players may need, before further utterances wait for their start."""

BEHIND_SECONDS = 0.3
"""The vocoder is behind when the frames that wait need this time, until they need half of it."""

EARLY_FRAMES = 8
"""The first frames of an utterance, whose pace says when the second chunk of another utterance will come."""

HALF_LIFE_SECONDS = 2.0
"""The time after which an observed delay counts half."""


class NextChunk(NamedTuple):
    """The next work: a chunk of `frames` frames of each utterance in `request_ids`. Either all or none of these
    utterances are in their first chunk.
    """

    request_ids: list[str]
    frames: int


NOTHING = NextChunk([], 0)


class ChunkOrder(Protocol):
    """The frames that wait, by utterance, and the order of decoding them. Times are by `time.monotonic`."""

    def begin(self, request_id: str, now: float, *, streamed: bool) -> None:
        """Note a new utterance, whose prompt the talker is about to compute."""

    def add_frame(self, request_id: str, now: float) -> None:
        """Note that a frame waits."""

    def end(self, request_id: str, now: float) -> None:
        """Note that no frame will follow."""

    def forget(self, request_id: str) -> None:
        """Forget an utterance, and free its slot of the vocoder. Ignores unknown ids."""

    def next_chunk(self, now: float) -> NextChunk:
        """The chunk to decode now, or `NOTHING`."""

    def wakes_at(self, now: float) -> float | None:
        """The next time at which there may be a chunk to decode although no further frame has arrived."""

    def sent(self, chunk: NextChunk, began: float, now: float) -> Playing | None:
        """Note that a chunk has been decoded and is sent. Returns advice for the talker, if there is any."""

    @property
    def ready(self) -> int:
        """Number of utterances with a chunk that could be decoded."""


class _Frames:
    """The frames of one utterance.

    Attributes:
        streamed: Whether somebody plays the utterance while it is made.
        player: The listener's player, if `streamed`.
        waiting, decoded: Numbers of frames.
        ended: Whether all frames have arrived.
        begun_at: Time at which the talker has begun the utterance.
        first_at, last_at: Arrival of the first and of the latest frame.
        complete_at: Time since which a full chunk, or the end of the utterance, waits.
    """

    __slots__ = ("begun_at", "complete_at", "decoded", "ended", "first_at", "last_at", "player", "streamed", "waiting")

    def __init__(self, begun_at: float, *, streamed: bool) -> None:
        self.streamed = streamed
        self.begun_at = begun_at
        self.player = Player()
        self.waiting = self.decoded = 0
        self.ended = False
        self.first_at = self.last_at = self.complete_at = 0.0

    @property
    def playing(self) -> bool:
        return self.player.since is not None

    @property
    def dry_at(self) -> float:
        return self.player.dry_at(self.decoded)

    @property
    def exhausted(self) -> bool:
        return self.ended and not self.waiting

    def take(self, frames: int) -> None:
        self.waiting -= frames
        self.decoded += frames


class _Sizes:
    """The sizes of an utterance's chunks if there is no other utterance."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self.full = max(sizes)

    def after(self, decoded: int) -> int:
        """Size of the chunk that follows the first `decoded` frames."""
        for size in self._sizes:
            if decoded < size:
                return size
            decoded -= size
        return self._sizes[-1]


class _Recent:
    """The longest of some delays, of which each counts less and less."""

    def __init__(self) -> None:
        self._longest = self._at = 0.0

    def note(self, seconds: float, now: float) -> None:
        if seconds > self.seconds(now):
            self._longest, self._at = seconds, now

    def seconds(self, now: float) -> float:
        return float(self._longest * 0.5 ** ((now - self._at) / HALF_LIFE_SECONDS))


class _Slots:
    """Chooses the utterances of one batch, so that no more utterances begin than the vocoder has slots."""

    def __init__(self, slots: int, max_batch: int) -> None:
        self._slots = slots
        self._max_batch = max_batch

    def batch(self, order: Iterable[str], frames: int, utterances: dict[str, _Frames]) -> list[str]:
        """The utterances in `order` that can be decoded together with the first of them, in chunks of `frames`."""
        chosen: list[str] = []
        free = self.free(utterances)
        for request_id in order:
            each = utterances[request_id]
            fresh = not each.decoded
            if chosen and fresh != (not utterances[chosen[0]].decoded):
                continue
            if each.waiting < frames or (fresh and not free):
                continue
            free -= fresh
            chosen.append(request_id)
            if len(chosen) == self._max_batch:
                break
        return chosen

    def free(self, utterances: dict[str, _Frames]) -> int:
        return self._slots - sum(each.decoded > 0 for each in utterances.values())


class ArrivalOrder:
    """Chunks in the order in which they became complete; see `ChunkOrder`.

    Args:
        sizes: Sizes of the first chunk, the second chunk, and so on. The last size applies to all later chunks.
        slots: Number of utterances whose state the vocoder can keep.
        max_batch: Maximum number of utterances in a batch.
    """

    def __init__(self, sizes: Sequence[int], slots: int, max_batch: int) -> None:
        self._sizes = _Sizes(sizes)
        self._slots = _Slots(slots, max_batch)
        self._utterances: dict[str, _Frames] = {}
        self._complete: dict[str, None] = {}  # utterances with a complete chunk, oldest chunk first

    def begin(self, request_id: str, now: float, *, streamed: bool) -> None:
        self._utterances[request_id] = _Frames(now, streamed=streamed)

    def add_frame(self, request_id: str, now: float) -> None:
        self._utterances[request_id].waiting += 1
        self._queue(request_id)

    def end(self, request_id: str, now: float) -> None:
        self._utterances[request_id].ended = True
        self._queue(request_id)

    def forget(self, request_id: str) -> None:
        self._utterances.pop(request_id, None)
        self._complete.pop(request_id, None)

    def next_chunk(self, now: float) -> NextChunk:
        free = self._slots.free(self._utterances)
        order = [each for each in self._complete if free or self._utterances[each].decoded]
        if not order:
            return NOTHING
        frames = self._size(self._utterances[order[0]])
        same = [each for each in order if self._size(self._utterances[each]) == frames]
        return NextChunk(self._slots.batch(same, frames, self._utterances), frames)

    def wakes_at(self, now: float) -> float | None:
        return None

    def sent(self, chunk: NextChunk, began: float, now: float) -> Playing | None:
        for request_id in chunk.request_ids:
            del self._complete[request_id]
            self._utterances[request_id].take(chunk.frames)
            self._queue(request_id)  # behind the utterances that have waited longer
        return None

    @property
    def ready(self) -> int:
        return len(self._complete)

    def _queue(self, request_id: str) -> None:
        each = self._utterances[request_id]
        if each.waiting >= self._sizes.after(each.decoded) or (each.ended and each.waiting):
            self._complete.setdefault(request_id)

    def _size(self, each: _Frames) -> int:
        return min(self._sizes.after(each.decoded), each.waiting)


class ListenerOrder:
    """The listener who would be the first to hear a silence goes first; see `ChunkOrder`. The arguments are those of
    `ArrivalOrder`.

    There are three kinds of utterances. *Playing* utterances go by the time at which their player runs dry. A
    *starting* utterance goes before them, as soon as all players, also its own, are expected to get their next chunks
    in time. An utterance that nobody plays goes as if it were due `PATIENCE_SECONDS` after a full chunk is complete, so
    that the players do not delay it for ever.

    If there is only one utterance, its chunks have the given sizes, so that the same request always gives exactly the
    same samples. Otherwise, a chunk has all frames that wait, up to the largest size, or fewer if others would be late.
    """

    def __init__(self, sizes: Sequence[int], slots: int, max_batch: int) -> None:
        self._sizes = _Sizes(sizes)
        self._slots = _Slots(slots, max_batch)
        self._max_batch = max_batch
        self._utterances: dict[str, _Frames] = {}
        self._cost = ChunkCost()
        self._frame_delay = _Recent()  # between two early frames of an utterance
        self._prompt_delay = _Recent()  # from the start of an utterance to its first frame
        self._behind = False

    def begin(self, request_id: str, now: float, *, streamed: bool) -> None:
        self._utterances[request_id] = _Frames(now, streamed=streamed)

    def add_frame(self, request_id: str, now: float) -> None:
        each = self._utterances[request_id]
        made = each.decoded + each.waiting
        if not made:
            each.first_at = now
            self._prompt_delay.note(now - each.begun_at, now)
        elif made < EARLY_FRAMES:
            self._frame_delay.note(now - each.last_at, now)
        each.last_at = now
        each.waiting += 1
        if each.waiting == self._sizes.full:
            each.complete_at = now

    def end(self, request_id: str, now: float) -> None:
        each = self._utterances[request_id]
        each.ended = True
        each.complete_at = now

    def forget(self, request_id: str) -> None:
        self._utterances.pop(request_id, None)

    def next_chunk(self, now: float) -> NextChunk:
        waiting = [request_id for request_id, each in self._utterances.items() if each.waiting]
        if not waiting:
            return NOTHING
        if len(self._utterances) == 1:
            return self._only_chunk(waiting[0], now)
        free = self._slots.free(self._utterances)
        starting = sorted(
            (each.first_at, request_id)
            for request_id in waiting
            if (each := self._utterances[request_id]).streamed and not each.playing
        )
        for _, request_id in starting if free else ():
            if frames := self._start_size(request_id, now):
                others = [each for _, each in starting if each != request_id]
                return NextChunk(self._slots.batch([request_id, *others], frames, self._utterances), frames)
        order = [request_id for _, request_id in sorted(self._due(waiting, now)) if free or self._begun(request_id)]
        if not order:
            return NOTHING
        frames = self._next_size(order[0], now)
        return NextChunk(self._slots.batch(order, frames, self._utterances), frames)

    def wakes_at(self, now: float) -> float | None:
        return min((time for time in self._changes() if time > now), default=None)

    def sent(self, chunk: NextChunk, began: float, now: float) -> Playing | None:
        self._cost.note(chunk.frames, now - began)
        since: dict[str, float] = {}
        for request_id in chunk.request_ids:
            each = self._utterances[request_id]
            if each.streamed and each.player.receive(now, each.decoded):
                assert each.player.since is not None
                since[request_id] = each.player.since
            each.take(chunk.frames)
            if each.waiting >= self._sizes.full or each.ended:
                each.complete_at = now
        if not self._turned() and not since:
            return None
        return Playing(since, self._behind)

    @property
    def ready(self) -> int:
        return sum(
            each.ended or each.waiting >= self._sizes.after(each.decoded)
            for each in self._utterances.values()
            if each.waiting
        )

    def _begun(self, request_id: str) -> bool:
        return self._utterances[request_id].decoded > 0

    def _only_chunk(self, request_id: str, now: float) -> NextChunk:
        """The next chunk of the only utterance: it is shorter than the sizes say only at the last moment."""
        each = self._utterances[request_id]
        size = self._sizes.after(each.decoded)
        if each.ended or each.waiting >= size or now >= self._last_moment(each):
            return NextChunk([request_id], min(size, each.waiting))
        return NOTHING

    def _last_moment(self, each: _Frames) -> float:
        """The latest time at which the only utterance's next chunk can be begun; infinite if nobody plays it."""
        return each.dry_at - MARGIN_SECONDS - self._cost.seconds(self._sizes.full) if each.playing else math.inf

    def _due(self, waiting: Iterable[str], now: float) -> Iterator[tuple[float, str]]:
        """When the next chunk of each utterance is due, for those that play or are not streamed and should be decoded
        now.
        """
        short = self._anyone_short(now)
        for request_id in waiting:
            each = self._utterances[request_id]
            if not each.streamed:
                if each.ended or each.waiting >= self._sizes.full:
                    yield each.complete_at + PATIENCE_SECONDS, request_id
            elif each.playing:
                lead = each.dry_at - now
                enough = each.ended or each.waiting >= self._sizes.after(each.decoded)
                if lead <= GUARD_SECONDS or (enough and not (short and lead > AMPLE_SECONDS)):
                    yield each.dry_at, request_id

    def _anyone_short(self, now: float) -> bool:
        """Whether an utterance is short of speech that other stages have to make. They need the processors more."""
        return any(
            each.streamed
            and not each.waiting
            and not each.ended
            and (not each.playing or each.dry_at - now < SHORT_SECONDS)
            for each in self._utterances.values()
        )

    def _changes(self) -> Iterator[float]:
        """Times at which `next_chunk` may change although nothing arrives."""
        alone = len(self._utterances) == 1
        for each in self._utterances.values():
            if not each.waiting or not each.streamed:
                continue
            if not each.playing:
                yield each.first_at + LONGEST_HOLD_SECONDS
            elif alone:
                yield self._last_moment(each)
            else:
                yield each.dry_at - GUARD_SECONDS
                yield each.dry_at - AMPLE_SECONDS

    def _next_size(self, request_id: str, now: float) -> int:
        """The largest chunk with which all other players get their next chunks in time. If there is none, a short chunk
        keeps the others from being late for long; the largest chunk is chosen if the load is too high for short ones.
        """
        each = self._utterances[request_id]
        most = min(each.waiting, self._sizes.full)
        ends = self._ends(without=request_id)
        late = most if self._load(len(ends) + 1) > MOST_LOAD else min(each.waiting, self._sizes.after(each.decoded))
        sizes = (size for size in range(most, 0, -1) if self._in_time(now + self._cost.seconds(size), ends))
        return next(sizes, late)

    def _start_size(self, request_id: str, now: float) -> int:
        """The smallest first chunk with which a streamed utterance can start now; 0 if it has to wait."""
        each = self._utterances[request_id]
        most = min(each.waiting, self._sizes.full)
        if each.ended or now - each.first_at >= LONGEST_HOLD_SECONDS:
            return most
        ends = self._ends(without=request_id)
        if self._load(len(ends) + 1) > MOST_LOAD:
            return 0
        return next((size for size in range(1, most + 1) if self._can_start(each, size, now, ends)), 0)

    def _load(self, players: int) -> float:
        """The part of the vocoder's time that so many players need, if their chunks are full."""
        return players * self._cost.seconds(self._sizes.full) / (self._max_batch * FRAME_SECONDS * self._sizes.full)

    def _can_start(self, each: _Frames, size: int, now: float, ends: list[tuple[float, float]]) -> bool:
        begun = now + self._cost.seconds(size)
        dry = begun + FRAME_SECONDS * size
        delay = 0.0 if each.waiting > size else self._expected_delay(now)
        if begun + delay + self._cost.seconds(1) + MARGIN_SECONDS > dry + TOLERANCE_SECONDS:
            return False
        return self._in_time(begun, sorted([*ends, (dry, self._cost.seconds(self._sizes.after(size)))]))

    def _ends(self, *, without: str) -> list[tuple[float, float]]:
        """For each other utterance that plays, soonest first: when its player runs dry, and its next chunk's time."""
        return sorted(
            (each.dry_at, self._cost.seconds(self._sizes.after(each.decoded)))
            for request_id, each in self._utterances.items()
            if request_id != without and each.playing and not each.exhausted
        )

    def _in_time(self, begin: float, ends: list[tuple[float, float]]) -> bool:
        """Whether each player gets its next chunk in time, if they are decoded one after the other from `begin` on."""
        done = begin + MARGIN_SECONDS
        for end, seconds in ends:
            done += seconds / self._max_batch
            if done > end + TOLERANCE_SECONDS:
                return False
        return True

    def _expected_delay(self, now: float) -> float:
        """Seconds in which the next frame of a starting utterance is expected. The talker may first compute prompts."""
        delay = self._frame_delay.seconds(now)
        if any(not each.decoded and not each.waiting and not each.ended for each in self._utterances.values()):
            delay = max(delay, self._prompt_delay.seconds(now))
        return delay

    def _turned(self) -> bool:
        """Whether the vocoder has fallen behind, or has caught up, since the last call."""
        waiting = sum(each.waiting for each in self._utterances.values())
        seconds = waiting * self._cost.seconds(self._sizes.full) / self._sizes.full / self._max_batch
        before, self._behind = self._behind, seconds > BEHIND_SECONDS / (2 if self._behind else 1)
        return self._behind != before
