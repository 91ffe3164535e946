"""Limits the resources that requests hold: places, bytes and memory.

A *place* is the right of one request to be in the server or in a stage. The class `Place` represents all resources of
one request. If no place in the server is free, a request waits in a queue, and if the queue is full, the request is
refused. A request that would exceed the limit of a stage or the limit of bytes is refused at once. A stage that needs
memory for decoded media waits until the memory is granted. A *client* is identified by its API key, or else by its
address. Clients share every limit, see `gateway.fair_limit`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

from gateway.fair_limit import FairLimit
from gateway.grants import Grants, HeldClaim, default_limit
from gateway.voice_load import Voice, VoiceLoad
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request, unavailable

Turn: TypeAlias = asyncio.Future[None]

# Bounds on `Retry-After`, in seconds.
_SOONEST, _LATEST = 1, 60
# Weight of the latest value in the moving average of `_Departures`.
_NEWEST = 0.2


class Place:
    """All resources of one admitted request: a place in the server, a place in each stage that the request needs, the
    bytes of its body and media, and memory for decoded media.

    The handler of the request uses this object until `leave`. The pipeline uses this object from `lend` to `take_back`.
    When neither the handler nor the pipeline uses this object any more, all its resources become free.

    Args:
        admission: Counts the resources that the request occupies.
        client: Client that sent the request.
    """

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._arriving = True
        self._stages: Collection[str] = ()
        self._choices = 1
        self._bytes = 0
        self._claims: list[HeldClaim] = []
        self._voice: Voice | None = None
        self._paused = False
        self._lent = 0  # number of requests in the pipeline that use this object
        self._left = False

    def arrived(self) -> None:
        """Record that the body and the media of the request have arrived."""
        if self._arriving:
            self._arriving = False
            self._admission.arrived(self._client)

    async def speak(self, deadline: float) -> None:
        """Count the request as a streamed spoken answer. With the limit `gapless_speech`, this method returns only when
        the server expects that the answer will play without a gap. While the request waits for this, it does not occupy
        a place in the server.

        Args:
            deadline: Time on the event loop's clock until which the request may wait.

        Raises:
            OmniError: 429 with a time to retry, if the queue is full, if the deadline passes, or if the request is
                removed from the queue to make room for another client; 503 when the server is closing.
        """
        self._voice = await self._admission.speak(self._client, deadline)

    def hear(self, seconds: float) -> None:
        """Record that more sound of the streamed spoken answer has arrived. `seconds` is its length. Does nothing for
        other kinds of answers.
        """
        if self._voice is not None:
            self._admission.hear(self._voice, seconds)

    def hush(self) -> None:
        """Record that the spoken answer is complete or has been abandoned."""
        self._paused = False
        if self._voice is not None:
            voice, self._voice = self._voice, None
            self._admission.hush(voice)

    def pause(self) -> None:
        """Record that the pipeline generates no more sound for the spoken answer until `go_on`, because too much of the
        answer is unread.
        """
        paused = self._voice is not None
        self.hush()
        self._paused = paused

    def go_on(self) -> None:
        """Record that the pipeline generates sound for a paused answer again."""
        if self._paused:
            self._paused = False
            self._voice = self._admission.begin_voice()

    def need(self, stages: Collection[str], choices: int = 1) -> None:
        """Count the request in each of `stages`. Each choice after the first one counts as one more request.

        Raises:
            OmniError: 429 if one of these stages is full, or if there are not enough free places for all choices now;
                400 if the limits never allow this number of choices.
        """
        self._admission.enter(self._client, stages, choices)
        self._stages, self._choices = stages, choices

    def hold(self, count: int) -> None:
        """Hold `count` more bytes. Raises OmniError (429) if all requests together, or all requests of this client,
        would exceed the limit of bytes.
        """
        self._admission.hold(self._client, count)
        self._bytes += count

    def claim(self, passing: int, lasting: int, grant: Callable[[], None]) -> None:
        """Claim memory for the data that stages produce for the request.

        Args:
            passing: Bytes that all stages release before the answer begins.
            lasting: Bytes that some stage may hold until the request ends.
            grant: Called when the claim is granted. If the request ends before that, `grant` is never called.
        """
        claim = HeldClaim(passing, lasting, grant, self._client)
        self._claims.append(claim)
        self._admission.grants.add(claim)

    def free(self) -> None:
        """Release the held bytes and the `passing` memory, because the answer has begun. From then on, no stage needs
        these resources.
        """
        self._admission.hold(self._client, -self._bytes)
        self._bytes = 0
        for claim in self._claims:
            self._admission.grants.begin_answer(claim)

    def free_memory(self) -> None:
        """Release all memory, because the answer is complete. It does not matter whether the client has already
        received all bytes of the answer.
        """
        for claim in self._claims:
            self._admission.grants.drop(claim)
        self._claims = []

    def withdraw(self) -> None:
        """Withdraw the claims that still wait, because the request has ended."""
        waiting = [claim for claim in self._claims if not claim.granted]
        self._claims = [claim for claim in self._claims if claim.granted]
        for claim in waiting:
            self._admission.grants.drop(claim)

    def lend(self) -> None:
        """Record that the request, or a part of the request, is being sent to the pipeline. The pipeline uses this
        object until `take_back`.
        """
        self._lent += 1

    def take_back(self) -> None:
        """Record that the pipeline no longer holds data of the request (or of one part of the request). If no other
        part is in the pipeline, release the bytes and the memory. If the handler has ended too, also release the
        places.
        """
        self._lent -= 1
        if self._lent:
            return
        self.free()
        self.free_memory()
        self.hush()
        if self._left:
            self._admission.leaving -= 1
            self._release()

    def leave(self) -> None:
        """Record that the handler of the request has ended."""
        self._left = True
        self.arrived()
        if self._lent:
            self._admission.leaving += 1
        else:
            self._release()

    def _release(self) -> None:
        self.hush()
        self._admission.hold(self._client, -self._bytes)
        self.free_memory()
        self._admission.leave(self._client, self._stages, self._choices)


class PartPlace:
    """Replaces `Place` for one part of a request. A request has parts if its handler divides it into several requests
    to the pipeline, for example for the pieces of a recording. All parts share the `Place` of the whole request. The
    whole request claims the memory for all its parts.
    """

    def __init__(self, whole: Place) -> None:
        self._whole = whole

    def claim(self, passing: int, lasting: int, grant: Callable[[], None]) -> None:
        """Grant the claim, because the whole request has claimed the memory already."""
        grant()

    def free_memory(self) -> None:
        """Release nothing, because other parts may need the memory."""

    def withdraw(self) -> None:
        """Withdraw nothing, because a part has no claims."""

    def lend(self) -> None:
        """Record that the part is being sent to the pipeline. The pipeline uses the `Place` of the whole request until
        `take_back`.
        """
        self._whole.lend()

    def take_back(self) -> None:
        """Record that the pipeline no longer holds data of the part."""
        self._whole.take_back()


class Admission:
    """Admits requests, up to the limits.

    Args:
        limits: The limits on load.
        replicas: Returns the number of replicas of a stage that can work now. The limit of a stage applies to each
            replica.

    Attributes:
        waiting: Number of requests that wait for admission.
        voices_waiting: Number of admitted requests that wait until they may begin a spoken answer.
        voice_load: The streamed spoken answers in progress.
        grants: The memory that stages may use for decoded media.
        leaving: Number of requests that have ended while the pipeline still holds data of them.
    """

    def __init__(self, limits: Limits, replicas: Callable[[str], int] = lambda stage: 1) -> None:
        self._limits = limits
        self._replicas = replicas
        self._inside = 0
        self._arriving: Counter[str] = Counter()
        # The occupied places. A request that waits to begin a spoken answer is admitted but occupies no place.
        self._places = FairLimit(limits.requests, halved=False)
        self._stages = {stage: FairLimit(limit, halved=False) for stage, limit in limits.stage_requests.items()}
        self._bytes = FairLimit(limits.held_bytes)
        self.grants = Grants(limits.decoded_bytes or default_limit())
        self.leaving = 0
        self.voice_load = VoiceLoad()
        self._line = _Queue()
        self._voice_line = _Queue()
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._departures = _Departures()
        self._last_sounds = _Departures()
        self._begun: dict[Turn, Voice] = {}  # the spoken answers that have just been allowed to begin

    @property
    def requests(self) -> int:
        """Number of requests that have been admitted or wait for admission."""
        return self._inside + len(self._line)

    @property
    def held_bytes(self) -> int:
        """Number of bytes that requests hold."""
        return self._bytes.held

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def voices_waiting(self) -> int:
        return len(self._voice_line)

    @property
    def crowded(self) -> bool:
        """Whether requests wait, or at least half of the places are taken."""
        return bool(self._line or self._voice_line) or 2 * self._places.held >= self._places.most

    @asynccontextmanager
    async def admit(self, client: str, deadline: float) -> AsyncIterator[Place]:
        """Wait for a place in the server. The request keeps the place until the block ends. If the pipeline still holds
        data of the request at that time, the request keeps the place until `Place.take_back`.

        Args:
            client: Client that sent the request. Clients take turns, even if one client has many more requests waiting.
            deadline: Time on the event loop's clock until which the request may wait.

        Raises:
            OmniError: 429 with a time to retry, if the queue is full, if the deadline passes, or if the request is
                removed from the queue to make room for another client (see `_join`); 503 when the server is closing.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._come_in(client)
        except TimeoutError as error:
            raise self._busy() from error
        place = Place(self, client)
        try:
            yield place
        finally:
            place.leave()

    def close(self) -> None:
        """Admit no more requests. Waiting requests fail with 503."""
        self._closed = True
        for line in (self._line, self._voice_line):
            while (found := line.next()) is not None:
                found[1].set_exception(_closing())

    async def empty(self) -> None:
        """Wait until all admitted requests have left."""
        await self._empty.wait()

    # --- called by `Place` ---

    def arrived(self, client: str) -> None:
        """Record that the body and the media of one admitted request of `client` have arrived."""
        self._arriving[client] -= 1
        if not self._arriving[client]:
            del self._arriving[client]
        self._let_in()

    async def speak(self, client: str, deadline: float) -> Voice:
        """Wait until a streamed spoken answer of `client` may begin. The request is already admitted."""
        if self._closed:
            raise _closing()
        if not self._limits.gapless_speech or (not self._voice_line and self.voice_load.has_room(_now())):
            return self.begin_voice()
        try:
            async with asyncio.timeout_at(deadline):
                return await self._wait_to_speak(client)
        except TimeoutError as error:
            raise self._busy_speaking() from error

    def begin_voice(self) -> Voice:
        return self.voice_load.begin(_now())

    def hear(self, voice: Voice, seconds: float) -> None:
        self.voice_load.hear(voice, seconds, _now())
        self._let_in()

    def hush(self, voice: Voice) -> None:
        self._last_sounds.note(full=bool(self._voice_line))
        self.voice_load.end(voice, _now())
        self._let_in()

    def enter(self, client: str, stages: Collection[str], choices: int) -> None:
        """Count an admitted request, with its choices, in `stages`. See `Place.need`."""
        limited = {stage: limit for stage, limit in self._stages.items() if stage in stages}
        for stage, limit in limited.items():
            limit.most = self._limits.stage_requests[stage] * self._replicas(stage)
        most = min([self._places.most_of_one, *(limit.most_of_one for limit in limited.values())])
        if choices > most:
            raise bad_request(
                f"Invalid 'n': this server generates at most {most} answers at a time.", param="n", code="invalid_value"
            )
        for stage, limit in limited.items():
            if not limit.fits(client, choices):
                own = limit.held_by(client)
                raise self._too_many(
                    f"The server is busy: {limit.held} requests need the stage {stage}, and {own} of these requests "
                    "are yours"
                )
        if choices > 1 and not self._places.fits(client, choices - 1):
            raise self._too_many(
                f"The server is busy with {self._inside} requests and has no room for the {choices} choices "
                "of this request"
            )
        self._inside += choices - 1
        self._places.take(client, choices - 1)
        for limit in limited.values():
            limit.take(client, choices)

    def leave(self, client: str, stages: Collection[str], choices: int) -> None:
        for stage, limit in self._stages.items():
            if stage in stages:
                limit.give(client, choices)
        self._go_out(client, choices)

    def hold(self, client: str, count: int) -> None:
        """Hold `count` more bytes for a client. A negative `count` releases bytes. See `Place.hold`."""
        if count > self._bytes.free:
            raise self._too_many(
                "With this request, the bodies and media of the requests in progress would use more memory than this "
                "server allows"
            )
        if count > 0 and not self._bytes.fits(client, count):
            raise self._too_many(
                "With this request, the bodies and media of your requests in progress would use more memory than one "
                "client may use now"
            )
        self._bytes.take(client, count)

    # --- admission and departure ---

    async def _come_in(self, client: str) -> None:
        if self._closed:
            raise _closing()
        if self._may_enter(client):
            self._enter(client)
            return
        turn = self._join(self._line, client, self._busy)
        try:
            await turn
        except asyncio.CancelledError:
            if _granted(turn):  # the request was admitted just before the cancellation
                self._go_out(client)
                self.arrived(client)
            else:
                self._line.give_up(client, turn)
            raise

    async def _wait_to_speak(self, client: str) -> Voice:
        turn = self._join(self._voice_line, client, self._busy_speaking)
        self._places.give(client)
        self._let_in()  # the request no longer occupies a place
        try:
            await turn
        except BaseException:
            if _granted(turn):
                self.hush(self._begun.pop(turn))
            else:
                self._voice_line.give_up(client, turn)
                self._places.take(client)
            raise
        return self._begun.pop(turn)

    def _join(self, line: _Queue, client: str, busy: Callable[[], OmniError]) -> Turn:
        """Join a queue. If the queue is full, look for the client with the most requests in the queue. If that client
        has at least two requests more than `client`, refuse its last request to make room. Otherwise, raise the
        OmniError (429) that `busy` returns.
        """
        if len(line) >= self._limits.queued:
            last = line.last_of_longest(than=client)
            if last is None:
                raise busy()
            last.set_exception(busy())
        return line.join(client)

    def _may_enter(self, client: str) -> bool:
        """Whether a request of `client` can be admitted now.

        An admitted request is incomplete until its body and media have arrived. A client may get another place only if
        the client has fewer incomplete requests than there are free places. So a client that never completes its
        requests leaves half of the places to other clients.
        """
        return self._places.fits(client) and self._arriving[client] < self._places.free

    def _enter(self, client: str) -> None:
        self._inside += 1
        self._places.take(client)
        self._arriving[client] += 1
        self._empty.clear()

    def _let_in(self) -> None:
        """Admit the waiting requests for which there is a place now. Requests that wait to begin a spoken answer come
        first.
        """
        while self._voice_line and self._places.free > 0 and self.voice_load.has_room(_now()):
            found = self._voice_line.next()
            if found is not None:
                client, turn = found
                self._places.take(client)
                self._begun[turn] = self.begin_voice()
                turn.set_result(None)
        while (found := self._line.next(self._may_enter)) is not None:
            client, turn = found
            self._enter(client)
            turn.set_result(None)

    def _go_out(self, client: str, places: int = 1) -> None:
        self._departures.note(full=self._places.free <= 0)
        self._inside -= places
        self._places.give(client, places)
        self._let_in()
        if not self._inside:
            self._empty.set()

    def _busy(self) -> OmniError:
        return self._too_many(f"The server is busy with {self._inside} requests, and {len(self._line)} are waiting")

    def _busy_speaking(self) -> OmniError:
        waiting = len(self._voice_line)
        return self._too_many(
            f"The server already generates as much speech as it can ({self.voice_load.voices} spoken answers), and "
            f"{waiting} other spoken answers are waiting",
            seconds=self._last_sounds.mean * (waiting + 1),
        )

    def _too_many(self, reason: str, *, seconds: float | None = None) -> OmniError:
        """The error for a request beyond a limit. The error contains the estimated time until a place becomes free:
        `seconds`, or an estimate from the recent departures if `seconds` is None.
        """
        if seconds is None:
            seconds = self._departures.mean * (len(self._line) + 1)
        expected = math.ceil(seconds)
        return OmniError(
            ErrorInfo(
                status=429,
                message=f"{reason}; try again in a moment.",
                type="rate_limit_error",
                code="too_many_requests",
                retry_after=min(max(expected, _SOONEST), _LATEST),
            )
        )


class _Departures:
    """The moving average of the time between two departures, in seconds. A departure is the end of a request, or the
    end of the sound of a spoken answer. The time between two departures counts only if the server was full at both
    departures. The reason is that the average must show how fast a full server makes room.
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self._last: float | None = None

    def note(self, *, full: bool) -> None:
        now = _now() if full else None
        if now is not None and self._last is not None:
            self.mean += _NEWEST * (now - self._last - self.mean)
        self._last = now


class _Queue:
    """Waiting requests. Clients take turns, and the requests of one client keep their order of arrival. A `Turn` is the
    future for which one request waits. The future is done when the request can continue or is refused.
    """

    def __init__(self) -> None:
        self._clients: dict[str, deque[Turn]] = {}  # in the order of the clients' next turns
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def join(self, client: str) -> Turn:
        turn = asyncio.get_running_loop().create_future()
        self._clients.setdefault(client, deque()).append(turn)
        self._length += 1
        return turn

    def next(self, may: Callable[[str], bool] = lambda client: True) -> tuple[str, Turn] | None:
        """Remove the next request from the queue, and return its client and its turn. Skip each client for which `may`
        returns False.
        """
        for client in list(self._clients):
            if not may(client):
                continue
            turns = self._clients.pop(client)
            while turns:
                turn = turns.popleft()
                self._length -= 1
                if not turn.done():  # the request may have been cancelled a moment ago
                    if turns:
                        self._clients[client] = turns
                    return client, turn
        return None

    def last_of_longest(self, *, than: str) -> Turn | None:
        """Remove and return the last turn of the client with the most turns.

        Returns None if the client with the most turns does not have at least two turns more than the client whose name
        is `than`. Also returns None if the last turn is done already.
        """
        client = max(self._clients, key=lambda name: len(self._clients[name]), default=than)
        turns = self._clients.get(client, deque())
        if len(turns) <= len(self._clients.get(than, ())) + 1 or turns[-1].done():
            return None
        self._length -= 1
        return self._clients[client].pop()

    def give_up(self, client: str, turn: Turn) -> None:
        """Remove `turn` from the queue, if it is still there."""
        turns = self._clients.get(client, deque())
        with suppress(ValueError):
            turns.remove(turn)
            self._length -= 1
        if not turns:
            self._clients.pop(client, None)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _granted(turn: Turn) -> bool:
    """Whether the request with this turn has been admitted."""
    return turn.done() and not turn.cancelled() and turn.exception() is None


def _closing() -> OmniError:
    return unavailable("The server is shutting down.", code="shutting_down")
