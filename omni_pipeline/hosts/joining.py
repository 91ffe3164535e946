"""The messages with which a host joins the service, and the check that both sides run the same software.

The host's agent sends `Hello` and gets `Welcome`. Then it examines its hardware and its checkpoint, and sends
`Introduction`. It gets `Admitted`, and then `Waiting` once a second until the server has started. If the server does
not accept the host, the agent gets `Refused` instead of any of these answers.
"""

from __future__ import annotations

import importlib.metadata
from typing import TypeAlias

from msgspec import Struct

from omni_pipeline import __version__
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.logs import Format

# Workers on different hosts exchange tensors and tokens, so the packages that compute them must have the same versions.
_PACKAGES = ("torch", "sglang", "transformers")

# While an admitted host waits for the server's start, it gets a message after each interval of this length.
WAITING_SECONDS = 1.0


class Hello(Struct, tag="hello"):
    """The first message of a host.

    Attributes:
        token: The token of the invitation. Not needed from a host that has joined before, with the same key.
        versions: See `own_versions`.
    """

    host: str
    token: str
    versions: dict[str, str]


class Welcome(Struct, tag="welcome"):
    """The settings that a host needs to introduce itself.

    Attributes:
        model_path: Directory of the checkpoint on the host; empty if the stages load no checkpoint.
        listen: The address at which the host's processes listen for other hosts; empty means the address from which the
            host reaches the server.
        ports: First and last port for the host's processes; (0, 0) means any free port.
        lease_seconds: See `config.schema.Cluster`.
        uses_gpus: Whether workers of the host may use GPUs.
    """

    model_path: str
    listen: str
    ports: tuple[int, int]
    lease_seconds: float
    uses_gpus: bool
    log_level: str
    log_format: Format


class Introduction(Struct, tag="introduction"):
    """A host's hardware, files and addresses.

    Attributes:
        digest: See `checkpoint_digest.digest`.
        address: Endpoint of the agent's inbox.
        listen: The address at which the host's processes listen for other hosts.
        run_dir: The agent's directory for sockets and files.
        model_path: Absolute path of the checkpoint on the host.
    """

    facts: HostFacts
    digest: dict[str, str]
    address: str
    listen: str
    run_dir: str
    model_path: str


class Admitted(Struct, tag="admitted"):
    """The host belongs to the service."""


class Waiting(Struct, tag="waiting"):
    """The server has not started yet, for example because it waits for other hosts."""


class Refused(Struct, tag="refused"):
    """The host cannot join. `reason` is a sentence for the operator."""

    reason: str


FromHost: TypeAlias = Hello | Introduction
ToHost: TypeAlias = Welcome | Admitted | Waiting | Refused


def own_versions() -> dict[str, str]:
    """The versions of this package and of the packages that compute tensors, by name."""
    versions = {"omni-pipeline": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def differences(own: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Descriptions of the packages whose versions differ."""
    return [
        f"{package} is {own[package]} on the server and {theirs.get(package, 'unknown')} on the host"
        for package in own
        if own[package] != theirs.get(package)
    ]
