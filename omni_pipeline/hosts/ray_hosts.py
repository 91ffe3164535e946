"""Lets Ray start the agents of other hosts, and start them again after they have ended.

Ray chooses a node for each host and reserves the node's resources. Everything else is as if an operator had started the
agents by hand: each start of an agent has a new invitation, and the agent joins through the door (see `cluster`). No
message of a worker passes through Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec
from msgspec import Struct

from omni_pipeline.errors import StartupError
from omni_pipeline.hosts.ray_messages import (
    Connect,
    Connected,
    Ended,
    FromDriver,
    NoRoom,
    NotConnected,
    Place,
    Placed,
    ToDriver,
)
from omni_pipeline.supervision.restart_timing import Restarts

# Maximum time, in seconds, for the connection to Ray.
CONNECT_SECONDS = 90.0

# If no node can run a host, the server tries again after this number of seconds.
ROOM_SECONDS = 5.0

# Maximum time, in seconds, in which the driver ends all agents.
_END_SECONDS = 20.0

Outcome: TypeAlias = Ended | NoRoom

logger = logging.getLogger(__name__)


class Demand(Struct, frozen=True):
    """The requirements of a host on its Ray node.

    Attributes:
        labels: Labels that the node must have.
        resources: Additional resources to reserve, by Ray's names.
        gpus: Number of GPUs to reserve.
        gpus_if_any: Whether to reserve the GPUs only if the cluster has any GPU.
    """

    labels: dict[str, str] = {}
    resources: dict[str, float] = {}
    gpus: int = 0
    gpus_if_any: bool = False


class RayHosts:
    """The agents that Ray runs for one service. Call `open`, and `close` at the end.

    Args:
        address: Address of the Ray cluster, or ``auto``.
        unauthenticated: Whether the cluster may accept everyone.
        demands: What each host needs, by the host's name.
        invite: Returns the text of a new invitation for a host.
    """

    def __init__(
        self, address: str, unauthenticated: bool, demands: Mapping[str, Demand], invite: Callable[[str], str]
    ) -> None:
        self._connect = Connect(address, unauthenticated)
        self._demands = demands
        self._invite = invite
        self._driver: _DriverProcess | None = None
        self._connecting = asyncio.Lock()
        self._restarts = {name: Restarts() for name in demands}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect to Ray, and begin to start the agents.

        Raises:
            StartupError: Ray is not installed, the cluster does not answer, or everybody can use it.
        """
        await self._connected()
        self._tasks = [asyncio.ensure_future(self._keep(name)) for name in self._demands]

    async def release(self) -> None:
        """Do not start agents any more. The running agents continue."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End all agents. Afterwards, Ray has no actors and no placement groups of this service."""
        await self.release()
        if self._driver is not None:
            await self._driver.close()
            self._driver = None

    async def _keep(self, name: str) -> None:
        """Start the agent of a host, and start it again each time it has ended."""
        explained = ""
        while True:
            try:
                driver = await self._connected()
                outcome = await driver.place(self._order(name, driver.gpus))
            except StartupError as error:
                outcome = NoRoom(name, str(error))
            if isinstance(outcome, NoRoom):
                if outcome.reason != explained:
                    logger.warning(
                        "the agent of host %s has no node to run on. %s The server tries again.", name, outcome.reason
                    )
                explained, pause = outcome.reason, ROOM_SECONDS
            else:
                pause = self._restarts[name].ended(time.monotonic())
                logger.error(
                    "the agent of host %s has ended, and is started again in %.1f s. %s", name, pause, outcome.reason
                )
                explained = ""
            await asyncio.sleep(pause)

    def _order(self, name: str, gpus_in_cluster: float) -> Place:
        demand = self._demands[name]
        resources = {"CPU": 1.0}
        if demand.gpus and (gpus_in_cluster or not demand.gpus_if_any):
            resources["GPU"] = demand.gpus
        resources |= demand.resources
        return Place(name, self._invite(name), demand.labels, resources)

    async def _connected(self) -> _DriverProcess:
        """The driver. Starts a new one if there is none.

        Raises:
            StartupError: see `open`.
        """
        async with self._connecting:
            if self._driver is None or self._driver.ended:
                if self._driver is not None:
                    await self._driver.close()
                self._driver = await _DriverProcess.start(self._connect, self._placed)
            return self._driver

    def _placed(self, message: Placed) -> None:
        self._restarts[message.host].ready(time.monotonic())
        logger.info("Ray has started the agent of host %s on node %s (pid %d)", message.host, message.node, message.pid)


class _DriverProcess:
    """A process that runs `ray_driver`.

    Attributes:
        gpus: Number of GPUs in the cluster.
    """

    def __init__(self, process: Process, placed: Callable[[Placed], None]) -> None:
        self.gpus = 0.0
        self._process = process
        self._placed = placed
        self._decoder = msgspec.json.Decoder(FromDriver)
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, connect: Connect, placed: Callable[[Placed], None]) -> _DriverProcess:
        """Start a driver that is connected to the cluster.

        Raises:
            StartupError: the driver cannot connect.
        """
        command = (sys.executable, "-m", "omni_pipeline.hosts.ray_driver")
        driver = cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE), placed)
        try:
            driver._send(connect)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    answer = await driver._receive()
            except TimeoutError:
                answer = NotConnected(f"The Ray cluster at {connect.address} does not answer.")
            if not isinstance(answer, Connected):
                reason = (
                    answer.reason
                    if isinstance(answer, NotConnected)
                    else "The process that connects to the Ray cluster ended unexpectedly."
                )
                raise StartupError(reason)
        except BaseException:
            driver._kill()
            await driver._process.wait()
            raise
        driver.gpus = answer.gpus
        driver._reader = asyncio.ensure_future(driver._read())
        return driver

    @property
    def ended(self) -> bool:
        return self._reader is None or self._reader.done()

    async def place(self, order: Place) -> Outcome:
        """Start the agent of a host. Returns when the agent has ended, or at once if there is no room."""
        if self.ended:
            return Ended(order.host, _LOST)
        outcome = self._waiting[order.host] = asyncio.get_running_loop().create_future()
        self._send(order)
        try:
            return await outcome
        finally:
            self._waiting.pop(order.host, None)

    async def close(self) -> None:
        """End the driver and all agents that it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            logger.error(
                "Ray has not ended the agents in time; each agent ends by itself when it cannot reach the server"
            )
            self._kill()
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        """Pass the driver's messages on until the driver ends."""
        while (message := await self._receive()) is not None:
            match message:
                case Placed():
                    self._placed(message)
                case NoRoom(host=host) | Ended(host=host):
                    waiting = self._waiting.get(host)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
        for host, waiting in self._waiting.items():
            if not waiting.done():
                waiting.set_result(Ended(host, _LOST))

    def _send(self, message: ToDriver) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")

    async def _receive(self) -> FromDriver | None:
        """The next message; None if the driver has ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return self._decoder.decode(line) if line.endswith(b"\n") else None

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


_LOST = "The connection to the Ray cluster has ended."
