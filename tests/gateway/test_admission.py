"""Tests the order in which requests are admitted, and the limits on the number of requests, on the requests that need a
stage, and on held bytes.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack

import pytest

from gateway.admission import Admission, Place
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
    # There is no await before the next line, so a1 has got the place, but the task of a1 has not run yet.
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


async def test_a_client_whose_requests_arrive_may_have_every_place():
    crowd = Crowd(requests=8, queued=8)
    for number in range(9):
        await crowd.come(f"a{number}")
    assert (len(crowd.entered), crowd.admission.waiting) == (8, 1)
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
        with pytest.raises(OmniError, match="1 requests that need its stage talker_ar") as caught:
            third.need({"thinker", "talker_ar"})
        assert (caught.value.info.status, caught.value.info.code) == (429, "too_many_requests")
        third.need({"thinker"})
    async with admission.admit("a", math.inf) as place:
        place.need({"talker_ar"})


async def test_bytes_are_held_up_to_the_limit_by_all_together():
    admission = Admission(Limits(held_bytes=100))
    async with AsyncExitStack() as stack:
        first, second = await places(stack, admission, 2)
        first.hold(60)
        second.hold(40)
        with pytest.raises(OmniError, match="hold all the bytes") as caught:
            second.hold(1)
        assert caught.value.info.retry_after == 1
        first.free()
        second.hold(60)
    async with admission.admit("a", math.inf) as place:
        place.hold(100)


async def test_a_place_that_is_lent_stays_occupied_until_it_is_taken_back():
    admission = Admission(Limits(requests=1, held_bytes=100, decoded_bytes=100, stage_requests={"thinker": 1}))
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
