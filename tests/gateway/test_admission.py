"""Tests the order in which requests are admitted, and the limits on the number of requests, on the requests that need a
stage, and on held bytes.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, suppress

import pytest

from gateway.admission import Admission, PartPlace, Place
from gateway.voice_load import FIRST_VOICES
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError


class Crowd:
    """Makes requests that keep their places until the test ends them, and records the order in which the requests were
    admitted.
    """

    def __init__(self, arrive: bool = True, **limits) -> None:
        self.arrive = arrive
        self.admission = Admission(Limits(**limits))
        self.entered: list[str] = []
        self._go: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, deadline: float = math.inf) -> None:
        """Start the request `name`. The first letter of the name stands for the client."""
        self._go[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name, deadline))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _stay(self, name: str, deadline: float) -> None:
        async with self.admission.admit(name[0], deadline) as place:
            self.entered.append(name)
            if self.arrive:
                place.arrived()
            await self._go[name].wait()

    async def leave(self, name: str) -> None:
        self._go[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def refusal(self, name: str):
        with pytest.raises(OmniError) as caught:
            await self._tasks[name]
        return caught.value.info

    async def empty_out(self) -> list[str]:
        """End all requests in the order in which they were admitted. Returns this order."""
        left = 0
        while left < len(self.entered):
            await self.leave(self.entered[left])
            left += 1
        await self.admission.empty()
        return self.entered


async def test_as_many_as_the_limit_come_in_and_the_next_waits_for_a_place():
    crowd = Crowd(requests=2)
    for name in ("a1", "b1", "c1"):
        await crowd.come(name)
    assert (crowd.entered, crowd.admission.waiting) == (["a1", "b1"], 1)
    await crowd.leave("b1")
    assert (crowd.entered, crowd.admission.waiting) == (["a1", "b1", "c1"], 0)
    await crowd.empty_out()


async def test_one_client_comes_in_in_order():
    crowd = Crowd(requests=1)
    names = [f"a{number}" for number in range(6)]
    for name in names:
        await crowd.come(name)
    assert await crowd.empty_out() == names


async def test_clients_take_turns_however_many_each_has_waiting():
    crowd = Crowd(requests=1)
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        await crowd.come(name)
    assert await crowd.empty_out() == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_nobody_comes_in_before_those_who_wait():
    crowd = Crowd(requests=1)
    await crowd.come("a1")
    await crowd.come("a2")
    crowd._go["a1"].set()
    await crowd.come("b1")
    assert crowd.entered == ["a1", "a2"]
    await crowd.empty_out()


async def test_more_than_may_wait_are_refused_with_a_time_to_retry():
    crowd = Crowd(requests=1, queued=1)
    for name in ("a1", "a2", "a3"):
        await crowd.come(name)
    info = await crowd.refusal("a3")
    assert (info.status, info.code, info.retry_after) == (429, "too_many_requests", 1)
    assert "1 requests, and 1 are waiting" in info.message
    assert await crowd.empty_out() == ["a1", "a2"]


async def test_nobody_waits_where_nobody_may():
    crowd = Crowd(requests=1, queued=0)
    await crowd.come("a1")
    await crowd.come("b1")
    assert (await crowd.refusal("b1")).status == 429
    await crowd.leave("a1")
    await crowd.come("b2")
    assert await crowd.empty_out() == ["a1", "b2"]


async def test_the_client_with_most_waiting_gives_way_in_a_full_line():
    crowd = Crowd(requests=1, queued=3)
    for name in ("a1", "a2", "a3", "a4", "b1"):
        await crowd.come(name)
    assert (await crowd.refusal("a4")).code == "too_many_requests"
    await crowd.come("b2")
    assert (await crowd.refusal("b2")).code == "too_many_requests", "it would have no less than the other"
    assert await crowd.empty_out() == ["a1", "a2", "b1", "a3"]


async def test_a_client_that_leaves_the_line_is_passed_over():
    crowd = Crowd(requests=1)
    for name in ("a1", "a2", "b1"):
        await crowd.come(name)
    crowd.cancel("a2")
    await crowd.leave("a1")  # this happens before the cancelled task has run
    assert await crowd.empty_out() == ["a1", "b1"]


async def test_a_place_given_to_one_that_leaves_at_that_moment_goes_to_the_next():
    crowd = Crowd(requests=1)
    inside = crowd.admission.admit("z", math.inf)
    await inside.__aenter__()
    await crowd.come("a1")
    await crowd.come("b1")
    # No other task runs between the next two lines. So when a1 is cancelled, a1 has got the place, but the task of a1
    # has not run yet.
    await inside.__aexit__(None, None, None)
    crowd.cancel("a1")
    with pytest.raises(asyncio.CancelledError):
        await crowd._tasks["a1"]
    await asyncio.sleep(0)
    assert await crowd.empty_out() == ["b1"]


async def test_waiting_ends_at_the_deadline():
    crowd = Crowd(requests=1)
    await crowd.come("a1")
    await crowd.come("b1", deadline=asyncio.get_running_loop().time() + 0.01)
    assert (await crowd.refusal("b1")).code == "too_many_requests"
    assert crowd.admission.waiting == 0
    await crowd.empty_out()


async def test_closing_sends_away_who_waits_and_who_comes_but_not_who_is_inside():
    crowd = Crowd(requests=1)
    await crowd.come("a1")
    await crowd.come("b1")
    crowd.admission.close()
    await crowd.come("c1")
    for name in ("b1", "c1"):
        info = await crowd.refusal(name)
        assert (info.status, info.code) == (503, "shutting_down")
    assert await crowd.empty_out() == ["a1"]


async def test_the_time_to_retry_follows_the_pace_of_departures(monkeypatch):
    crowd = Crowd(requests=1, queued=4)
    clock = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock)
    for round_ in range(40):
        await crowd.come(f"a{round_}")
        if round_:
            await crowd.leave(f"a{round_ - 1}")
        clock += 3
    for name in ("b1", "c1", "d1", "e1", "f1"):
        await crowd.come(name)
    # One request leaves every 3 s, and four requests wait before f1.
    assert (await crowd.refusal("f1")).retry_after == 15
    monkeypatch.undo()
    await crowd.empty_out()


async def test_requests_that_never_arrive_leave_places_to_other_clients():
    crowd = Crowd(arrive=False, requests=8, queued=8)
    for number in range(8):
        await crowd.come(f"a{number}")
    assert crowd.entered == ["a0", "a1", "a2", "a3"]
    await crowd.come("b0")
    await crowd.come("c0")
    assert crowd.entered[4:] == ["b0", "c0"]
    await crowd.leave("a0")
    assert crowd.entered[6:] == []  # client a has three requests that have not arrived yet, and three places are free
    await crowd.leave("c0")
    assert crowd.entered[6:] == ["a4"]
    crowd.cancel("a5")
    await crowd.empty_out()
    assert crowd.admission._arriving == {}


async def test_a_client_whose_requests_arrive_may_have_all_places_except_the_last_eighth():
    crowd = Crowd(requests=8, queued=8)
    for number in range(9):
        await crowd.come(f"a{number}")
    assert (len(crowd.entered), crowd.admission.waiting) == (7, 2)
    await crowd.empty_out()


# --- by stage and by bytes --------------------------------------------------------------------------------------------


async def places(stack: AsyncExitStack, admission: Admission, count: int) -> list[Place]:
    taken = []
    for _ in range(count):
        taken.append(await stack.enter_async_context(admission.admit("a", math.inf)))
        taken[-1].arrived()
    return taken


async def test_a_stage_is_needed_by_as_many_as_its_limit():
    admission = Admission(Limits(stage_requests={"talker_ar": 1}))
    async with AsyncExitStack() as stack:
        first, second, third = await places(stack, admission, 3)
        first.need({"thinker", "talker_ar"})
        second.need({"thinker"})
        with pytest.raises(OmniError, match="1 requests need the stage talker_ar") as caught:
            third.need({"thinker", "talker_ar"})
        assert (caught.value.info.status, caught.value.info.code) == (429, "too_many_requests")
        third.need({"thinker"})
    async with admission.admit("a", math.inf) as place:
        place.need({"talker_ar"})


async def test_bytes_are_held_up_to_half_of_the_limit_by_each_client():
    admission = Admission(Limits(held_bytes=200))
    async with AsyncExitStack() as stack:
        first, second = await places(stack, admission, 2)
        first.hold(60)
        second.hold(40)
        with pytest.raises(OmniError, match="your requests") as caught:
            second.hold(1)
        assert (caught.value.info.status, caught.value.info.retry_after) == (429, 1)
        first.free()
        second.hold(60)
        with pytest.raises(OmniError, match="use more memory than this server"):
            second.hold(101)
    async with admission.admit("a", math.inf) as place:
        place.hold(100)


async def test_clients_that_hold_all_the_bytes_they_can_leave_bytes_to_other_clients():
    admission = Admission(Limits(held_bytes=25_600))
    async with AsyncExitStack() as stack:
        for number in range(20):
            place = await stack.enter_async_context(admission.admit(f"greedy {number}", math.inf))
            for piece in (1000, 100, 1):
                with suppress(OmniError):
                    while True:
                        place.hold(piece)
        for number in range(12):
            place = await stack.enter_async_context(admission.admit(f"modest {number}", math.inf))
            place.hold(100)
    assert admission.held_bytes == 0


async def test_a_client_leaves_places_to_clients_that_have_none():
    crowd = Crowd(requests=16)
    for number in range(20):
        await crowd.come(f"a{number}")
    assert len(crowd.entered) == 14
    for name in ("b0", "b1", "c0", "d0"):
        await crowd.come(name)
    assert crowd.entered[14:] == ["b0", "c0"]
    await crowd.leave("a0")
    assert crowd.entered[16:] == ["d0"], "a client that has no place comes before clients that have one"
    assert len(await crowd.empty_out()) == 24


async def test_a_client_leaves_places_in_a_stage_to_other_clients():
    admission = Admission(Limits(stage_requests={"talker_ar": 24}))
    async with AsyncExitStack() as stack:
        for place in await places(stack, admission, 21):
            place.need({"talker_ar"})
        [last] = await places(stack, admission, 1)
        with pytest.raises(OmniError, match="21 requests need the stage talker_ar, and 21 of these requests are yours"):
            last.need({"talker_ar"})
        for client in "bcd":
            place = await stack.enter_async_context(admission.admit(client, math.inf))
            place.need({"talker_ar"})


async def test_a_place_that_is_lent_stays_occupied_until_it_is_taken_back():
    admission = Admission(Limits(requests=1, held_bytes=200, decoded_bytes=100, stage_requests={"thinker": 1}))
    granted = []
    async with admission.admit("a", math.inf) as place:
        place.need({"thinker"})
        place.hold(60)
        place.claim(30, 20, lambda: granted.append("first"))
        place.lend()
    assert (admission.leaving, admission.held_bytes, admission.grants.held) == (1, 60, 50)
    next_place = asyncio.create_task(admission.admit("b", math.inf).__aenter__())
    await asyncio.sleep(0)
    assert admission.waiting == 1
    place.take_back()
    assert (admission.leaving, admission.held_bytes, admission.grants.held) == (0, 0, 0)
    (await next_place).need({"thinker"})
    assert granted == ["first"]


async def test_a_place_that_is_taken_back_before_its_request_ends_stays_until_the_end():
    admission = Admission(Limits(requests=1, decoded_bytes=100))
    async with admission.admit("a", math.inf) as place:
        place.hold(60)
        place.claim(50, 40, lambda: None)
        place.lend()
        place.free()
        assert (admission.held_bytes, admission.grants.held) == (0, 40)
        place.take_back()
        assert admission.grants.held == 0
    assert (admission.leaving, admission.grants.held) == (0, 0)
    await admission.empty()


async def test_a_claim_that_waits_ends_with_its_request():
    admission = Admission(Limits(decoded_bytes=100))
    granted = []
    async with AsyncExitStack() as stack:
        [first] = await places(stack, admission, 1)
        first.claim(100, 0, lambda: granted.append("first"))
        async with admission.admit("b", math.inf) as second:
            second.claim(10, 0, lambda: granted.append("second"))
            assert admission.grants.waiting == 1
        assert admission.grants.waiting == 0
    assert (granted, admission.grants.held) == (["first"], 0)


# --- several choices --------------------------------------------------------------------------------------------------


async def test_choices_take_places_of_requests():
    admission = Admission(Limits(requests=5, queued=0))
    async with admission.admit("a", math.inf) as first:
        first.need(["thinker"], 3)
        async with admission.admit("b", math.inf) as second:
            second.arrived()
            with pytest.raises(OmniError) as caught:
                second.need(["thinker"], 3)
            assert caught.value.info.status == 429
            second.need(["thinker"], 2)
            with pytest.raises(OmniError) as caught:
                await admission.admit("c", math.inf).__aenter__()
            assert caught.value.info.status == 429
        first.arrived()
        async with admission.admit("c", math.inf), admission.admit("d", math.inf):
            pass
    await asyncio.wait_for(admission.empty(), 1)


async def test_choices_count_in_the_stages_that_they_need():
    admission = Admission(Limits(stage_requests={"thinker": 8}))
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(admission.admit("a", math.inf)) for _ in range(2)]
        first.need(["thinker"], 5)
        with pytest.raises(OmniError) as caught:
            second.need(["thinker"], 3)
        assert (caught.value.info.status, "thinker" in caught.value.info.message) == (429, True)
        second.need(["thinker"], 1)
    async with admission.admit("a", math.inf) as place:
        place.need(["thinker"], 4)


@pytest.mark.parametrize("limits", [{"requests": 4}, {"stage_requests": {"thinker": 4}}], ids=str)
async def test_more_choices_than_there_are_places_are_refused_for_good(limits):
    admission = Admission(Limits(**limits))
    async with admission.admit("a", math.inf) as place:
        with pytest.raises(OmniError) as caught:
            place.need(["thinker"], 5)
    assert (caught.value.info.status, caught.value.info.param) == (400, "n")
    await asyncio.wait_for(admission.empty(), 1)


async def test_parts_share_the_place_and_the_memory_of_the_whole():
    admission = Admission(Limits(requests=1, held_bytes=200, decoded_bytes=100))
    granted = []
    async with admission.admit("a", math.inf) as place:
        place.hold(60)
        place.claim(0, 90, lambda: granted.append("whole"))
        place.lend()
        part = PartPlace(place)
        part.claim(50, 50, lambda: granted.append("part"))
        part.lend()
        assert (granted, admission.grants.held) == (["whole", "part"], 90)
        part.free_memory()
        part.withdraw()
        part.take_back()
        assert (admission.held_bytes, admission.grants.held) == (60, 90)
        second = PartPlace(place)
        second.lend()
    place.take_back()
    assert (admission.leaving, admission.held_bytes, admission.grants.held) == (1, 60, 90)
    second.take_back()
    assert (admission.leaving, admission.held_bytes, admission.grants.held) == (0, 0, 0)
    await admission.empty()


# --- streamed speech --------------------------------------------------------------------------------------------------


class Choir:
    """Makes streamed spoken answers, all of which are admitted by one `Admission`. The answers speak until the test
    ends them.

    The first `FIRST_VOICES` answers speak at once. Since no sound is ever sent, each further answer waits until an
    earlier answer ends.
    """

    def __init__(self, **limits) -> None:
        self.admission = Admission(Limits(gapless_speech=True, **limits))
        self.speaking: list[str] = []
        self.places: dict[str, Place] = {}
        self._go: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, deadline: float = math.inf) -> None:
        """Start the request `name`. The first letter of the name stands for the client."""
        self._go[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, deadline))
        await _settle()

    async def _stay(self, name: str, deadline: float) -> None:
        async with self.admission.admit(name[0], deadline) as place:
            place.arrived()
            await place.speak(deadline)
            self.speaking.append(name)
            self.places[name] = place
            await self._go[name].wait()

    async def leave(self, name: str) -> None:
        self._go[name].set()
        await self.tasks[name]
        await _settle()

    async def fill(self) -> None:
        for number in range(FIRST_VOICES):
            await self.come(f"z{number}")
        self.speaking.clear()

    async def refusal(self, name: str):
        with pytest.raises(OmniError) as caught:
            await self.tasks[name]
        return caught.value.info

    async def end(self) -> None:
        """End all answers, and check that nothing is left."""
        while any(not task.done() for task in self.tasks.values()):
            for go in self._go.values():
                go.set()
            await _settle()
        await self.admission.empty()
        assert (self.admission.voice_load.voices, self.admission.voices_waiting) == (0, 0)


async def _settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_without_the_limit_every_spoken_answer_begins_at_once():
    admission = Admission(Limits())
    async with AsyncExitStack() as stack:
        for _ in range(50):
            place = await stack.enter_async_context(admission.admit("a", math.inf))
            await place.speak(math.inf)
        assert admission.voice_load.voices == 50
    assert admission.voice_load.voices == 0


async def test_spoken_answers_wait_for_an_end_of_speech_and_clients_take_turns():
    choir = Choir()
    await choir.fill()
    for name in ("a1", "a2", "a3", "b1"):
        await choir.come(name)
    assert (choir.speaking, choir.admission.voices_waiting) == ([], 4)
    await choir.leave("z0")
    choir.places["z1"].hush()  # its sound is complete, but the client has not received it yet
    await _settle()
    assert (choir.speaking, choir.admission.voices_waiting) == (["a1", "b1"], 2)
    await choir.end()
    assert choir.speaking == ["a1", "b1", "a2", "a3"]


async def test_sound_makes_room_when_the_pipeline_makes_more_than_its_listeners_need(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("gateway.admission._now", lambda: now)
    choir = Choir()
    await choir.fill()
    await choir.come("a1")
    for _ in range(20):
        now += 0.1
        choir.places["z0"].hear(0.5)
    await _settle()
    assert choir.speaking == [], "5 seconds of sound per second do not suffice for 5 listeners and a reserve"
    for _ in range(10):
        now += 0.1
        choir.places["z0"].hear(1.0)
    await _settle()
    assert choir.speaking == ["a1"]
    await choir.end()


async def test_those_that_wait_to_speak_leave_their_places_to_text():
    choir = Choir(requests=FIRST_VOICES + 1)
    await choir.fill()
    for name in ("a1", "a2", "a3"):
        await choir.come(name)
    async with asyncio.timeout(1), choir.admission.admit("b", math.inf) as text:
        text.arrived()
        await choir.come("a4")
        assert choir.admission.waiting == 1, "now all places are taken"
        await choir.leave("z0")
        assert choir.speaking == ["a1"], "a request that waits to speak goes first, within the limit"
        await choir.leave("z1")
    await choir.end()


async def test_more_than_may_wait_to_speak_are_refused_with_a_time_to_retry():
    choir = Choir(queued=1)
    await choir.fill()
    await choir.come("a1")
    await choir.come("a2")
    info = await choir.refusal("a2")
    assert (info.status, info.code, info.retry_after) == (429, "too_many_requests", 1)
    assert f"({FIRST_VOICES} spoken answers), and 1 other spoken answers are waiting" in info.message
    await choir.end()
    assert choir.speaking == ["a1"]


async def test_a_wait_to_speak_ends_at_the_deadline():
    choir = Choir()
    await choir.fill()
    await choir.come("a1", deadline=asyncio.get_running_loop().time() + 0.01)
    assert (await choir.refusal("a1")).status == 429
    await choir.end()


async def test_an_answer_whose_client_leaves_while_it_waits_to_speak_holds_nothing():
    choir = Choir()
    await choir.fill()
    for name in ("a1", "a2", "a3"):
        await choir.come(name)
    choir.tasks["a1"].cancel()
    choir._go["z0"].set()  # admits a2, or a1 if the task of a1 has not ended yet
    await _settle()
    choir.tasks["a2"].cancel()
    await _settle()
    await choir.leave("z1")
    assert choir.speaking[-1] == "a3"
    await choir.end()


async def test_those_that_wait_to_speak_are_refused_when_the_server_closes():
    choir = Choir()
    await choir.fill()
    await choir.come("a1")
    choir.admission.close()
    assert (await choir.refusal("a1")).code == "shutting_down"
    await choir.end()


async def test_an_answer_that_pauses_makes_room():
    choir = Choir()
    await choir.fill()
    await choir.come("a1")
    choir.places["z0"].pause()
    await _settle()
    assert choir.speaking == ["a1"]
    choir.places["z0"].go_on()
    assert choir.admission.voice_load.voices == FIRST_VOICES + 1
    choir.places["z0"].pause()
    choir.places["z0"].hush()
    choir.places["z0"].go_on()
    assert choir.admission.voice_load.voices == FIRST_VOICES, "it has ended while it paused"
    await choir.end()


async def test_the_limit_of_a_stage_holds_for_each_of_its_replicas():
    live = {"talker_ar": 2}
    admission = Admission(Limits(stage_requests={"talker_ar": 1}), lambda stage: live.get(stage, 1))
    async with AsyncExitStack() as stack:
        places = [await stack.enter_async_context(admission.admit(client, math.inf)) for client in "abc"]
        places[0].need({"talker_ar"})
        places[1].need({"talker_ar"})
        with pytest.raises(OmniError) as caught:
            places[2].need({"talker_ar"})
        assert caught.value.info.status == 429
        live["talker_ar"] = 3
        places[2].need({"talker_ar"})
