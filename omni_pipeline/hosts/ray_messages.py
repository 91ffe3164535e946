"""The messages between the main process and its Ray driver. Each message is one line of JSON.

The main process sends `Connect`, and gets `Connected` or `NotConnected`. Then it sends `Place` for each host. There are
three possible answers to a `Place`: only `NoRoom`, only `Ended`, or first `Placed` and later `Ended`. The driver ends
when its standard input ends.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class Connect(Struct, tag="connect"):
    """Connect to a Ray cluster.

    Attributes:
        address: ``auto``, or address and port of the head.
        unauthenticated: Whether the cluster may accept everyone.
    """

    address: str
    unauthenticated: bool


class Place(Struct, tag="place"):
    """Start the agent of a host on a node of the cluster.

    Attributes:
        host: Name of the host. It must have no agent at this time.
        invitation: The text of an invitation. It is secret.
        labels: Labels that the node must have.
        resources: Resources to reserve on the node, by Ray's names. They include CPU.
    """

    host: str
    invitation: str
    labels: dict[str, str]
    resources: dict[str, float]

    def __repr__(self) -> str:
        """A description without the invitation."""
        return f"Place({self.host!r}, {self.labels}, {self.resources})"


class Connected(Struct, tag="connected"):
    """The driver has connected to the cluster. `gpus` is the number of GPUs of all nodes."""

    gpus: float


class NotConnected(Struct, tag="not_connected"):
    """The driver cannot use the cluster, and ends. `reason` is a sentence for the operator."""

    reason: str


class Placed(Struct, tag="placed"):
    """The agent of a host has been started.

    Attributes:
        node: The address of its node.
        pid: Its process id on this node.
    """

    host: str
    node: str
    pid: int


class NoRoom(Struct, tag="no_room"):
    """No node can run the agent now. `reason` is a sentence for the operator."""

    host: str
    reason: str


class Ended(Struct, tag="ended"):
    """The agent of a host has ended, and Ray has released its resources. `reason` is a sentence for the operator."""

    host: str
    reason: str


ToDriver: TypeAlias = Connect | Place
FromDriver: TypeAlias = Connected | NotConnected | Placed | NoRoom | Ended
