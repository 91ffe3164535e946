"""Measures the cost of tracing and metrics: sends the same requests in turn to servers that differ in nothing else.

    python scripts/measure_observability.py --model-path checkpoints/tiny [--baseline ANOTHER_CHECKOUT]

The script starts a plain server, a server that writes traces into files, and, with --baseline, the server of another
checkout of this repository (installed there with `make install`), for instance one from before a change. All have nine
workers. In each round every server gets the requests once, in random order; while one server answers, the others are
idle. For each scenario and server, the script prints:

- the mean time for all answers of a round, over the faster half of the rounds, which other programs hardly disturb
- the ratio of this time to that of the plain server
- the ratio of the CPU time of all processes over all rounds, including their work after the answers
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil

# Seconds after which a server has finished the work that follows an answer.
AFTERWARDS = 2.5

HERE = Path(__file__).parents[1]
PLAIN, TRACED, BASELINE = "plain", "traced", "baseline"
SCENARIOS: dict[str, tuple[int, dict[str, Any]]] = {
    "text, 1 stream": (1, {"max_tokens": 96}),
    "text, 8 streams": (8, {"max_tokens": 64}),
    "speech, 1 stream": (1, {"max_tokens": 24, "talker_max_new_tokens": 49, "modalities": ["text", "audio"]}),
    "speech, 8 streams": (8, {"max_tokens": 24, "talker_max_new_tokens": 33, "modalities": ["text", "audio"]}),
}


class Served:
    """A running server, which is stopped when `stack` closes."""

    def __init__(self, stack: ExitStack, checkout: Path, model_path: Path, *flags: str) -> None:
        command = [str(checkout / ".venv/bin/python"), "-m", "omni_pipeline.cli", "serve", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--model-path", str(model_path), *flags],
            cwd=checkout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        stack.callback(self._end)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Listening on "):
                self.url = line.split()[2]
                return
        raise SystemExit(f"the server in {checkout} did not start; run `make install` there, and try it by hand")

    def cpu_seconds(self) -> float:
        """The CPU time that the server's processes have used so far."""
        main = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait()


async def ready(session: aiohttp.ClientSession, served: Served) -> None:
    """Wait until the server has finished its warm-up."""
    while True:
        async with session.get(f"{served.url}/health") as answer:
            if answer.status == 200:
                return
        await asyncio.sleep(0.2)


async def ask(session: aiohttp.ClientSession, served: Served, body: dict[str, Any], prompts: list[str]) -> float:
    """Send all prompts at once. Returns the seconds until all streams have ended."""

    async def one(prompt: str) -> None:
        content = {"messages": [{"role": "user", "content": prompt}], "stream": True, "ignore_eos": True, **body}
        async with session.post(f"{served.url}/v1/chat/completions", json=content) as answer:
            text = await answer.text()
            if "[DONE]" not in text:
                raise SystemExit(f"an answer is incomplete; it ends with {text[-300:]}")

    began = time.perf_counter()
    await asyncio.gather(*(one(prompt) for prompt in prompts))
    return time.perf_counter() - began


async def measure(servers: dict[str, Served], rounds: int) -> None:
    """Ask all servers, and print how they compare."""
    draw = random.Random(0)
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(ready(session, served) for served in servers.values()))
        for scenario, (streams, body) in SCENARIOS.items():
            walls: dict[str, list[float]] = {name: [] for name in servers}
            before: dict[str, float] = {}
            for number in range(rounds + 1):
                prompts = [f"Tell me about number {draw.randrange(10**9)}." for _ in range(streams)]
                for name in draw.sample(list(servers), len(servers)):
                    wall = await ask(session, servers[name], body, prompts)
                    if number:
                        walls[name].append(wall)
                if not number:  # the first round was the warm-up
                    await asyncio.sleep(AFTERWARDS)
                    before = {name: served.cpu_seconds() for name, served in servers.items()}
            await asyncio.sleep(AFTERWARDS)
            cpu = {name: served.cpu_seconds() - before[name] for name, served in servers.items()}
            for name in servers:
                seconds = low(walls[name])
                wall_ratio, cpu_ratio = seconds / low(walls[PLAIN]), cpu[name] / cpu[PLAIN]
                print(f"{scenario:18} {name:9} {seconds:.4f} s  wall {wall_ratio:.3f}  cpu {cpu_ratio:.3f}", flush=True)


def low(figures: list[float]) -> float:
    """The mean of the lower half of `figures`."""
    return statistics.fmean(sorted(figures)[: max(1, len(figures) // 2)])


def main() -> None:
    """Start the servers, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository, with its .venv")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    model_path = arguments.model_path.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ExitStack() as stack:
        traces = stack.enter_context(tempfile.TemporaryDirectory())
        servers = {PLAIN: Served(stack, HERE, model_path)}
        servers[TRACED] = Served(stack, HERE, model_path, "--trace-dir", traces)
        if arguments.baseline:
            servers[BASELINE] = Served(stack, arguments.baseline.resolve(), model_path)
        asyncio.run(measure(servers, arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
