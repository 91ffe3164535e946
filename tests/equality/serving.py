"""Starts the servers of the equality tests.

With ``OMNI_TEST_HOSTS=1`` in pytest's environment, the stages with a model are on other hosts. These hosts have their
own network and their own process ids (see `tests.omni_pipeline.hosts.namespaces`). With this variable, the tests show
that tokens, embeddings, pictures and sound cross hosts without a change.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.device import PATIENCE
from tests.omni_pipeline.hosts.namespaces import network
from tests.served.joined import joined
from tests.server import Server

ON_HOSTS = os.environ.get("OMNI_TEST_HOSTS") == "1"


@contextlib.contextmanager
def serving(
    checkpoint: Path, directory: Path, config: dict[str, Any], *, speech: bool = False, on_hosts: bool = ON_HOSTS
) -> Iterator[Server]:
    """Run a server until the end of the block.

    Args:
        checkpoint, directory, config, speech: As in `Server`.
        on_hosts: Whether the stages with a model are on other hosts.
    """
    if not on_hosts:
        with Server(checkpoint, directory, config, speech=speech) as server:
            yield server
        return
    groups = groups_of(config, speech=speech)
    hosts = sorted({host for group in groups.values() for host in group["hosts"]})
    with network() as net:
        cluster = {"hosts": {name: {} for name in hosts}, "cluster": {"listen": net.main, "port": 0}}
        server = Server(checkpoint, directory, config | {"groups": groups} | cluster, speech=speech)
        with joined(server, net.inside()):
            server.until(lambda: server.health()[1]["status"] == "ok", PATIENCE.start)
            yield server


def groups_of(config: dict[str, Any], *, speech: bool) -> dict[str, Any]:
    """The groups of the stages with a model. Each group has one replica, on the host b or c. If stages share a worker,
    a single group on the host b has all stages.
    """
    if any("worker" in stage for stage in config.get("stages", {}).values()):
        return {"all": {"replicas": 1, "hosts": ["b"]}}
    groups: dict[str, Any] = {
        "encoders": {"stages": ["image_encoder", "audio_encoder"], "replicas": 1, "hosts": ["b"]},
        "thinker": {"replicas": 1, "hosts": ["c"]},
    }
    if speech:
        groups |= {"voice": {"replicas": 1, "hosts": ["b"]}, "vocoder": {"replicas": 1, "hosts": ["c"]}}
    return groups
