"""The process that uses Ray for the main process.

Ray's library changes signal handlers, and ends its process if the head of the cluster is gone for a minute. So the main
process does not load this library. If the driver process ends for any reason, the head ends the actors and releases
their resources, because no actor is detached. If the head is gone, the actors and their agents continue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

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
from omni_pipeline.hosts.ray_probe import Door, probe
from omni_pipeline.os_process import leave_stopping_to_parent, set_title

INSTALL = "Ray is not installed here: install omni-pipeline[ray], on this machine and on every node of the cluster."

_NAMESPACE = "sgl-omni"

# Maximum time, in seconds, in which Ray reserves resources that are free.
_RESERVE_SECONDS = 3.0

# Maximum time, in seconds, from the reservation to the start of an agent. It includes the start of a Ray worker.
_START_SECONDS = 60.0

# Maximum time, in seconds, for all actors to end at the end of this process.
_END_SECONDS = 15.0

# A label of every node, whose value is the node's id.
_NODE_ID = "ray.io/node-id"


class _RefusedError(Exception):
    """The cluster cannot be used. The message is a sentence for the operator."""


class _NoRoomError(Exception):
    """No node can run an agent now. The message is a sentence for the operator."""


class _Room(Struct):
    """Reserved resources on one node."""

    group: Any
    node: str


class Channel:
    """Sends messages to the main process."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def send(self, message: FromDriver) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._file.write(msgspec.json.encode(message) + b"\n")


class Driver:
    """Starts and watches the actors.

    Args:
        channel: Sends the reports on the hosts to the main process.
        main_node: Ray's id of the node on which this process runs.
    """

    def __init__(self, channel: Channel, main_node: str) -> None:
        self._channel = channel
        self._main_node = main_node
        self._nodes: dict[str, str] = {}
        self._actors: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Carry out orders until standard input ends. At the end, there are no actors and no placement groups."""
        orders = asyncio.StreamReader(limit=2**20)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer)
        decoder = msgspec.json.Decoder(ToDriver)
        while line := await orders.readline():
            order = decoder.decode(line)
            assert isinstance(order, Place)
            task = asyncio.ensure_future(self._run(order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await self._end()

    async def _run(self, order: Place) -> None:
        """Run the agent of a host until it ends."""
        import ray

        try:
            room = await asyncio.to_thread(self._reserve, order)
        except _NoRoomError as error:
            self._channel.send(NoRoom(order.host, str(error)))
            return
        except Exception as error:  # Ray raises errors of many types
            self._channel.send(Ended(order.host, f"Ray cannot reserve a node ({error!r})."))
            return
        self._nodes[order.host] = room.node
        reason = "The server is shutting down."
        try:
            actor = self._actors[order.host] = _start_keeper(order, room)
            async with asyncio.timeout(_START_SECONDS):
                address, pid = await actor.where.remote()
            self._channel.send(Placed(order.host, address, pid))
            reason = await actor.wait.remote()
        except ray.exceptions.RayError as error:
            reason = _sentence(error)
        except TimeoutError:
            reason = f"Ray has not started the actor of the agent within {_START_SECONDS:.0f} s."
        finally:
            await asyncio.to_thread(self._release, order.host, room)
            self._channel.send(Ended(order.host, reason))

    def _reserve(self, order: Place) -> _Room:
        """Reserve resources on the most suitable node.

        Raises:
            _NoRoomError: there is no suitable node, or the resources of all suitable nodes are in use.
        """
        import ray
        from ray.util import placement_group, placement_group_table, remove_placement_group

        fitting = [node["NodeID"] for node in ray.nodes() if _fits(node, order)]
        if not fitting:
            raise _NoRoomError(f"No node of the Ray cluster has {_needs(order)}.")
        for nodes in self._choices(order.host, fitting):
            group = placement_group(
                [order.resources],
                strategy="STRICT_PACK",
                bundle_label_selector=[{**order.labels, _NODE_ID: f"in({','.join(nodes)})"}],
            )
            if group.wait(_RESERVE_SECONDS):
                return _Room(group, placement_group_table(group)["bundles_to_node_id"][0])
            remove_placement_group(group)
        raise _NoRoomError(
            f"Every suitable node of the Ray cluster is in use: host {order.host} needs {_needs(order)}."
        )

    def _choices(self, host: str, fitting: Sequence[str]) -> Iterator[list[str]]:
        """Sets of nodes to try, the best set first: nodes without another agent, then other nodes. The main host's node
        is used only if no other node fits.
        """
        others = [node for node in fitting if node != self._main_node] or list(fitting)
        occupied = {node for name, node in self._nodes.items() if name != host}
        free = [node for node in others if node not in occupied]
        yield from (nodes for nodes in (free, others) if nodes)

    def _release(self, host: str, room: _Room) -> None:
        import ray
        from ray.util import remove_placement_group

        actor = self._actors.pop(host, None)
        if actor is not None:
            ray.kill(actor)
        remove_placement_group(room.group)
        self._nodes.pop(host, None)

    async def _end(self) -> None:
        """End all agents, and wait until nothing is left of them."""
        # If the head of the cluster is gone, calls of Ray block. Then the timer ends this process.
        deadline = threading.Timer(_END_SECONDS, os._exit, (1,))
        deadline.daemon = True
        deadline.start()
        for actor in self._actors.values():
            actor.stop.remote()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_END_SECONDS / 2)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _start_keeper(order: Place, room: _Room) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from omni_pipeline.hosts.ray_keeper import Keeper

    resources = dict(order.resources)
    # three threads: one waits for the agent's end while others answer questions and stop the agent
    return ray.remote(max_concurrency=3, max_restarts=0, max_task_retries=0)(Keeper).options(
        num_cpus=resources.pop("CPU", 0),
        num_gpus=resources.pop("GPU", 0),
        resources=resources,
        scheduling_strategy=PlacementGroupSchedulingStrategy(room.group, placement_group_bundle_index=0),
    ).remote(order.invitation)  # fmt: skip


def _fits(node: dict[str, Any], order: Place) -> bool:
    """Whether a node could run an agent if nothing else ran there."""
    return (
        node["Alive"]
        and all(node["Labels"].get(name) == value for name, value in order.labels.items())
        and all(node["Resources"].get(name, 0) >= amount for name, amount in order.resources.items())
    )


def _needs(order: Place) -> str:
    parts = [f"{amount:g} {name}" for name, amount in order.resources.items()]
    return " and ".join([*parts, *(f"the label {name}={value}" for name, value in order.labels.items())])


def _sentence(error: Exception) -> str:
    """The cause of an error of Ray, as a sentence. The last line of the error's text begins with the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    cause = lines[-1].partition(". ")[0].rstrip(".")
    return f"{cause[:1].upper()}{cause[1:]}."


def _connect(order: Connect) -> str:
    """Connect to the cluster, and check that strangers cannot use it. Returns Ray's id of this node.

    Raises:
        _RefusedError: there is no such cluster, Ray is not installed, or the cluster accepts everyone.
    """
    try:
        import ray
    except ImportError:
        raise _RefusedError(INSTALL) from None
    try:
        ray.init(
            address=order.address,
            namespace=_NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError and others
        if isinstance(error, ray.exceptions.AuthenticationError) or _is_locked(order.address):
            raise _RefusedError(
                "The Ray cluster does not accept this machine's token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH as on the nodes of the cluster."
            ) from None
        raise _RefusedError(
            f"Cannot connect to the Ray cluster at {order.address}: {_sentence(error)} This machine must be a node of "
            "the cluster; to add a node, run `ray start` on it."
        ) from error
    context = ray.get_runtime_context()
    _check_door(probe(context.gcs_address), context.gcs_address, order.unauthenticated)
    return str(context.get_node_id())


def _check_door(door: Door, address: str, unauthenticated: bool) -> None:
    """Raises _RefusedError if the cluster may accept everyone and the operator has not allowed this, or if this process
    would refuse the messages of the cluster.
    """
    if door is not Door.LOCKED and not unauthenticated:
        found = "accepts clients without a token" if door is Door.OPEN else "does not say whether it needs a token"
        raise _RefusedError(
            f"The Ray cluster at {address} {found}, so everybody who reaches its ports can run programs on its nodes: "
            "start the cluster with RAY_AUTH_MODE=token, or set cluster.ray_unauthenticated=true if only trusted users "
            "reach these ports."
        )
    # Ray itself sets RAY_AUTH_MODE to "token" if it finds a token. With this value, this process would refuse the
    # messages of a cluster without tokens.
    if door is Door.OPEN and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise _RefusedError(
            f"This machine has a token for Ray, but the Ray cluster at {address} uses none: set RAY_AUTH_MODE=disabled."
        )


def _is_locked(address: str) -> bool:
    """Whether the cluster at this address requires a token. False for the address ``auto``, which is not tested."""
    return address != "auto" and probe(address) is Door.LOCKED


def main() -> None:
    leave_stopping_to_parent()
    set_title("ray driver")
    channel = Channel(os.dup(sys.stdout.fileno()))
    # Ray prints to standard output and standard error. This output is dropped, because the messages to the main process
    # contain everything that an operator needs.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0) as orders:  # a buffer would read the next line too
        order = msgspec.json.decode(orders.readline(), type=Connect)
    try:
        node = _connect(order)
    except _RefusedError as error:
        channel.send(NotConnected(str(error)))
        sys.exit(1)
    leave_stopping_to_parent()  # again, because Ray has changed the handlers
    import ray

    os.dup2(silence, sys.stderr.fileno())
    channel.send(Connected(ray.cluster_resources().get("GPU", 0)))
    asyncio.run(Driver(channel, node).serve())
    ray.shutdown()


if __name__ == "__main__":
    main()
