"""Measures what tracing costs, and metrics: the same requests, in turns, to servers that differ in nothing else.

    python scripts/measure_observability.py --model-path checkpoints/tiny [--baseline ANOTHER_CHECKOUT]

Starts a server, one that traces (into files), and, where one is named, the server of another checkout of this
repository (installed there with `make install`), such as one from before a change. All have nine workers. A round asks
each of them once, in random order; while one answers, the others wait. Prints, for each scenario, the median over all
rounds of the ratio to the plain server of the same round: of the time for all answers, and of the CPU time that all its
processes took for them. CPU time tells more on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

HERE = Path(__file__).parents[1]
PLAIN, TRACED, BASELINE = "plain", "traced", "baseline"
SCENARIOS: dict[str, tuple[int, dict[str, Any]]] = {
    "text, 1 stream": (1, {"max_tokens": 96}),
    "text, 8 streams": (8, {"max_tokens": 64}),
    "speech, 1 stream": (1, {"max_tokens": 24, "talker_max_new_tokens": 49, "modalities": ["text", "audio"]}),
    "speech, 8 streams": (8, {"max_tokens": 24, "talker_max_new_tokens": 33, "modalities": ["text", "audio"]}),
}


@dataclass
class Run:
    """What one server needed for the answers of one round, in seconds."""

    wall: float
    cpu: float


class Served:
    """A running server. Ends when its stack closes."""

    def __init__(self, stack: ExitStack, checkout: Path, model_path: Path, *flags: str) -> None:
        command = [str(checkout / ".venv/bin/python"), "-m", "omni_pipeline.cli", "serve", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--model-path", str(model_path), *flags], cwd=checkout, stdout=subprocess.PIPE, text=True
        )
        stack.callback(self._end)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Listening on "):
                self.url = line.split()[2]
                return
        raise SystemExit(f"the server of {checkout} did not start")

    def cpu_seconds(self) -> float:
        """CPU time that its processes have taken."""
        main = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait()


async def ready(session: aiohttp.ClientSession, served: Served) -> None:
    """Return when the warm-up is through."""
    while True:
        async with session.get(f"{served.url}/health") as answer:
            if answer.status == 200:
                return
        await asyncio.sleep(0.2)


async def ask(session: aiohttp.ClientSession, served: Served, body: dict[str, Any], prompts: list[str]) -> Run:
    """All prompts at once, streamed."""

    async def one(prompt: str) -> None:
        content = {"messages": [{"role": "user", "content": prompt}], "stream": True, "ignore_eos": True, **body}
        async with session.post(f"{served.url}/v1/chat/completions", json=content) as answer:
            text = await answer.text()
            if "[DONE]" not in text:
                raise SystemExit(f"no whole answer: {text[-300:]}")

    before, began = served.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(one(prompt) for prompt in prompts))
    wall = time.perf_counter() - began
    return Run(wall, served.cpu_seconds() - before)


async def measure(servers: dict[str, Served], rounds: int) -> dict[str, Any]:
    """Ratios to the plain server, by scenario and server."""
    draw = random.Random(0)
    results: dict[str, Any] = {}
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(ready(session, served) for served in servers.values()))
        for scenario, (streams, body) in SCENARIOS.items():
            runs: dict[str, list[Run]] = {name: [] for name in servers}
            for number in range(rounds + 1):
                prompts = [f"Tell me about number {draw.randrange(10**9)}." for _ in range(streams)]
                for name in draw.sample(list(servers), len(servers)):
                    run = await ask(session, servers[name], body, prompts)
                    if number:  # the first warms up
                        runs[name].append(run)
            results[scenario] = {name: compare(runs[name], runs[PLAIN]) for name in servers}
            print(scenario, json.dumps(results[scenario]), flush=True)
    return results


def compare(runs: list[Run], plain: list[Run]) -> dict[str, float]:
    """Medians of `runs`, and of their ratios to the plain ones of the same rounds."""
    pairs = list(zip(runs, plain, strict=True))
    return {
        "wall_seconds": round(statistics.median(run.wall for run in runs), 4),
        "wall_ratio": round(statistics.median(run.wall / other.wall for run, other in pairs), 4),
        "cpu_ratio": round(sum(run.cpu for run in runs) / sum(other.cpu for other in plain), 4),
    }


def main() -> None:
    """Parse, start, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="another checkout, installed")
    parser.add_argument("--rounds", type=int, default=12)
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
