"""The process that sees fake GPUs: it imports costly modules once, and forks for each function.

Orders arrive as JSON lines on standard input. The answers are written as JSON lines to a file descriptor, whose number
is the first argument on the command line.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from fake_gpu import driver, kernels, nvml, torch_cuda
from fake_gpu.machine import Machine

_PACKAGES = Path(torch.__file__).parents[1]


def main() -> None:
    """Entry point: ``python -m fake_gpu.child DESCRIPTOR MACHINE STUB``."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    machine = msgspec.json.decode(sys.argv[2], type=Machine)
    with tempfile.TemporaryDirectory(prefix="fake-gpu-") as directory:
        _become(machine, Path(directory))
        if sys.argv[3] == "stub":
            kernels.stand_in()
            loaded = "stub"
        else:
            loaded = kernels.load(_PACKAGES, Path(directory))
        _answer(answers, {"value": loaded})
        for line in sys.stdin:
            order = json.loads(line)
            if "end" in order:
                break
            if "load" in order:
                _answer(answers, {"value": {name: _import_error(name) for name in order["load"]}})
            else:
                _answer(answers, _forked(order))


def _become(machine: Machine, directory: Path) -> None:
    torch_cuda.install(machine)
    nvml.install(machine)
    driver.install(machine, directory)


def _answer(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _import_error(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except Exception:
        return traceback.format_exc()
    return None


def _forked(order: dict[str, Any]) -> dict[str, Any]:
    """Run the function of an order in a fork, which exits when the function ends."""
    if threading.active_count() > 1:
        return {"error": f"a fork would not have these running threads: {threading.enumerate()}"}
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="fake-gpu-") as directory, tempfile.TemporaryFile("w+") as log:
        process = os.fork()
        if process == 0:
            os.close(reading)
            _end(writing, log.fileno(), lambda: _run(order, Path(directory)))
        os.close(writing)
        answer = _read_all(reading)
        _, status = os.waitpid(process, 0)
        log.seek(0)
        output = log.read()
    if not answer:
        code = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"error": f"the process ended by {how} without an answer", "output": output}
    return {**json.loads(answer), "output": output}


def _end(writing: int, log: int, function: Callable[[], Any]) -> None:
    """Run a function, write its answer, and exit without running the parent's exit handlers."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # only the parent reads later orders
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        answer = json.dumps({"value": function()})
    except BaseException:
        answer = json.dumps({"error": traceback.format_exc()})
    try:
        with os.fdopen(writing, "w") as pipe:
            pipe.write(answer)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _run(order: dict[str, Any], directory: Path) -> Any:
    signal.alarm(order["seconds"])  # the kernel ends a function that hangs
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    os.environ.update(order["environment"])
    _become(msgspec.convert(order["machine"], Machine), directory)
    module, _, name = order["run"].partition(":")
    return getattr(importlib.import_module(module), name)(**order["arguments"])


def _read_all(reading: int) -> bytes:
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


if __name__ == "__main__":
    main()
    os._exit(0)  # a normal exit would unload all modules, which takes seconds
