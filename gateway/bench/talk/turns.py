"""Simulates one conversation: speaks, listens, and sometimes interrupts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from gateway.bench.talk.microphone import Spoken
from gateway.bench.talk.session import Answer, TalkSession
from gateway.bench.talk.utterances import Utterance
from gateway.bench.timeline import Failure
from gateway.playback import Player

_THINKING = 0.4  # seconds between the end of an answer and the next turn


class Turn(Struct, frozen=True):
    """One turn of the talker.

    Attributes:
        interrupts_after: Seconds from the first sound of the answer until the talker interrupts the answer with the
            next turn. None means that the talker listens to the end.
    """

    utterance: Utterance
    interrupts_after: float | None = None


class Interruption(Struct, frozen=True):
    """The times of one interruption, in seconds after its first voiced sample.

    Attributes:
        noticed: Time at which ``speech_started`` arrived; None if it did not arrive.
        last_sound: Time at which the last sound of the interrupted answer arrived. 0 if it arrived before the
            interruption; None if the answer was complete before the interruption.
        ended: Time at which the ``response.done`` of the interrupted answer arrived; None if the answer was complete
            before the interruption.
    """

    noticed: float | None
    last_sound: float | None
    ended: float | None


class TurnTimes(Struct, kw_only=True):
    """The measurements of one turn, in seconds. A time is None if its event did not happen.

    Attributes:
        stopped: Time from the last voiced sample to ``speech_stopped``.
        first_audio: Time from the last voiced sample to the first sound of the answer.
        is_split: Whether the server divided the utterance into several turns.
        is_continuous: Whether all sound of the answer that arrived can be played without an audible silence.
        interruption: The times of the interruption; None if the answer was not interrupted.
    """

    stopped: float | None = None
    first_audio: float | None = None
    audio_seconds: float = 0.0
    is_split: bool = False
    is_continuous: bool = True
    input_tokens: int | None = None
    cached_tokens: int | None = None
    interruption: Interruption | None = None
    failure: Failure | None = None


async def converse(session: TalkSession, turns: deque[Turn], speed: float, report: Callable[[TurnTimes], None]) -> None:
    """Speak the turns in `turns` in order, and remove each turn from the left of `turns`. Stop when `turns` is empty or
    the session fails.

    Args:
        speed: Seconds of sound that the talker listens to per second. With 1, the talker listens in real time.
        report: Called after the end of each turn. The argument contains the measurements of the turn.
    """
    interruption: tuple[Turn, Spoken] | None = None
    while interruption is not None or turns:
        if interruption is None:
            turn = turns.popleft()
            spoken = session.microphone.say(turn.utterance)
        else:
            (turn, spoken), interruption = interruption, None
        times = TurnTimes()
        answer = await _wait_for_answer(session, spoken, times)
        if answer is not None:
            if turn.interrupts_after is not None and turns:
                following = turns.popleft()
                interruption = (following, await _interrupt(session, answer, turn.interrupts_after, following, times))
            else:
                await _listen(session, answer, speed)
            _note_answer(answer, times)
        times.failure = times.failure or session.failure
        report(times)
        if session.failure is not None:
            if interruption is not None:
                report(TurnTimes(failure=session.failure))
            return
        if interruption is None:
            await asyncio.sleep(_THINKING / speed)


async def _wait_for_answer(session: TalkSession, spoken: Spoken, times: TurnTimes) -> Answer | None:
    """The answer to an utterance, as soon as the first sound of the answer has arrived. Records the measurements up to
    this moment in `times`.
    """
    await session.wait(lambda: (session.answer_after(spoken.last_voiced) or _failed(session, spoken)) is not None)
    answer = session.answer_after(spoken.last_voiced)
    stops = [at for at in session.stopped if at > spoken.first_voiced]
    times.is_split = len(stops) > 1
    if stops and stops[-1] > spoken.last_voiced:
        times.stopped = stops[-1] - spoken.last_voiced
    if answer is None:
        failed = _failed(session, spoken)
        times.failure = failed.failure if failed else session.failure
        return None
    times.first_audio = answer.sounds[0].at - spoken.last_voiced
    return answer


def _failed(session: TalkSession, spoken: Spoken) -> Answer | None:
    """The answer to an utterance, if that answer has ended without any sound."""
    for answer in session.answers:
        if answer.created > spoken.last_voiced and answer.done is not None and not answer.sounds:
            answer.failure = answer.failure or Failure(
                "no_sound", f"the response has the status '{answer.status}' and contains no sound"
            )
            return answer
    return None


async def _listen(session: TalkSession, answer: Answer, speed: float) -> None:
    """Wait until an answer has arrived and has been played."""
    await session.wait(lambda: answer.done is not None)
    await asyncio.sleep(answer.sounds[0].at + answer.seconds / speed - time.perf_counter())


async def _interrupt(session: TalkSession, answer: Answer, seconds: float, following: Turn, times: TurnTimes) -> Spoken:
    """Begin the next turn during an answer. `seconds` is the time from the first sound of the answer to the next turn.
    Records when the server ends the answer.
    """
    await asyncio.sleep(answer.sounds[0].at + seconds - time.perf_counter())
    spoken = session.microphone.say(following.utterance)
    began = spoken.first_voiced
    await session.wait(lambda: any(at > began for at in session.started))
    started = next((at for at in session.started if at > began), None)
    await session.truncate(answer, (time.perf_counter() - answer.sounds[0].at))
    await session.wait(lambda: answer.done is not None)
    last_sound = ended = None
    if answer.done is not None and answer.done > began:
        last_sound = max(0.0, answer.sounds[-1].at - began)
        ended = answer.done - began
    noticed = started - began if started is not None else None
    times.interruption = Interruption(noticed, last_sound, ended)
    return spoken


def _note_answer(answer: Answer, times: TurnTimes) -> None:
    player = Player()
    for sound in answer.sounds:
        player.feed(sound.at, sound.seconds)
    times.audio_seconds = player.seconds
    times.is_continuous = not player.underruns
    times.input_tokens, times.cached_tokens = answer.input_tokens, answer.cached_tokens
    times.failure = answer.failure
