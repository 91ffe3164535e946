"""A server and its agents continue for some time if the head of their Ray cluster ends. Then the nodes end, and the
agents with them. The next head at the same address starts the agents again.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from omni_pipeline.config.schema import GroupConfig, HostConfig
from omni_pipeline.os_process import free_port
from tests.omni_pipeline.hosts.agents import until
from tests.omni_pipeline.hosts.ray_clusters import on_ray, ray_cluster, running_on_ray
from tests.omni_pipeline.hosts.test_ray import answered, restarted, the_agent
from tests.omni_pipeline.sessions import SECONDS, gone

pytestmark = pytest.mark.usefixtures("run_root")

# Ray's drivers and nodes end when they have not reached the head for this number of seconds. Ray's default is 60. Here,
# the driver ends first, so that the test can tell the two apart.
PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
DRIVER_SECONDS, NODE_SECONDS = "2", "8"


async def test_the_head_ends_and_another_head_begins(
    hosts_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    both = GroupConfig(replicas=2, hosts=["main", "b"])
    with ray_cluster(port, **{PATIENCE: NODE_SECONDS}) as cluster:
        await cluster.add_node()
        monkeypatch.setenv(PATIENCE, DRIVER_SECONDS)
        config = on_ray(cluster.address, hosts={"b": HostConfig()}, shout=both)
        async with running_on_ray(config, hosts_dir) as hosts:
            supervisor = hosts.supervisor
            here, there = supervisor.pids["shout@0"], supervisor.pids["shout@1"]
            assert {await answered(hosts, f"r{number}") for number in range(4)} == {here, there}

            agent = the_agent()
            await asyncio.to_thread(cluster.order, "end head")
            await until(lambda: "The connection to the Ray cluster has ended" in caplog.text)
            assert {await answered(hosts, f"s{number}") for number in range(4)} == {here, there}

            await until(lambda: "host b is lost" in caplog.text)
            assert {await answered(hosts, f"u{number}") for number in range(4)} == {here}
            assert await asyncio.to_thread(gone, agent.pid, SECONDS)

            with ray_cluster(port, **{PATIENCE: NODE_SECONDS}) as successor:
                await successor.add_node()
                await restarted(hosts, "shout@1", there)
                there = supervisor.pids["shout@1"]
                assert {await answered(hosts, f"t{number}") for number in range(4)} == {here, there}
                agent = the_agent()

            # Without a head, the server ends as usual.
            begin = time.monotonic()
        assert time.monotonic() - begin < SECONDS
        assert gone(agent.pid)
