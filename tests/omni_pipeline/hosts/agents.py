"""Runs an echo pipeline whose workers are on several hosts. Each host is an agent process on this machine, with its own
address of the loopback network and its own directory for temporary files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import psutil
from msgspec import structs

from omni_pipeline.config.schema import Cluster as ClusterConfig
from omni_pipeline.config.schema import Config, GroupConfig, HostConfig
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.hosts.cluster import Cluster, Expected
from omni_pipeline.hosts.invitation import Invitation
from omni_pipeline.supervision.pipeline import Supervisor
from tests.omni_pipeline.sessions import SECONDS, Session, echo_config, gone

MAIN_ADDRESS = "127.0.0.1"
LEASE_SECONDS = 2.0

# Maximum time until an agent has joined. On a busy machine, the imports alone take many seconds.
JOIN_SECONDS = 90.0


def spread(worker: str | None = None, *, lease: float = LEASE_SECONDS, **groups: GroupConfig) -> Config:
    """The echo pipeline with these groups. Each host in `GroupConfig.hosts` has its own loopback address."""
    names = sorted({host for group in groups.values() for host in group.hosts} - {"main"})
    hosts = {name: HostConfig(listen=f"127.0.0.{2 + number}") for number, name in enumerate(names)}
    cluster = ClusterConfig(listen=MAIN_ADDRESS, port=0, lease_seconds=lease)
    return structs.replace(echo_config(worker=worker), groups=groups, hosts=hosts, cluster=cluster)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until other processes have made `condition` true."""
    async with asyncio.timeout(JOIN_SECONDS):
        while not condition():  # noqa: ASYNC110 - no event tells about these processes
            await asyncio.sleep(0.05)


class AgentProcess:
    """A process that has joined with an invitation.

    Args:
        directory: Directory for the temporary files of the host. It must not exist.
        inside: A command that runs another command, for example in a network namespace.
    """

    def __init__(self, invitation: str, directory: Path, inside: Sequence[str] = ()) -> None:
        directory.mkdir()
        self.directory = directory
        self.log = directory.with_suffix(".log")
        file = directory.with_suffix(".invitation")
        file.write_text(invitation)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*inside, sys.executable, "-m", "omni_pipeline.cli", "join", str(file)],
                env=os.environ | {"TMPDIR": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def family(self) -> list[psutil.Process]:
        """The agent and all its descendants."""
        agent = psutil.Process(self.process.pid)
        return [agent, *agent.children(recursive=True)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Ask the agent to end. Returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


class Hosts:
    """A session on several hosts.

    Attributes:
        session: The part of the session that is in the main process.
        agents: The agent of each host, by name.
    """

    def __init__(
        self, cluster: Cluster, deployment: Deployment, directory: Path, inside: Mapping[str, Sequence[str]]
    ) -> None:
        self.cluster = cluster
        self.deployment = deployment
        self.directory = directory
        self.inside = inside
        self.agents: dict[str, AgentProcess] = {}
        self._count = 0
        self.session: Session

    @property
    def supervisor(self) -> Supervisor:
        return self.session.supervisor

    def start_agent(self, name: str) -> AgentProcess:
        """Invite a host and start its agent."""
        self._count += 1
        place = self.directory / f"{name}{self._count}"
        self.agents[name] = AgentProcess(self.cluster.invite(name).text(), place, self.inside.get(name, ()))
        return self.agents[name]

    def invite(self, name: str) -> Invitation:
        return self.cluster.invite(name)


@contextlib.asynccontextmanager
async def waiting(
    config: Config,
    directory: Path,
    digest: Mapping[str, str] | None = None,
    inside: Mapping[str, Sequence[str]] | None = None,
) -> AsyncIterator[Hosts]:
    """A server that waits for its hosts."""
    deployment = resolve(config)
    expected = Expected("", dict(digest or {}), uses_gpus=False, log_level="INFO", log_format="text")
    cluster = Cluster(config.cluster, {name: config.hosts[name] for name in deployment.hosts}, expected)
    hosts = Hosts(cluster, deployment, directory, inside or {})
    try:
        yield hosts
    finally:
        for agent in hosts.agents.values():
            if agent.process.poll() is None:
                agent.kill()
        cluster.close()


@contextlib.asynccontextmanager
async def running_on_hosts(
    config: Config, directory: Path, inside: Mapping[str, Sequence[str]] | None = None
) -> AsyncIterator[Hosts]:
    """Run a session whose workers are on several hosts. Afterwards, no process and no file may be left.

    Args:
        inside: For some hosts, a command that runs the agent's command, for example in a network namespace. The keys
            are the names of the hosts.
    """
    async with waiting(config, directory, inside=inside) as hosts:
        cluster = hosts.cluster
        for name in hosts.deployment.hosts:
            hosts.start_agent(name)
        async with asyncio.timeout(JOIN_SECONDS):
            facts = await cluster.gather()
        supervisor = Supervisor(resolve(config, remote=facts), cluster.link, cluster.members)
        cluster.serve(supervisor.join)
        hosts.session = Session(supervisor)
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                await supervisor.start("no/checkpoint")
            # Some hosts have their own process ids, which are not valid on the main host. So for all hosts except the
            # main host, the list contains the processes of the agents, not the reported ids.
            pids = [supervisor.pids[name] for name, report in supervisor.workers.items() if not report.host]
            pids += [process.pid for agent in hosts.agents.values() for process in agent.family()]
            yield hosts
        finally:
            await supervisor.stop(5.0)
        for name, agent in hosts.agents.items():
            if agent.process.poll() is None:
                assert await asyncio.to_thread(agent.process.wait, SECONDS) == 0, (name, agent.log.read_text())
                assert list(agent.directory.iterdir()) == []
        assert all(gone(pid) for pid in pids)
