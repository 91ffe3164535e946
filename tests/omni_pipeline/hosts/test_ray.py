"""Ray starts the agents of hosts, and starts them again after they have ended. Several raylets on this machine are the
nodes of the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from omni_pipeline.config.schema import GroupConfig, HostConfig
from omni_pipeline.errors import StartupError
from omni_pipeline.hosts import ray_hosts
from omni_pipeline.hosts.ray_driver import INSTALL
from tests.omni_pipeline.hosts.agents import Hosts, until
from tests.omni_pipeline.hosts.ray_clusters import RayCluster, agents, on_ray, opened, ray_cluster, running_on_ray
from tests.omni_pipeline.sessions import SECONDS, gone

pytestmark = pytest.mark.usefixtures("run_root")

SENTENCE = "one two three four five"
ON_B = GroupConfig(replicas=1, hosts=["b"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        cluster.order("add", {"labels": {"gpu": "h100"}})
        yield cluster


async def answered(hosts: Hosts, name: str) -> int:
    """Send a request to the pipeline. Returns the process id of the worker of `shout`."""
    answer = await hosts.session.ask(name, SENTENCE)
    assert answer.text == SENTENCE.upper()
    hosts.supervisor.release(name)
    return answer.pids[1]


async def restarted(hosts: Hosts, worker: str, old: int) -> None:
    """Wait until a new process has replaced the process `old` of a worker, and the worker accepts requests again."""
    supervisor = hosts.supervisor
    async with asyncio.timeout(2 * SECONDS):
        await supervisor.until(lambda: supervisor.pids.get(worker, old) != old)
        await supervisor.wait_for(None, None)
        await supervisor.until(lambda: all(replica.up for replica in supervisor.replicas))


def the_agent() -> psutil.Process:
    [agent] = agents().values()
    return agent


async def test_an_agent_that_ends_is_started_again(cluster: RayCluster, hosts_dir: Path) -> None:
    config = on_ray(cluster.address, hosts={"b": HostConfig(label={"gpu": "h100"})}, shout=ON_B)
    async with running_on_ray(config, hosts_dir) as hosts:
        agent = the_agent()
        worker = await answered(hosts, "r0")
        assert agent in psutil.Process(worker).parents()

        agent.kill()
        await restarted(hosts, "shout@0", worker)
        assert the_agent().pid != agent.pid
        worker = await answered(hosts, "r1")

        agent = the_agent()
        actor = agent.parent()
        assert actor is not None
        actor.kill()
        assert gone(agent.pid)
        await restarted(hosts, "shout@0", worker)
        worker = await answered(hosts, "r2")

        # Ray ends all agents if the driver process, which is connected to Ray, ends
        agent = the_agent()
        [driver] = [child for child in psutil.Process().children() if "ray driver" in " ".join(child.cmdline())]
        driver.kill()
        assert gone(agent.pid)
        await restarted(hosts, "shout@0", worker)
        await answered(hosts, "r3")
    await cluster.nothing_left()


async def test_a_host_moves_to_another_node_if_its_node_ends(cluster: RayCluster, hosts_dir: Path) -> None:
    main, spare = cluster.order("head"), await cluster.add_node()
    both = GroupConfig(replicas=2, hosts=["b", "c"])
    async with running_on_ray(
        on_ray(cluster.address, hosts=dict.fromkeys("bc", HostConfig()), shout=both), hosts_dir
    ) as hosts:
        for number in range(4):
            await answered(hosts, f"r{number}")
        nodes = {raylet_of(agent) for agent in agents().values()}
        assert len(nodes) == 2
        assert main not in nodes
        workers = {name: hosts.supervisor.pids[name] for name in ("shout@0", "shout@1")}
        await cluster.kill_node(spare)
        async with asyncio.timeout(SECONDS):
            await hosts.supervisor.until(lambda: not all(report.up for report in hosts.supervisor.hosts))
        [moved] = [name for name, report in zip(workers, hosts.supervisor.hosts, strict=True) if not report.up]
        await restarted(hosts, moved, workers[moved])
        assert len(agents()) == 2
        [remaining] = {raylet_of(agent) for agent in agents().values()}
        assert remaining in nodes
        assert {await answered(hosts, f"s{number}") for number in range(4)} == {
            hosts.supervisor.pids["shout@0"],
            hosts.supervisor.pids["shout@1"],
        }
    await cluster.nothing_left()


def raylet_of(process: psutil.Process) -> int:
    """The process id of the raylet that has started a process."""
    return next(parent.pid for parent in process.parents() if parent.name() == "raylet")


async def test_a_host_without_room_waits_for_a_node(
    cluster: RayCluster, hosts_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_hosts, "ROOM_SECONDS", 0.1)
    config = on_ray(cluster.address, hosts={"b": HostConfig(label={"gpu": "h200"}, resources={"tpu": 2})}, shout=ON_B)
    with caplog.at_level(logging.WARNING):
        async with opened(config, hosts_dir) as (hosts, _):
            await until(lambda: "host b" in caplog.text)
            await asyncio.sleep(1.0)
            [message] = [record.getMessage() for record in caplog.records if "host b" in record.getMessage()]
            assert "No node of the Ray cluster has 1 CPU and 2 tpu and the label gpu=h200." in message
            assert hosts.cluster.missing == ["b"]
            node = await cluster.add_node(labels={"gpu": "h200"}, resources={"tpu": 2})
            async with asyncio.timeout(2 * SECONDS):
                await hosts.cluster.gather()
        # the server has not started, so the agent waits for it, and ends with the actor
        await cluster.nothing_left()
        await cluster.kill_node(node)


SERVER = """
import asyncio, logging, sys
from omni_pipeline.commands.start_log import LogDisplay
from omni_pipeline.config.schema import GroupConfig, HostConfig
from omni_pipeline.service import serve
from tests.omni_pipeline.hosts.ray_clusters import on_ray

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
config = on_ray(sys.argv[1], hosts={"b": HostConfig()}, shout=GroupConfig(replicas=1, hosts=["b"]))
config.server.port = 0
asyncio.run(serve(config, LogDisplay(), gateway="tests.omni_pipeline.plain_gateway:run"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_nothing_is_left_of_a_server_that_ends(
    cluster: RayCluster, run_root: Path, number: signal.Signals
) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, cluster.address, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(2 * SECONDS):
            async for line in server.stdout:
                if line.startswith(b"listening"):
                    break
        assert len(agents()) == 1
        server.send_signal(number)
        async with asyncio.timeout(SECONDS):
            assert await server.wait() == (0 if number == signal.SIGTERM else -number)
    finally:
        if server.returncode is None:
            server.kill()
    await cluster.nothing_left()
    if number == signal.SIGKILL:  # a killed server cannot remove its own directories
        subprocess.run(["find", run_root, "-mindepth", "1", "-delete"], check=True)  # noqa: ASYNC221 - it is short


async def test_a_cluster_that_accepts_everyone_is_refused(
    cluster: RayCluster, hosts_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="omni-r-") as directory:
        monkeypatch.setenv("RAY_TMPDIR", directory)
        start = ["--head", "--port=0", "--num-cpus=2", "--include-dashboard=false", "--block"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        head = subprocess.Popen(  # noqa: ASYNC220 - it starts another server
            [sys.executable, "-m", "ray.scripts.scripts", "start", *start, "--object-store-memory=78643200"],
            env=environment | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": directory},
            stdout=subprocess.DEVNULL,
        )
        try:
            await until((Path(directory) / "ray" / "ray_current_cluster").exists)
            config = on_ray("auto", hosts={"b": HostConfig()}, shout=ON_B)
            # This process has a token, but the cluster is not protected: it also accepts clients without a token.
            with pytest.raises(StartupError, match="accepts clients without a token"):
                async with opened(config, hosts_dir):
                    pass
            config = on_ray("auto", hosts={"b": HostConfig()}, unauthenticated=True, shout=ON_B)
            with pytest.raises(StartupError, match="set RAY_AUTH_MODE=disabled"):
                async with opened(config, hosts_dir):
                    pass
            monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
            async with opened(config, hosts_dir) as (hosts, _), asyncio.timeout(SECONDS):
                await hosts.cluster.gather()
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(SECONDS)


async def test_a_wrong_token_is_refused(cluster: RayCluster, hosts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    config = on_ray(cluster.address, hosts={"b": HostConfig()}, shout=ON_B)
    with pytest.raises(StartupError, match="does not accept this machine's token"):
        async with opened(config, hosts_dir):
            pass


async def test_a_missing_package_is_named(hosts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hosts_dir / "ray.py").write_text("raise ImportError('no Ray here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hosts_dir), os.environ["PYTHONPATH"]]))
    config = on_ray("auto", hosts={"b": HostConfig()}, shout=ON_B)
    with pytest.raises(StartupError) as refused:
        async with opened(config, hosts_dir):
            pass
    assert str(refused.value) == INSTALL
