"""Workers on several hosts: answers, the loss of a host, and its return."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from omni_pipeline.config.schema import GroupConfig
from omni_pipeline.errors import OmniError
from omni_pipeline.supervision.worker_state import WorkerReport
from omni_pipeline.wire.messages import Start
from omni_pipeline.wire.tensor import Tensor
from tests.omni_pipeline.echo_stages import Text
from tests.omni_pipeline.hosts.agents import JOIN_SECONDS, LEASE_SECONDS, Hosts, running_on_hosts, spread
from tests.omni_pipeline.sessions import SECONDS, gone

pytestmark = pytest.mark.usefixtures("run_root")

SENTENCE = "one two three four five"
# With OMNI_TEST_ROUNDS=10, more hosts are killed than in a normal run. A normal run has no time for so many rounds.
ROUNDS = int(os.environ.get("OMNI_TEST_ROUNDS", "2"))
VOICES = GroupConfig(replicas=2, hosts=["b", "c"])


async def test_answers_cross_three_hosts(hosts_dir: Path) -> None:
    config = spread(shout=VOICES, join=GroupConfig(replicas=1, hosts=["b"]))
    data = os.urandom(300_000)
    async with running_on_hosts(config, hosts_dir) as hosts:
        supervisor = hosts.supervisor
        used = set()
        for number in range(8):
            tensor = Tensor(data, "uint8", (len(data),))
            answer = await hosts.session.ask(f"r{number}", f"{SENTENCE} {number}", data=tensor)
            assert answer.text == f"{SENTENCE} {number}".upper()
            assert answer.data is not None
            assert bytes(answer.data.buffer()) == data
            used.add(answer.pids[1])
            supervisor.release(f"r{number}")
        assert used == {supervisor.pids["shout@0"], supervisor.pids["shout@1"]}
        family = {process.pid for agent in hosts.agents.values() for process in agent.family()}
        assert used <= family
        assert supervisor.pids["split"] not in family
        assert {name: report.host for name, report in supervisor.workers.items()} == {
            "split": "",
            "shout@0": "b",
            "shout@1": "c",
            "join@0": "b",
        }
        assert [report.up for report in supervisor.hosts] == [True, True]
        await supervisor.until(lambda: len(supervisor.usages) == 4 and any(edge.messages for edge in supervisor.edges))
        assert supervisor.usages["shout@0"].resident_bytes > 1024**2


async def back(hosts: Hosts) -> None:
    """Wait until every worker can accept requests again, and a request has gone through every replica."""
    supervisor = hosts.supervisor
    async with asyncio.timeout(JOIN_SECONDS):
        await supervisor.wait_for(None, None)
        await supervisor.until(lambda: all(replica.up for replica in supervisor.replicas))


async def test_a_killed_agent_ends_only_the_requests_of_its_host(hosts_dir: Path) -> None:
    async with running_on_hosts(spread(shout=VOICES), hosts_dir) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        os.kill(supervisor.pids["shout@0"], signal.SIGSTOP)
        for number in range(8):
            supervisor.submit(f"r{number}", Text(SENTENCE))
        for _ in range(4):
            message = await session.next()
            assert isinstance(message, Start), message
            supervisor.release(message.request_id)
        lost_pids = [process.pid for process in hosts.agents["b"].family()]
        before = time.monotonic()
        hosts.agents["b"].kill()
        stages, error = await session.lost()
        assert time.monotonic() - before < 1
        assert stages == {"shout"}
        assert error.code == "worker_lost"
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: not supervisor.hosts[0].up)
        affected = {request_id for requests in session.affected for request_id in requests or ("all",)}
        assert len(affected) == 4
        assert all(gone(pid) for pid in lost_pids)
        assert supervisor.problem is None
        assert supervisor.degraded is not None
        assert "host b" in supervisor.degraded
        assert [report.up for report in supervisor.hosts] == [False, True]
        for request_id in affected:
            supervisor.release(request_id)
        # the other host accepts all new requests
        for number in range(4):
            await session.ask(f"s{number}", SENTENCE)
            supervisor.release(f"s{number}")
        # the host joins again, with a new invitation
        hosts.start_agent("b")
        await back(hosts)
        assert {report.state for report in supervisor.workers.values()} == {"ready"}


async def test_a_silent_host_is_lost_after_its_lease_and_ends_its_own_workers(hosts_dir: Path) -> None:
    async with running_on_hosts(spread(shout=VOICES), hosts_dir) as hosts:
        session, supervisor, agent = hosts.session, hosts.supervisor, hosts.agents["c"]
        workers = [process.pid for process in agent.family() if process.pid != agent.process.pid]
        old = supervisor.pids["shout@1"]
        before = time.monotonic()
        os.kill(agent.process.pid, signal.SIGSTOP)
        await session.lost()
        assert time.monotonic() - before < LEASE_SECONDS + 1
        assert supervisor.problem is None
        os.kill(agent.process.pid, signal.SIGCONT)
        assert all(gone(pid) for pid in workers)
        # the agent joins again with its key, without an invitation
        await back(hosts)
        assert supervisor.pids["shout@1"] != old
        for number in range(4):
            await session.ask(f"s{number}", SENTENCE)
            supervisor.release(f"s{number}")


async def test_a_worker_that_dies_on_another_host_is_restarted_there(hosts_dir: Path) -> None:
    async with running_on_hosts(spread(shout=VOICES), hosts_dir) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        for round_ in range(2):
            victim = supervisor.pids["shout@0"]
            os.kill(victim, signal.SIGKILL)
            await session.lost()
            async with asyncio.timeout(SECONDS):
                await supervisor.until(lambda: supervisor.restarts["shout@0"] > round_)  # noqa: B023 - awaited here
            await back(hosts)
            assert supervisor.pids["shout@0"] != victim
            answers = {(await session.ask(f"r{round_}{number}", "a b")).pids[1] for number in range(4)}
            assert supervisor.pids["shout@0"] in answers
            for number in range(4):
                supervisor.release(f"r{round_}{number}")
        report: WorkerReport = supervisor.workers["shout@0"]
        assert report.restarts == 2
        assert report.previous_end is not None
        assert "SIGKILL" in report.previous_end


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_fork_server_that_ends_or_stops_on_another_host_is_replaced(
    number: signal.Signals, hosts_dir: Path
) -> None:
    async with running_on_hosts(spread(shout=VOICES), hosts_dir) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        [fork_server] = psutil.Process(hosts.agents["b"].process.pid).children()
        fork_server.send_signal(number)
        await session.lost()
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: supervisor.restarts["shout@0"] == 1)
        await back(hosts)
        assert all(report.up for report in supervisor.hosts)
        for request_id in ("r0", "r1", "r2"):
            assert (await session.ask(request_id, SENTENCE)).text == SENTENCE.upper()
            supervisor.release(request_id)


async def test_without_another_replica_requests_wait_for_the_host(hosts_dir: Path) -> None:
    async with running_on_hosts(spread(join=GroupConfig(replicas=1, hosts=["b"])), hosts_dir) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        assert (await session.ask("r0", SENTENCE)).text == SENTENCE.upper()
        supervisor.release("r0")
        hosts.agents["b"].kill()
        await session.lost()
        assert supervisor.problem is not None
        assert "host b" in supervisor.problem
        with pytest.raises(OmniError) as refused:
            supervisor.submit("r1", Text(SENTENCE))
        assert refused.value.info.status == 503
        hosts.start_agent("b")
        await back(hosts)
        assert (await session.ask("r2", SENTENCE)).text == SENTENCE.upper()


async def test_an_operator_can_stop_an_agent(hosts_dir: Path) -> None:
    async with running_on_hosts(spread(shout=VOICES), hosts_dir) as hosts:
        agent = hosts.agents["b"]
        workers = [process.pid for process in agent.family()]
        assert await asyncio.to_thread(agent.end) == 0
        await hosts.session.lost()
        assert all(gone(pid) for pid in workers)
        assert list(agent.directory.iterdir()) == []
        await hosts.session.ask("r", SENTENCE)


async def test_an_error_on_another_host_is_an_answer(hosts_dir: Path) -> None:
    async with running_on_hosts(spread(shout=VOICES), hosts_dir) as hosts:
        error = await hosts.session.fail("r", "fail@shout")
        assert error.stage == "shout"


async def test_each_kill_of_a_host_ends_only_its_own_requests(hosts_dir: Path) -> None:
    """While eight requests are always open, hosts are killed in turn, and join again."""
    async with running_on_hosts(spread(shout=VOICES), hosts_dir) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        counts: Counter[str] = Counter()
        open_requests: dict[str, int] = {}

        def submit() -> None:
            request_id = f"r{counts['submitted']}"
            counts["submitted"] += 1
            supervisor.submit(request_id, Text(SENTENCE))
            bound = supervisor._bindings.of(request_id)
            open_requests[request_id] = bound["shout"]

        def settle(request_id: str, outcome: str) -> None:
            counts[outcome] += 1
            del open_requests[request_id]
            supervisor.release(request_id)

        async def answer_until(condition: Callable[[], bool]) -> None:
            """Keep eight requests open until `condition` is true. Check each answer, and release its request."""
            async with asyncio.timeout(JOIN_SECONDS):
                while not condition():
                    while len(open_requests) < 8:
                        submit()
                    message = await session.answers.get()
                    if message.request_id in open_requests:
                        assert isinstance(message, Start), message
                        assert message.body.text == SENTENCE.upper()
                        settle(message.request_id, "answered")

        for round_ in range(ROUNDS):
            name, replica = (("b", 0), ("c", 1))[round_ % 2]
            await answer_until(lambda: counts["answered"] > 50 * (round_ + 1))  # noqa: B023 - awaited here
            killed = time.monotonic()
            hosts.agents[name].kill()
            await session.lost()
            assert time.monotonic() - killed < 1
            place = [report.host for report in supervisor.hosts].index(name)
            async with asyncio.timeout(SECONDS):
                await supervisor.until(lambda: not supervisor.hosts[place].up)  # noqa: B023 - awaited here
            for request_id in {each for affected in session.affected for each in affected or ()} & open_requests.keys():
                assert open_requests[request_id] == replica
                settle(request_id, "failed")
            session.affected.clear()
            session.losses = asyncio.Queue()
            answered = counts["answered"]
            await answer_until(lambda: counts["answered"] > answered + 20)  # noqa: B023 - awaited here
            hosts.start_agent(name)
            await answer_until(lambda: all(report.up for report in supervisor.replicas))
        print(f"{ROUNDS} hosts killed: {dict(counts)}")
        assert counts["failed"] <= 8 * ROUNDS
        while open_requests:
            message = await session.next()
            if message.request_id in open_requests:
                settle(message.request_id, "answered")
