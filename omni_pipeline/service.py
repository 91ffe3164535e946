"""Runs a service in the main process, from the first checks until the last process has ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias, TypeVar

from omni_pipeline.config import trace_target
from omni_pipeline.config.schema import Config, Server
from omni_pipeline.contract.graph import load_object
from omni_pipeline.deployment.checkpoint import find_checkpoint
from omni_pipeline.deployment.gpu_demand import gpus_needed, may_do_without
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.deployment.prepare import free_memory, prepare
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.hosts.checkpoint_digest import digest
from omni_pipeline.hosts.cluster import Cluster, Expected
from omni_pipeline.hosts.ray_hosts import Demand, RayHosts
from omni_pipeline.kernels import toolchain
from omni_pipeline.supervision.pipeline import Supervisor
from omni_pipeline.supervision.worker_lifecycle import StartProgress
from omni_pipeline.supervision.worker_state import OWN_HOST

# The function that serves a running pipeline over HTTP until `stopping` is set. The function is loaded by name at run
# time, so that the framework does not import the gateway.
GATEWAY = "gateway.serving.server:run"

GatewayRun: TypeAlias = Callable[..., Awaitable[None]]
Result = TypeVar("Result")

# Maximum number of connections that wait to be accepted.
BACKLOG = 128


class Display(Protocol):
    """Shows the progress of a start to the operator."""

    def begin(self, deployment: Deployment) -> None:
        """Show that the configuration is valid and that loading begins."""

    def note(self, text: str) -> None:
        """Show a remark."""

    def progress(self, event: StartProgress) -> None:
        """Show that the libraries are imported, or that another worker is ready."""

    def loaded(self, url: str, seconds: float) -> None:
        """Show that all workers have loaded, and that the server listens at `url`."""

    def ready(self, url: str, seconds: float) -> None:
        """Show that the server has answered a first request."""

    def stopping(self) -> None:
        """Show that the service begins to stop."""


async def serve(config: Config, display: Display, gateway: str = GATEWAY) -> None:
    """Serve `config` until SIGINT or SIGTERM arrives. A second signal ends all requests and processes at once.

    Args:
        gateway: ``package.module:function`` of the function that serves the API. This function is called while the
            workers load, as ``await run(pipeline, server, model_path=…, checkpoint=…, stages=…, trace=…,
            listen_socket=…, ready=…, stopping=…)``. At that time, the socket already listens. The function calls
            `ready` when it has answered a first request. If the workers cannot load, the call is cancelled.

    Raises:
        StartupError: the service cannot start. All processes and files of the attempt have been removed.
    """
    begin = time.monotonic()
    supervisor: Supervisor | None = None

    def hurry() -> None:
        if supervisor is not None:
            supervisor.kill()

    stopping = _stop_on_signals(hurry, display)
    deployment = resolve(config)
    trace_target.prepare(deployment.trace)
    async with contextlib.AsyncExitStack() as cleanup:
        listen_socket = cleanup.enter_context(listen(deployment.server))
        cluster: Cluster | None = None
        ray_hosts: RayHosts | None = None
        facts: Mapping[str, HostFacts] = {}
        if deployment.hosts:
            cluster = open_cluster(config, deployment, display)
            cleanup.callback(cluster.close)
            ray_hosts = await open_ray_hosts(config, deployment, cluster)
            if ray_hosts is not None:
                cleanup.push_async_callback(ray_hosts.close)
            gathered = await _until(cluster.gather(), stopping)
            if gathered is None:
                return
            facts = gathered
            deployment = resolve(config, remote=facts)
        toolchain.check(deployment.workers_on(OWN_HOST))
        display.begin(deployment)
        for note in (*deployment.layout, *deployment.notes):
            display.note(note)
        address = url(deployment.server.host, listen_socket)
        model_path, deployment = check_model(deployment, display, facts)
        if cluster is None:
            supervisor = Supervisor(deployment)
        else:
            supervisor = Supervisor(deployment, cluster.link, cluster.members)
            cluster.serve(supervisor.join)
        try:
            run: GatewayRun = load_object(gateway)
            serving = run(
                supervisor,
                deployment.server,
                model_path=deployment.model_path,
                checkpoint=model_path,
                stages=deployment.graph.stage_names,
                trace=deployment.trace,
                listen_socket=listen_socket,
                ready=lambda: display.ready(address, time.monotonic() - begin),
                stopping=stopping,
            )
            starting = supervisor.start(model_path, display.progress)
            await _both(serving, starting, stopping, lambda: display.loaded(address, time.monotonic() - begin))
        finally:
            if ray_hosts is not None:
                await ray_hosts.release()
            await supervisor.stop()


def open_cluster(config: Config, deployment: Deployment, display: Display) -> Cluster:
    """Begin to wait for the other hosts of a deployment.

    Raises:
        StartupError: the checkpoint is missing or incomplete, or the address for other hosts cannot be used.
    """
    spec = deployment.graph.checkpoint
    model_path = find_checkpoint(deployment.model_path, spec, display.note).path if spec is not None else ""
    expected = Expected(
        model_path=model_path,
        digest=digest(model_path),
        uses_gpus=config.device != "cpu",
        log_level=deployment.log_level,
        log_format=deployment.log_format,
    )
    cluster = Cluster(config.cluster, {name: config.hosts[name] for name in deployment.hosts}, expected)
    for name in deployment.hosts:
        how = "Ray starts the agent of this host"
        if config.cluster.ray_address is None:
            how = f"to let this host join, run: sgl-omni invite {name} | ssh {name} sgl-omni join"
        display.note(f"waiting for the host {name} at {cluster.address}; {how}")
    return cluster


async def open_ray_hosts(config: Config, deployment: Deployment, cluster: Cluster) -> RayHosts | None:
    """Let Ray start the agents of the other hosts of a deployment. Returns None if the configuration contains no Ray
    cluster.

    Raises:
        StartupError: the Ray cluster cannot be used.
    """
    address = config.cluster.ray_address
    if address is None:
        return None
    demands = {
        name: Demand(
            labels=config.hosts[name].label,
            resources=config.hosts[name].resources,
            gpus=gpus_needed(config, name),
            gpus_if_any=may_do_without(config, name),
        )
        for name in deployment.hosts
    }
    hosts = RayHosts(address, config.cluster.ray_unauthenticated, demands, lambda name: cluster.invite(name).text())
    await hosts.open()
    return hosts


async def _until(work: Awaitable[Result], stopping: asyncio.Event) -> Result | None:
    """Await `work`. Returns None if `stopping` is set before the end of `work`."""
    task, told = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((task, told), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, told):
            each.cancel()
        await asyncio.gather(task, told, return_exceptions=True)


def listen(server: Server) -> socket.socket:
    """Open a listening socket for `server`, before loading begins. Raises StartupError if the address is unusable."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror as error:
        raise StartupError(f"Cannot listen on {server.host}: {error.strerror}; check --host.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"Port {server.port} on {server.host} is in use: stop the program that listens there, "
                "or choose another port with --port (0 picks a free port)."
            ) from error
        reason = error.strerror or str(error)
        raise StartupError(f"Cannot listen on {server.host} port {server.port}: {reason}.") from error


def url(host: str, listen_socket: socket.socket) -> str:
    """The URL at which a client on this machine reaches the server."""
    port = listen_socket.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def check_model(deployment: Deployment, display: Display, facts: Mapping[str, HostFacts]) -> tuple[str, Deployment]:
    """Check the checkpoint. Returns the checkpoint's directory, and the deployment with memory divided between the
    stages.

    Args:
        facts: The facts of the other hosts, by the host's name.

    Raises:
        StartupError: the checkpoint is missing, incomplete or too large.
    """
    spec = deployment.graph.checkpoint
    if spec is None:
        return deployment.model_path, deployment
    checkpoint = find_checkpoint(deployment.model_path, spec, display.note)
    prepared = prepare(deployment, checkpoint, free_memory(deployment.gpus, facts))
    prepared.refuse()
    for note in prepared.placement.notes:
        display.note(note)
    return checkpoint.path, prepared.sized()


def _stop_on_signals(hurry: Callable[[], None], display: Display) -> asyncio.Event:
    """An event that is set by the first signal. The second signal calls `hurry` and cancels the calling task."""
    stopping = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if stopping.is_set():
            hurry()
            task.cancel()
        else:
            stopping.set()
            display.stopping()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopping


async def _both(
    serving: Awaitable[None], starting: Awaitable[None], stopping: asyncio.Event, loaded: Callable[[], None]
) -> None:
    """Await `serving` and `starting`. Calls `loaded` when `starting` has succeeded. If `serving` ends or `stopping` is
    set before `starting` has ended, cancels `starting`.
    """
    server, starter = asyncio.ensure_future(serving), asyncio.ensure_future(starting)
    told = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((server, starter, told), return_when=asyncio.FIRST_COMPLETED)
        if starter.done():
            starter.result()
            loaded()
        else:
            starter.cancel()
        await server
    finally:
        for task in (server, starter, told):
            task.cancel()
        await asyncio.gather(server, starter, told, return_exceptions=True)
