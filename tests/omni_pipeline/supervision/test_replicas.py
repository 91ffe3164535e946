"""Replicas of stages in real processes: every message of a request goes to the replicas that the request uses, and the
death of a replica ends only the requests that use this replica.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

import pytest
from msgspec import structs

from omni_pipeline.config.schema import Config, GroupConfig, Routing, Supervision
from omni_pipeline.contract.prompt_chain import PromptChain
from omni_pipeline.errors import OmniError
from omni_pipeline.supervision import restart_timing
from omni_pipeline.supervision.replica_choice import Reason
from omni_pipeline.wire.messages import Failed, Start
from tests.omni_pipeline.echo_stages import ECHO, Answer, Text
from tests.omni_pipeline.sessions import SECONDS, Session, echo_config, running
from tests.omni_pipeline.supervision.test_prefix_record import chain

pytestmark = pytest.mark.usefixtures("run_root")

ALL = frozenset(ECHO.stage_names)
SENTENCE = "one two three four five"


def replicated(worker: str | None = None, **replicas: int) -> Config:
    """The echo pipeline with this number of replicas of each group. A group has the name of its only stage."""
    groups = {name: GroupConfig(replicas=number) for name, number in replicas.items()}
    return structs.replace(echo_config(worker=worker), groups=groups)


async def warm_up(session: Session) -> None:
    """Send warm-up requests through all replicas."""
    supervisor = session.supervisor
    for number in range(20):
        if supervisor.degraded is None:
            return
        supervisor.submit(f"warm-up {number}", Text("warm"), warming=await supervisor.cold())
        assert isinstance(await session.next(), Start)
        supervisor.release(f"warm-up {number}")
    pytest.fail(f"still {supervisor.degraded}")


async def answered(session: Session, request_id: str, *, ended: bool = True) -> Start[Answer]:
    """The next answer, which must belong to `request_id`. If `ended` is set, this function then releases the request,
    because the request is complete.
    """
    message = await session.next()
    assert isinstance(message, Start), message
    assert message.request_id == request_id
    if ended:
        session.supervisor.release(request_id)
    return message


async def test_every_chunk_of_a_request_goes_to_one_replica_and_replicas_have_equal_loads() -> None:
    async with running(replicated(shout=3, join=2)) as session:
        supervisor, pids = session.supervisor, session.supervisor.pids
        for number in range(60):
            supervisor.submit(f"r{number}", Text(f"{SENTENCE} {number}"))
            counts = [report.bound for report in supervisor.replicas if report.group == "shout"]
            assert max(counts) - min(counts) <= 1
        used: Counter[tuple[int, ...]] = Counter()
        for _ in range(60):
            message = await session.next()
            assert isinstance(message, Start), message
            assert message.body.text == f"{SENTENCE} {message.request_id[1:]}".upper()
            used[tuple(message.body.pids[1:])] += 1
        shouts, joins = ({pids[f"{stage}@{n}"] for n in range(k)} for stage, k in (("shout", 3), ("join", 2)))
        assert {shout for shout, _ in used} == shouts
        assert {join for _, join in used} == joins
        by_shout = Counter({pid: sum(n for (shout, _), n in used.items() if shout == pid) for pid in shouts})
        assert set(by_shout.values()) == {20}
        assert supervisor.live_replicas("shout") == 3
        await supervisor.until(lambda: supervisor.stats.get("shout") is not None and supervisor.stats["shout"].sent > 0)


async def test_all_words_of_a_request_are_shouted_by_the_same_process() -> None:
    async with running(replicated(shout=3)) as session:
        for number in range(9):
            session.supervisor.submit(f"r{number}", Text("advise@shout hello there"))
        for _ in range(9):
            message = await session.next()
            assert isinstance(message, Start), message
        stats = [(replica, stats) for stage, replica, stats in session.supervisor.replica_stats if stage == "shout"]
        async with asyncio.timeout(SECONDS):
            await session.supervisor.until(lambda: session.supervisor.stats["shout"].received == 9 * 4)
        stats = [(replica, stats) for stage, replica, stats in session.supervisor.replica_stats if stage == "shout"]
        # Each replica gets three requests, each with three words and an end. If the messages of a request went to
        # different replicas, its stream would have a gap.
        assert [(replica, one.received) for replica, one in stats] == [(0, 12), (1, 12), (2, 12)]


async def test_whole_pipelines_stay_apart() -> None:
    async with running(replicated(all=2)) as session:
        pids = session.supervisor.pids
        seen = set()
        for number in range(4):
            session.supervisor.submit(f"r{number}", Text("hello you"))
            seen.add(tuple((await answered(session, f"r{number}")).body.pids))
        assert seen == {tuple(pids[f"{stage}@{replica}"] for stage in ECHO.stage_names) for replica in range(2)}


async def test_replicas_of_one_process_with_all_stages() -> None:
    async with running(replicated("whole", all=2)) as session:
        for number in range(4):
            session.supervisor.submit(f"r{number}", Text("hello you"))
        pids = {(await session.next()).body.pids[0] for _ in range(4)}  # type: ignore[union-attr]
        assert pids == {session.supervisor.pids["whole@0"], session.supervisor.pids["whole@1"]}


async def test_a_request_beside_another_uses_its_replicas() -> None:
    async with running(replicated(split=3, shout=2)) as session:
        supervisor, pids = session.supervisor, session.supervisor.pids
        for number in range(3):
            supervisor.submit(f"whole-{number}", Text("a whole"))
            wholes = await answered(session, f"whole-{number}", ended=False)
            for part in range(2):
                supervisor.submit(f"part-{part}", Text("a part"), beside=f"whole-{number}")
                parts = await answered(session, f"part-{part}")
                assert parts.body.pids[:2] == wholes.body.pids[:2]
            assert wholes.body.pids[0] == pids[f"split@{number}"]


async def shouting(session: Session, request_id: str, chain: PromptChain) -> int:
    """Sends a request with this prompt. Returns the id of the process that runs the stage `shout` for the request."""
    session.supervisor.submit(request_id, Text("hello"), chain=chain)
    return (await answered(session, request_id)).body.pids[1]


async def test_requests_with_the_same_prefix_use_the_same_replica_until_it_ends() -> None:
    async with running(replicated(shout=2, join=2)) as session:
        await warm_up(session)
        supervisor = session.supervisor
        assert supervisor.compares_prompts
        turns = [chain(*"abcdef"[: turn + 2]) for turn in range(5)]
        pids = {await shouting(session, f"r{turn}", turns[turn]) for turn in range(4)}
        [used] = pids
        [route] = [route for route in supervisor.routes if route.group == "shout"]
        assert route.choices[Reason.PREFIX] == 3
        [killed] = [replica for replica in range(2) if supervisor.pids[f"shout@{replica}"] == used]
        assert supervisor._prompts.cached("shout", killed, turns[4]) == 50
        os.kill(used, signal.SIGKILL)
        await session.lost()
        assert supervisor._prompts.cached("shout", killed, turns[4]) == 0
        assert await shouting(session, "s", turns[4]) == supervisor.pids[f"shout@{1 - killed}"]


async def test_without_comparison_requests_with_the_same_prefix_take_turns() -> None:
    config = structs.replace(replicated(shout=2), routing=Routing(prefix="off"))
    async with running(config) as session:
        await warm_up(session)
        assert not session.supervisor.compares_prompts
        pids = [await shouting(session, f"r{turn}", chain("a", "b")) for turn in range(4)]
        assert pids[0] != pids[1]
        assert pids[:2] == pids[2:]


async def test_prompts_are_not_compared_if_only_stages_without_a_prefix_cache_have_replicas() -> None:
    async with running(replicated(join=2)) as session:
        assert not session.supervisor.compares_prompts


async def test_an_aborted_request_is_forgotten_by_its_replicas() -> None:
    async with running(replicated(split=2, shout=3, join=2)) as session:
        supervisor, done = session.supervisor, asyncio.Queue[str]()
        for number in range(6):
            name = f"r{number}"
            supervisor.submit(name, Text("a b c"))
            supervisor.abort(name, ALL, lambda name=name: done.put_nowait(name))  # type: ignore[misc]
        # The abort of a request that was never sent goes to every replica.
        supervisor.abort("unknown", ALL, lambda: done.put_nowait("unknown"))
        async with asyncio.timeout(SECONDS):
            assert {await done.get() for _ in range(7)} == {"unknown", *(f"r{number}" for number in range(6))}
        assert len(supervisor._forgetting) == 0
        assert all(report.bound == 0 for report in supervisor.replicas)


@pytest.mark.parametrize("victim", ["shout", "join", "split"])
async def test_a_killed_replica_ends_only_its_own_requests(victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_timing, "STABLE_SECONDS", 0.0)  # otherwise, the fifth restart in a row would wait
    async with running(replicated(split=2, shout=2, join=2)) as session:
        await warm_up(session)
        supervisor = session.supervisor
        for round_ in range(10):
            names = [f"{round_}-{number}" for number in range(8)]
            for name in names:
                # The stage `join` is slow at the last word, so the requests are still open when the victim is killed.
                supervisor.submit(name, Text("a b c rest@join"))
            lost = {name for name in names if supervisor._bindings.of(name)[victim] == round_ % 2}
            assert 1 <= len(lost) < 8
            os.kill(supervisor.pids[f"{victim}@{round_ % 2}"], signal.SIGKILL)
            killed = time.monotonic()
            stages, error = await session.lost()
            assert (stages, error.code, error.status) == ({victim}, "worker_lost", 503)
            assert time.monotonic() - killed < 1
            assert session.affected.pop() == lost
            # the collector would now fail each of these requests, and abort the request in all other workers that have
            # it
            for name in lost:
                supervisor.abort(name, ALL, lambda: None)
            assert supervisor.problem is None
            assert f"worker {victim}@{round_ % 2} was killed by SIGKILL" in (supervisor.degraded or "")
            # a new request goes to the replica that still runs
            supervisor.submit(f"new-{round_}", Text("fine"))
            expected = {f"new-{round_}", *(name for name in names if name not in lost)}
            while expected:
                message = await session.next()
                if isinstance(message, Failed):
                    assert message.request_id in lost, message
                    continue
                assert message.request_id in expected | lost
                expected.discard(message.request_id)
                supervisor.release(message.request_id)
            async with asyncio.timeout(SECONDS):
                await supervisor.until(lambda: not supervisor._roster.absent())
            await warm_up(session)
            assert all(report.bound == 0 for report in supervisor.replicas)
            async with asyncio.timeout(SECONDS):
                await supervisor.until(
                    lambda: (
                        not any(stats.live_requests for stats in supervisor.stats.values())
                        and not len(supervisor._forgetting)
                    )
                )


async def test_a_stopped_replica_is_killed_and_ends_only_its_own_requests() -> None:
    config = replicated(shout=2)
    config.supervision = Supervision(silent_seconds=2)  # less than a configuration allows
    async with running(config) as session:
        await warm_up(session)
        supervisor = session.supervisor
        stopped = supervisor.pids["shout@0"]
        os.kill(stopped, signal.SIGSTOP)
        names = [f"r{number}" for number in range(8)]
        for name in names:
            supervisor.submit(name, Text("a b c"))
        stuck = {name for name in names if supervisor._bindings.of(name)["shout"] == 0}
        assert len(stuck) == 4
        others = {name for name in names if name not in stuck}
        while others:  # they are answered while the other replica does not move
            message = await session.next()
            assert isinstance(message, Start), message
            others.remove(message.request_id)
            supervisor.release(message.request_id)
        stages, error = await session.lost()
        assert (stages, error.code) == ({"shout"}, "worker_lost")
        assert session.affected.pop() == stuck
        for name in stuck:
            supervisor.abort(name, ALL, lambda: None)
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: not supervisor._roster.absent())
        await warm_up(session)
        assert supervisor.pids["shout@0"] != stopped
        assert all(report.bound == 0 for report in supervisor.replicas)


async def test_the_last_replica_is_missing_as_a_single_worker_is() -> None:
    async with running(replicated(shout=2)) as session:
        supervisor = session.supervisor
        for replica in range(2):
            os.kill(supervisor.pids[f"shout@{replica}"], signal.SIGSTOP)
            os.kill(supervisor.pids[f"shout@{replica}"], signal.SIGKILL)
        for _ in range(2):
            await session.lost()
        assert supervisor.problem is not None
        with pytest.raises(OmniError) as caught:
            supervisor.submit("r", Text("x"))
        assert (caught.value.info.status, caught.value.info.code) == (503, "not_ready")
        await supervisor.wait_for(None, SECONDS)
        supervisor.submit("s", Text("back"))
        assert (await answered(session, "s")).body.text == "BACK"


async def test_requests_avoid_a_replica_that_has_answered_no_warm_up_request() -> None:
    async with running(replicated(shout=2), patience=0.2) as session:
        supervisor = session.supervisor
        assert not supervisor.warm
        through = await supervisor.cold()
        assert through == {"shout": 0}
        supervisor.submit("warm-up", Text("x"), warming=through)
        await answered(session, "warm-up")
        assert supervisor.warm
        assert "shout@1" in (supervisor.degraded or "")
        assert await supervisor.cold() == {"shout": 1}
        for number in range(4):
            supervisor.submit(f"r{number}", Text("x hang@shout"))
        assert [report.bound for report in supervisor.replicas] == [4, 0]
