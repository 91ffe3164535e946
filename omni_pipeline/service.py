"""Runs a service in the main process, from the first checks until the last process has ended."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from omni_pipeline.config import trace_target
from omni_pipeline.config.schema import Config, Server
from omni_pipeline.contract.graph import load_object
from omni_pipeline.deployment.checkpoint import find_checkpoint
from omni_pipeline.deployment.prepare import free_memory, prepare
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.kernels import toolchain
from omni_pipeline.supervision.fleet import StartProgress
from omni_pipeline.supervision.pipeline import Supervisor

# The function that serves a running pipeline over HTTP until `stopping` is set. The function is loaded by name at run
# time, so that the framework does not import the gateway.
GATEWAY = "gateway.serving.server:run"

GatewayRun: TypeAlias = Callable[..., Awaitable[None]]

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
        gateway: ``package.module:function`` that is called as ``await run(pipeline, server, model_path=…,
            checkpoint=…, stages=…, trace=…, listen_socket=…, ready=…, stopping=…)`` while the workers load, with the
            socket already listening. It calls `ready` when it has answered a first request, and is cancelled when the
            workers cannot load.

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
    toolchain.check(deployment.workers)
    trace_target.prepare(deployment.trace)
    with listen(deployment.server) as listen_socket:
        display.begin(deployment)
        for note in (*deployment.layout, *deployment.notes):
            display.note(note)
        address = url(deployment.server.host, listen_socket)
        model_path, deployment = check_model(deployment, display)
        supervisor = Supervisor(deployment)
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
            await supervisor.stop()


def listen(server: Server) -> socket.socket:
    """A listening socket for `server`. It is opened before loading begins. Raises StartupError."""
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
                f"Port {server.port} on {server.host} is in use: stop what listens there, or choose another "
                "with --port (0 takes a free one)."
            ) from error
        reason = error.strerror or str(error)
        raise StartupError(f"Cannot listen on {server.host} port {server.port}: {reason}.") from error


def url(host: str, listen_socket: socket.socket) -> str:
    """The URL at which a client on this machine reaches the server."""
    port = listen_socket.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def check_model(deployment: Deployment, display: Display) -> tuple[str, Deployment]:
    """Check the checkpoint. Returns its directory, and the deployment with memory divided between the stages.

    Raises:
        StartupError: the checkpoint is missing, incomplete or too large.
    """
    spec = deployment.graph.checkpoint
    if spec is None:
        return deployment.model_path, deployment
    checkpoint = find_checkpoint(deployment.model_path, spec, display.note)
    prepared = prepare(deployment, checkpoint, free_memory(deployment.gpus))
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
    """Await `serving` and `starting`. Calls `loaded` when `starting` has ended, or cancels `starting` if `stopping` is
    set first.
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
