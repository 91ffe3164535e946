"""Hosts with their own network and their own process ids, as on separate machines, can be disconnected, and return.

The tests need the right to make namespaces.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from omni_pipeline.config.schema import Cluster as ClusterConfig
from omni_pipeline.config.schema import Config, GroupConfig, HostConfig
from omni_pipeline.wire.messages import Start
from tests.omni_pipeline.echo_stages import Text
from tests.omni_pipeline.hosts.agents import LEASE_SECONDS, running_on_hosts, until
from tests.omni_pipeline.hosts.namespaces import NAMES, Net, network
from tests.omni_pipeline.hosts.test_workers_on_hosts import SENTENCE, VOICES, back
from tests.omni_pipeline.sessions import SECONDS, echo_config

pytestmark = pytest.mark.usefixtures("run_root")


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as net:
        yield net


def spread(net: Net, **groups: GroupConfig) -> Config:
    return structs.replace(
        echo_config(),
        groups=groups,
        hosts={name: HostConfig() for name in NAMES},  # the hosts find their own addresses
        cluster=ClusterConfig(listen=net.main, port=0, lease_seconds=LEASE_SECONDS),
    )


async def test_hosts_with_their_own_network_and_process_ids(net: Net, hosts_dir: Path) -> None:
    config = spread(net, shout=VOICES, join=GroupConfig(replicas=1, hosts=["c"]))
    async with running_on_hosts(config, hosts_dir, net.inside()) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        for number in range(6):
            assert (await session.ask(f"r{number}", SENTENCE)).text == SENTENCE.upper()
            supervisor.release(f"r{number}")
        # These are process ids in the namespace of the host b. On the main host, other processes have these ids.
        assert supervisor.pids["shout@0"] < supervisor.pids["split"]
        worker = next(
            process
            for process in hosts.agents["b"].family()
            if "shout@0" in " ".join([process.name(), *process.cmdline()])
        )
        worker.send_signal(signal.SIGKILL)
        await session.lost()
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: supervisor.restarts["shout@0"] == 1)
        await back(hosts)
        for number in range(4):
            assert (await session.ask(f"s{number}", SENTENCE)).text == SENTENCE.upper()
            supervisor.release(f"s{number}")


async def test_a_partition_ends_the_requests_of_its_host_and_heals(net: Net, hosts_dir: Path) -> None:
    async with running_on_hosts(spread(net, shout=VOICES), hosts_dir, net.inside()) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        family = [process.pid for process in hosts.agents["b"].family()]
        before = time.monotonic()
        net.cut("b", connected=False)
        for number in range(8):
            supervisor.submit(f"r{number}", Text(SENTENCE))
        answered = set()
        for _ in range(4):
            message = await session.next()
            assert isinstance(message, Start), message
            answered.add(message.request_id)
        async with asyncio.timeout(SECONDS):
            await supervisor.until(lambda: not supervisor.hosts[0].up)
        assert time.monotonic() - before < LEASE_SECONDS + 1
        failed = {request_id for requests in session.affected for request_id in requests or ("all",)}
        assert failed == {f"r{number}" for number in range(8)} - answered
        assert supervisor.problem is None
        for number in range(8):
            supervisor.release(f"r{number}")
        for number in range(4):
            await session.ask(f"s{number}", SENTENCE)
            supervisor.release(f"s{number}")
        # the host has ended its own workers, although no order could reach it
        await until(lambda: len(hosts.agents["b"].family()) < len(family))
        net.cut("b", connected=True)
        await back(hosts)
        for number in range(8):
            assert (await session.ask(f"t{number}", SENTENCE)).text == SENTENCE.upper()
            supervisor.release(f"t{number}")


async def test_a_broken_connection_between_two_hosts_ends_only_its_requests(net: Net, hosts_dir: Path) -> None:
    config = spread(net, shout=GroupConfig(replicas=2, hosts=["main", "b"]), join=GroupConfig(replicas=1, hosts=["c"]))
    async with running_on_hosts(config, hosts_dir, net.inside()) as hosts:
        session, supervisor = hosts.session, hosts.supervisor
        for number in range(4):  # both replicas connect to the host c
            await session.ask(f"r{number}", SENTENCE)
            supervisor.release(f"r{number}")
        net.separate("b", "c", apart=True)
        before = time.monotonic()
        for number in range(8):
            supervisor.submit(f"s{number}", Text(SENTENCE))
        for _ in range(4):
            assert isinstance(await session.next(), Start)
        stages, error = await session.lost()
        assert time.monotonic() - before < LEASE_SECONDS + 2
        assert stages == {"join"}
        assert error.code == "worker_lost"
        assert "shout@1 to join@0" in error.message
        [affected] = session.affected
        assert affected is not None
        assert len(affected) == 4
        assert all(report.up for report in supervisor.hosts)
        assert supervisor.connections_lost == 1
        for number in range(8):
            supervisor.release(f"s{number}")
        net.separate("b", "c", apart=False)
        for number in range(8):
            assert (await session.ask(f"t{number}", SENTENCE)).text == SENTENCE.upper()
            supervisor.release(f"t{number}")
