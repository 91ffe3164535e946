"""Runs a Ray cluster whose nodes are raylets on this machine, and services whose hosts Ray starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec import structs

from omni_pipeline.config.schema import Cluster as ClusterConfig
from omni_pipeline.config.schema import Config, GroupConfig, HostConfig
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.hosts.ray_hosts import RayHosts
from omni_pipeline.service import open_ray_hosts
from omni_pipeline.supervision.pipeline import Supervisor
from tests.omni_pipeline.hosts.agents import LEASE_SECONDS, MAIN_ADDRESS, Hosts, waiting
from tests.omni_pipeline.sessions import SECONDS, Session, echo_config, gone

ROOT = Path(__file__).parents[3]

# A cluster that takes little memory, needs a token, and notices within two seconds that a raylet has been killed.
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",  # a node that is only slow must not count as dead
    "RAY_health_check_failure_threshold": "3",
    "RAY_enable_metrics_collection": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # attempts to connect, once a second
}
# Maximum time, in seconds, to start or to end a node.
NODE_SECONDS = 60.0


class RayCluster:
    """A cluster with a head, which is the node of the main host. See `ray_cluster_process`.

    Args:
        port: Port of the head; None for any free port.

    Attributes:
        address: Address and port of the head.
    """

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self._agents_directory = directory / "a"
        self._agents_directory.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.omni_pipeline.hosts.ray_cluster_process", *([str(port)] if port else [])],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(self._agents_directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.address = str(self._read())

    def order(self, name: str, value: object = None) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, value]).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    async def add_node(self, **arguments: object) -> int:
        """Add a node. Returns its number."""
        return int(await asyncio.to_thread(self.order, "add", arguments))

    async def kill_node(self, node: int) -> None:
        """Kill all processes of Ray that belong to a node."""
        await asyncio.to_thread(self.order, "kill", node)

    async def nothing_left(self) -> None:
        """Wait until the cluster has no actors, no placement groups, no agents and no files of agents."""
        async with asyncio.timeout(SECONDS):
            while (  # noqa: ASYNC110 - no event tells about these processes
                await asyncio.to_thread(self.order, "left") or agents() or [*self._agents_directory.iterdir()]
            ):
                await asyncio.sleep(0.1)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(NODE_SECONDS) == 0

    def _read(self) -> object:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], NODE_SECONDS)[0], "Ray does not answer"
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def ray_cluster(port: int | None = None, **settings: str) -> Iterator[RayCluster]:
    """A cluster that accepts only clients with a token. At the end, no file and no process of Ray is left.

    Args:
        port: Port of the head; None for any free port.
        settings: Environment variables in addition to `SETTINGS`.
    """
    directory = Path(tempfile.mkdtemp(prefix="omni-r-"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | settings).items():
            patch.setenv(name, value)
        patch.setenv("RAY_TMPDIR", str(directory))
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = RayCluster(directory, port)
        try:
            yield cluster
        finally:
            cluster.close()
            shutil.rmtree(directory)
    started = [pid for pid in psutil.pids() if _is_rays(pid, directory)]
    assert started == []


def _is_rays(pid: int, directory: Path) -> bool:
    """Whether the process is a raylet of the cluster in `directory`. Other programs may run clusters of their own."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return "raylet" in " ".join(process.cmdline()) and process.environ().get("RAY_TMPDIR") == str(directory)
    return False


def agents() -> dict[int, psutil.Process]:
    """The agents that Ray has started in the cluster of this test, by process id."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent is None or parent.environ().get("RAY_TMPDIR") != os.environ["RAY_TMPDIR"]:
                continue
            if "ray::Keeper" in " ".join(parent.cmdline()):
                found[process.pid] = process
    return found


def on_ray(
    address: str, *, hosts: Mapping[str, HostConfig], unauthenticated: bool = False, **groups: GroupConfig
) -> Config:
    """The echo pipeline with these groups. Ray starts the agents of the hosts."""
    cluster = ClusterConfig(
        listen=MAIN_ADDRESS,
        port=0,
        lease_seconds=LEASE_SECONDS,
        ray_address=address,
        ray_unauthenticated=unauthenticated,
    )
    return structs.replace(echo_config(), groups=groups, hosts=dict(hosts), cluster=cluster)


@contextlib.asynccontextmanager
async def opened(config: Config, directory: Path) -> AsyncIterator[tuple[Hosts, RayHosts]]:
    """A server that waits for its hosts, while Ray starts them."""
    async with waiting(config, directory) as hosts:
        ray_hosts = await open_ray_hosts(config, hosts.deployment, hosts.cluster)
        assert ray_hosts is not None
        try:
            yield hosts, ray_hosts
        finally:
            await ray_hosts.close()


@contextlib.asynccontextmanager
async def running_on_ray(config: Config, directory: Path) -> AsyncIterator[Hosts]:
    """Run a session on several hosts. Ray starts all hosts except the main host."""
    async with opened(config, directory) as (hosts, ray_hosts):
        async with asyncio.timeout(2 * SECONDS):
            facts = await hosts.cluster.gather()
        supervisor = Supervisor(resolve(config, remote=facts), hosts.cluster.link, hosts.cluster.members)
        hosts.cluster.serve(supervisor.join)
        hosts.session = Session(supervisor)
        try:
            async with asyncio.timeout(2 * SECONDS):
                await supervisor.start("no/checkpoint")
            yield hosts
        finally:
            pids = [*supervisor.pids.values()]
            await ray_hosts.release()
            await supervisor.stop(5.0)
    assert all(gone(pid) for pid in pids)
