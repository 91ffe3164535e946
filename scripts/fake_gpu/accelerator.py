"""Starts the process that sees fake GPUs, and runs functions in forks of that process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from fake_gpu.machine import H100, Machine

ROOT = Path(__file__).parents[2]

# A function that runs for more than this number of seconds counts as hung. The longest test takes a few seconds.
_SECONDS = 120


class RunFailed(Exception):
    """A function under fake GPUs raised an error, or its process ended before the function returned. The message has
    the traceback and the output.
    """


class Accelerator:
    """A child process under fake GPUs; a context manager.

    A function is identified by its module and its name. Its arguments and its result are JSON values. Each function
    runs in a fork of the child, so neither SGLang's global state nor a crash affects the next function.

    Args:
        machine: The machine that the child's imports see. A function may see another machine with the same compute
            capability.
        stub_kernels: Whether to replace the real `sgl_kernel` even if it loads.

    Attributes:
        kernels: ``real`` if SGLang's own kernel library was loaded; ``stub`` if `stub_kernels` is set; in all other
            cases, the reason why the library could not be loaded.
    """

    def __init__(self, machine: Machine | None = None, *, stub_kernels: bool = False) -> None:
        self._machine = machine or Machine.of(H100)
        reading, writing = os.pipe()
        paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
        # The child must see neither the machine's real GPUs nor an operator's settings for SGLang.
        dropped = ("CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE")
        kept = {name: value for name, value in os.environ.items() if name not in dropped and "SGLANG" not in name}
        described = msgspec.json.encode(self._machine).decode()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "fake_gpu.child",
                str(writing),
                described,
                "stub" if stub_kernels else "real",
            ],
            cwd=ROOT,
            env={
                **kept,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONWARNINGS": "ignore",
                "TRANSFORMERS_VERBOSITY": "error",
            },
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[writing],
        )
        os.close(writing)
        self._answers = os.fdopen(reading)
        self.kernels: str = self._take()["value"]

    def load(self, modules: Iterable[str]) -> dict[str, str]:
        """Import modules once, for all functions that run later. Returns the tracebacks of failed imports, by the name
        of the module.
        """
        failures = self._ask({"load": list(modules)})["value"]
        return {name: error for name, error in failures.items() if error}

    def run(
        self,
        function: str | Callable[..., Any],
        *,
        machine: Machine | None = None,
        environment: Mapping[str, str] | None = None,
        seconds: int = _SECONDS,
        **arguments: Any,
    ) -> Any:
        """Run a function under fake GPUs, and return its result.

        Args:
            function: A module's top-level function, or its name as in ``package.module:name``.
            machine: The machine to show instead of the child's.
            environment: Environment variables to set, such as ``CUDA_VISIBLE_DEVICES``.
            seconds: Time after which the function counts as hung.
            arguments: The function's arguments.

        Raises:
            RunFailed: The function raised an error, or took too long.
        """
        name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
        chosen = machine or self._machine
        if not {card.capability for card in chosen.cards} <= {card.capability for card in self._machine.cards}:
            raise ValueError("the child has imported SGLang for another compute capability: start one for this machine")
        order = {
            "run": name,
            "machine": msgspec.to_builtins(chosen),
            "environment": dict(environment or {}),
            "seconds": seconds,
            "arguments": arguments,
        }
        answer = self._ask(order)
        if "error" in answer:
            raise RunFailed(f"{name} under fake GPUs:\n{answer['error']}\n--- its output:\n{answer.get('output', '')}")
        return answer["value"]

    def close(self) -> None:
        """End the child."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the child has ended by itself
            # Closing the pipe would not end the child: processes that this process has forked in the meantime keep the
            # pipe open.
            self._process.stdin.write(json.dumps({"end": True}) + "\n")
            self._process.stdin.close()
        self._process.wait()
        self._answers.close()

    def __enter__(self) -> Accelerator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._take()

    def _take(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RunFailed(f"the process with the fake GPUs ended unexpectedly (exit code {self._process.wait()})")
        return json.loads(line)
