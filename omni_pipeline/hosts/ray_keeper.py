"""The Ray actor that starts and ends the agent of one host. It runs in a Ray worker process on the host's node.

The agent is a child process of the actor, so that it has a main thread and a Python interpreter of its own. If the
actor ends for any reason, the kernel sends the agent a signal to end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import ray

# Maximum time, in seconds, that an agent may take to end its workers.
STOP_SECONDS = 8.0

# Number of lines to keep from the end of an agent's output. The last line can explain why the agent ended.
_LAST_LINES = 20


class Keeper:
    """Starts an agent.

    Args:
        invitation: The text of the invitation. The agent reads this text from its standard input. Arguments are not
            used for this, because other users can see the arguments of a process. Environment variables are not used,
            because other processes of this user can see the environment of a process.
    """

    def __init__(self, invitation: str) -> None:
        # The kernel signals the agent when the thread that started the agent ends. Ray calls this method in the main
        # thread, which does not end before the process.
        command = [sys.executable, "-m", "omni_pipeline.cli", "join", "-", "--parent", str(os.getpid())]
        self._agent = subprocess.Popen(
            [*command, "--listen", ray.util.get_node_ip_address()],
            env=agent_environment(ray.get_gpu_ids()),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ray kills the actor's process group, but the agent must first end its workers
        )
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._copier = threading.Thread(target=self._copy_output, daemon=True)
        self._copier.start()
        assert self._agent.stdin is not None
        try:
            self._agent.stdin.write(invitation.encode() + b"\n")
            self._agent.stdin.close()
        except BrokenPipeError:
            pass  # `wait` reports why the agent has ended

    def where(self) -> tuple[str, int]:
        """The address of this node, and the agent's process id."""
        return ray.util.get_node_ip_address(), self._agent.pid

    def wait(self) -> str:
        """Wait for the end of the agent. Returns the reason as a sentence."""
        code = self._agent.wait()
        # The copier ends when the pipe is closed. The workers of a dead agent keep the pipe open until the kernel has
        # ended them.
        self._copier.join(timeout=1.0)
        if code == 0:
            return "The agent ended with exit code 0."
        if code < 0:
            return f"The agent was ended by {signal.Signals(-code).name}."
        return f"The agent ended with exit code {code}{f': {self._last[-1]}' if self._last else '.'}"

    def stop(self) -> None:
        """End the agent and its workers."""
        self._agent.terminate()
        try:
            self._agent.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()

    def _copy_output(self) -> None:
        """Copy the agent's output to the output of this process, which Ray writes to a file of this node."""
        assert self._agent.stderr is not None
        for line in self._agent.stderr:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
            text = line.decode(errors="replace").strip()
            if text:
                self._last.append(text)


def agent_environment(gpus: list[int] | list[str]) -> dict[str, str]:
    """The environment of an agent that may use `gpus`: the node's environment, without the variables of Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    if "OMP_NUM_THREADS" not in _raylet_environment():
        # Ray sets this variable to the number of reserved CPUs, which is 1 for an agent
        environment.pop("OMP_NUM_THREADS", None)
    # Ray sets this variable too, but not if RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES is set on the node
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    return environment


def _raylet_environment() -> set[str]:
    """The names of the environment variables with which Ray was started on this node."""
    try:
        content = Path(f"/proc/{os.environ['RAY_RAYLET_PID']}/environ").read_bytes()
    except (KeyError, OSError):
        return set()
    return {entry.partition(b"=")[0].decode(errors="replace") for entry in content.split(b"\0")}
