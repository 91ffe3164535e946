"""The time that messages need between processes and between hosts."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from omni_pipeline.simulation.clock import Clock


class Costs(Struct, frozen=True, forbid_unknown_fields=True):
    """Times that do not depend on the model, in seconds.

    Attributes:
        gateway: Time of the gateway for each request, before the entry stage gets it. The gateway handles requests one
            after the other.
        hop: Time of a message from one process to another on the same host.
        message: CPU time of a worker for each message that it sends to another process, and for each message that it
            receives.
        latency: Additional time of a message to a process on another host.
        bandwidth: Bytes per second from one host to another.
    """

    gateway: float = 0.003
    hop: float = 100e-6
    message: float = 40e-6
    latency: float = 100e-6
    bandwidth: float = 1.25e9


class Network:
    """Delivers messages. Between two hosts, messages in the same direction go one after the other at the link's
    bandwidth.

    Attributes:
        sent: Bytes that have been sent from one host to another, by the pair of hosts.
    """

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self._clock = clock
        self._costs = costs
        self._free_at: dict[tuple[str, str], float] = {}
        self.sent: dict[tuple[str, str], int] = {}

    def send(self, source: str, target: str, size: int, deliver: Callable[[], None]) -> None:
        """Call `deliver` when `size` bytes from the host `source` have arrived at the host `target`."""
        costs, when = self._costs, self._clock.now + self._costs.hop
        if source != target:
            link = source, target
            done = max(self._clock.now, self._free_at.get(link, 0.0)) + size / costs.bandwidth
            self._free_at[link] = done
            self.sent[link] = self.sent.get(link, 0) + size
            when = done + costs.hop + costs.latency
        self._clock.at(when, deliver)
