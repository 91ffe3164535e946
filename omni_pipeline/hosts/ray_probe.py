"""Finds out whether a Ray cluster accepts clients without a token.

The settings of this machine do not answer this question, because a cluster without authentication also accepts clients
that send a token. Ray reads its settings once per process, so the question needs a process of its own.
"""

from __future__ import annotations

import enum
import importlib
import os
import subprocess
import sys

# Maximum time for the process, in seconds. Most of it is the import of Ray.
_PROBE_SECONDS = 30.0

# Maximum time for the cluster's answer, in seconds.
_ANSWER_SECONDS = 5.0


class Door(enum.IntEnum):
    """Whether a Ray cluster accepts a client without a token. The values are exit codes."""

    OPEN = 10
    LOCKED = 11
    UNKNOWN = 12


def probe(address: str) -> Door:
    """Send a request without a token to the cluster whose head has this address, and report how it answers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, address],
            env=environment | {"RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Door.UNKNOWN
    return Door(done.returncode) if done.returncode in list(Door) else Door.UNKNOWN


def _ask(address: str) -> Door:
    from ray.exceptions import AuthenticationError

    # Ray has no public class for clients that are not drivers, so this function uses a private class.
    client_class = importlib.import_module("ray._raylet").GcsClient

    try:
        client_class(address=address).internal_kv_get(b"sgl-omni", namespace=None, timeout=_ANSWER_SECONDS)
    except AuthenticationError:
        return Door.LOCKED
    return Door.OPEN


if __name__ == "__main__":
    sys.exit(_ask(sys.argv[1]))
