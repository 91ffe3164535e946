"""A free port is not used by any process, and is normally below the range from which the kernel assigns ports."""

from __future__ import annotations

import random
import socket

import pytest

from omni_pipeline import os_process
from omni_pipeline.os_process import free_port


def test_the_kernel_does_not_give_the_port_to_others() -> None:
    first = int(os_process._KERNEL_PORTS.read_text().split()[0])
    ports = {free_port() for _ in range(20)}
    assert max(ports) < first
    assert len(ports) > 15, "processes that choose at the same time choose different ports"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_not_chosen(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port()
    with socket.create_server((host, 0)) as server:
        used = server.getsockname()[1]
        monkeypatch.setattr(random.SystemRandom, "sample", lambda self, choices, count: [used, free])
        assert free_port() == free


def test_without_a_free_port_among_them_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        monkeypatch.setattr(random.SystemRandom, "sample", lambda self, choices, count: [used])
        assert free_port() not in (used, 0)
