"""Starts a server whose steps take the times that the laws give."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from server_process import ServerProcess

HERE = Path(__file__).parent

# Maximum time, in seconds, until all replicas of a new server have answered a warm-up request.
WARM_SECONDS = 120


@contextlib.contextmanager
def server_by_law(layout: str, model_path: str, settings: Sequence[str], replicas: int) -> Iterator[ServerProcess]:
    """Run a server until the end of the block. All its replicas have answered a warm-up request.

    Args:
        layout: ``split`` or ``colocated``.
        settings: Settings as for the flag ``--set``.
        replicas: Number of replicas of the groups voice and vocoder.
    """
    arguments = ["--config", str(HERE / f"{layout}.yaml"), "--model-path", model_path]
    arguments += [part for setting in settings for part in ("--set", setting)]
    if replicas > 1:
        arguments += ["--replicas", f"voice={replicas},vocoder={replicas}"]
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(arguments, Path(folder) / "log", environment={"PYTHONPATH": paths}, with_parent=True)
        with server:
            server.wait_until_ready()
            server.until(lambda: server.health()[1]["status"] == "ok", WARM_SECONDS)
            yield server
