"""Makes hosts with their own network and their own process ids, as on separate machines. Each host is a network
namespace and a process namespace of Linux, connected to the main host by a bridge.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

NAMES = ("b", "c")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


class Net:
    """A bridge with one namespace for each host.

    Attributes:
        main: Address of the main host.
        addresses: Address of each host.
    """

    def __init__(self) -> None:
        number = os.getpid() % 250
        self._tag = f"om{number}"
        self.main = f"10.231.{number}.1"
        self.addresses = {name: f"10.231.{number}.{2 + place}" for place, name in enumerate(NAMES)}

    def make(self) -> None:
        ip("link", "add", self._tag, "type", "bridge")
        ip("addr", "add", f"{self.main}/24", "dev", self._tag)
        ip("link", "set", self._tag, "up")
        for name, address in self.addresses.items():
            space, near, far = self._names(name)
            ip("netns", "add", space)
            ip("link", "add", near, "type", "veth", "peer", "name", far)
            ip("link", "set", far, "netns", space)
            ip("link", "set", near, "master", self._tag)
            ip("link", "set", near, "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", far)
            ip("-n", space, "link", "set", far, "up")
            ip("-n", space, "link", "set", "lo", "up")

    def remove(self) -> None:
        for name in NAMES:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", self._names(name)[0])
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "del", self._names(name)[1])
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self._tag)

    def cut(self, name: str, *, connected: bool) -> None:
        """Disconnect a host from all others, or connect it again."""
        ip("link", "set", self._names(name)[1], "up" if connected else "down")

    def separate(self, one: str, other: str, *, apart: bool) -> None:
        """Drop everything that the host `one` sends to the host `other`, or stop dropping it."""
        ip("-n", self._names(one)[0], "route", "add" if apart else "del", "blackhole", self.addresses[other])

    def inside(self) -> dict[str, list[str]]:
        """For each host, the command that runs another command there."""
        return {
            name: ["ip", "netns", "exec", self._names(name)[0], "unshare", "-p", "-f", "--mount-proc", "--kill-child"]
            for name in NAMES
        }

    def _names(self, host: str) -> tuple[str, str, str]:
        return f"{self._tag}{host}", f"{self._tag}{host}n", f"{self._tag}{host}f"


@contextlib.contextmanager
def network() -> Iterator[Net]:
    """The hosts `NAMES`, until the end of the block. Skips the test if this machine does not allow namespaces."""
    net = Net()
    try:
        try:
            net.make()
            subprocess.run([*net.inside()["b"], "true"], check=True, capture_output=True, timeout=10)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"this machine does not allow namespaces: {error}")
        yield net
    finally:
        net.remove()
