"""Serves the gateway on a socket until a stop is requested."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import socket
from collections.abc import Callable, Collection
from pathlib import Path

from aiohttp import web

from gateway.answers import audio_formats
from gateway.api.voices import Voices, read_voices
from gateway.http.connections import GRACE_SECONDS, Connection
from gateway.pipeline import Pipeline
from gateway.serving.app import Gateway
from gateway.serving.warmup import warm_up
from gateway.traces.sinks import sinks
from gateway.traces.traces import Traces
from omni_pipeline.config.schema import Server, Trace
from omni_pipeline.errors import unavailable
from stages.routes import SPEECH

log = logging.getLogger(__name__)

# At shutdown, clients have this number of seconds to read the end of their answers. After that, connections have the
# same number of seconds to close. aiohttp may wait for the full time even if a connection is idle.
_CLOSE_SECONDS = 1.0


async def run(
    pipeline: Pipeline,
    server: Server,
    *,
    model_path: str,
    checkpoint: str,
    stages: Collection[str],
    trace: Trace,
    listen_socket: socket.socket,
    ready: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Serve `pipeline` over HTTP until `stopping` is set; then finish the requests in progress and return.

    This function sends a warm-up request with all modalities. `/health` answers 503 until the request has been
    answered. When a worker is lost, `/health` answers 503 again, until a warm-up request has passed through the new
    worker.

    Args:
        pipeline: The stages, which may still be loading. `connect` must not have been called on this object before.
        server: Configuration of the server.
        model_path: Configured path of the checkpoint. If `server` contains no model name, the last part of this path is
            the name.
        checkpoint: Directory of the checkpoint, whose ``config.json`` lists the voices.
        stages: Names of the stages that run. If `routes.SPEECH` is among them, the server speaks.
        trace: Configuration of the traces of requests.
        listen_socket: Bound socket to listen on; it is closed at the end.
        ready: Called once the first warm-up request has been answered.
        stopping: Set from outside to end the service. After that, new requests get 503. Requests in progress have
            ``server.drain_seconds`` to finish, and then end with 503 too. Cancelling this function ends all requests at
            once.
    """
    voices = read_voices(Path(checkpoint)) if SPEECH in stages else None
    traces = Traces(sinks(trace), lambda: pipeline.pids.keys())
    pipeline.trace(traces.noted)
    gateway = Gateway(pipeline, server, model_path=model_path, voices=voices, traces=traces)
    # aiohttp cancels a handler when its client has left. Otherwise the handler would continue to generate the answer.
    runner = web.AppRunner(gateway.app, handler_cancellation=True, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
    await runner.setup()
    assert runner.server is not None
    connect = functools.partial(
        Connection,
        runner.server,
        server.limits.connections,
        # for a client that reads an answer too slowly, the limits of the request close the connection earlier
        server.limits.request_seconds + GRACE_SECONDS,
        access_log=None,
        auto_decompress=False,  # a small compressed body could become very large when decompressed
        keepalive_timeout=server.limits.idle_seconds,
    )
    listening = await asyncio.get_running_loop().create_server(connect, sock=listen_socket)
    hurry = True  # stays True if `run` is cancelled before `_drain` ends
    try:
        async with asyncio.TaskGroup() as tasks:  # a bug in the warm-up ends the server, so that the bug is noticed
            warming = tasks.create_task(_keep_warm(gateway, voices, ready))
            await stopping.wait()
            warming.cancel()
        await _drain(gateway, server.drain_seconds)
        hurry = False
    finally:
        listening.close()
        await _end_requests(gateway)
        await traces.close(hurry=hurry)
        await runner.cleanup()


async def _drain(gateway: Gateway, seconds: float) -> None:
    """Wait until the requests in progress have ended. Meanwhile, new requests get 503, and `/health` reports the
    reason.
    """
    gateway.health.stopping = True
    gateway.admission.close()
    gateway.realtime.stop()
    try:
        async with asyncio.timeout(seconds):
            await gateway.admission.empty()
            await gateway.realtime.empty()
    except TimeoutError:
        log.warning("ending the requests that are still in progress after %g s", seconds)


async def _end_requests(gateway: Gateway) -> None:
    """End the requests in progress with an error. Wait until these requests have ended and the error has been sent, but
    at most `_CLOSE_SECONDS`.
    """
    gateway.health.stopping = True
    gateway.admission.close()
    gateway.realtime.stop()
    gateway.collector.fail_all(unavailable("The server is shutting down.", code="shutting_down").info)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await gateway.admission.empty()
            await gateway.realtime.empty()


async def _keep_warm(gateway: Gateway, voices: Voices | None, ready: Callable[[], None]) -> None:
    """Send a warm-up request through all workers, and again after each replacement of a worker."""
    if voices is not None:
        await asyncio.to_thread(audio_formats.prepare)
    numbers = itertools.count(1)
    voice = voices.default if voices else None
    await warm_up(gateway.collector, voice, numbers)
    while gateway.health.report().status == "degraded":  # more replicas have to be warmed up
        await warm_up(gateway.collector, voice, numbers)
    ready()
    while True:
        await warm_up(gateway.collector, voice, numbers)
        log.info("a warm-up request has gone through all workers again; the server is ready")
