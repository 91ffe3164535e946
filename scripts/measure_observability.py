"""Measures the cost of tracing and metrics. Sends the same requests in turn to servers that differ only in these
features.

    python scripts/measure_observability.py --model-path checkpoints/tiny [--baseline ANOTHER_CHECKOUT]

The script starts a plain server and a server that writes traces into files. With --baseline, it also starts the server
of another checkout of this repository, for instance of an older commit. (Run `make install` in that checkout first.)
All servers have nine workers. In each round, the servers get the requests one after the other, in random order. While
one server answers, the others are idle. For each scenario and server, the script prints:

- the mean time for all answers of a round, over the faster half of the rounds, because other programs hardly disturb
    these rounds
- this mean time, divided by the mean time of the plain server
- the server's CPU time, divided by the CPU time of the plain server, for all processes and rounds, including the work
    after the answers
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
from server_process import ServerProcess

# Seconds to wait after the answers of a server. The server finishes its remaining work during this time.
AFTERWARDS = 2.5

HERE = Path(__file__).parents[1]
PLAIN, TRACED, BASELINE = "plain", "traced", "baseline"
SCENARIOS: dict[str, tuple[int, dict[str, Any]]] = {
    "text, 1 stream": (1, {"max_tokens": 96}),
    "text, 8 streams": (8, {"max_tokens": 64}),
    "speech, 1 stream": (1, {"max_tokens": 24, "talker_max_new_tokens": 49, "modalities": ["text", "audio"]}),
    "speech, 8 streams": (8, {"max_tokens": 24, "talker_max_new_tokens": 33, "modalities": ["text", "audio"]}),
}


def server_process(checkout: Path, model_path: Path, log: Path, *flags: str) -> ServerProcess:
    """A server that runs the code in `checkout`."""
    program = (str(checkout / ".venv/bin/python"), "-m", "omni_pipeline.cli")
    return ServerProcess(["--model-path", str(model_path), *flags], log, program=program, directory=checkout)


def cpu_seconds(server: ServerProcess) -> float:
    """The CPU seconds that the server's processes have used."""
    times = [process.cpu_times() for process in server.processes()]
    return sum(time.user + time.system for time in times)


async def ask(session: aiohttp.ClientSession, server: ServerProcess, body: dict[str, Any], prompts: list[str]) -> float:
    """Send all prompts at once, and return the seconds until all streams have ended."""

    async def one(prompt: str) -> None:
        content = {"messages": [{"role": "user", "content": prompt}], "stream": True, "ignore_eos": True, **body}
        async with session.post(f"{server.url}/v1/chat/completions", json=content) as answer:
            text = await answer.text()
            if "[DONE]" not in text:
                raise SystemExit(f"an answer is incomplete; it ends with {text[-300:]}")

    began = time.perf_counter()
    await asyncio.gather(*(one(prompt) for prompt in prompts))
    return time.perf_counter() - began


async def measure(servers: dict[str, ServerProcess], rounds: int) -> None:
    """Ask all servers, and print their times and ratios."""
    draw = random.Random(0)
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(asyncio.to_thread(server.wait_until_ready) for server in servers.values()))
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
                    before = {name: cpu_seconds(server) for name, server in servers.items()}
            await asyncio.sleep(AFTERWARDS)
            cpu = {name: cpu_seconds(server) - before[name] for name, server in servers.items()}
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
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        traces = directory / "traces"
        traces.mkdir()
        servers = {
            PLAIN: server_process(HERE, model_path, directory / "plain.log"),
            TRACED: server_process(HERE, model_path, directory / "traced.log", "--trace-dir", str(traces)),
        }
        if arguments.baseline:
            servers[BASELINE] = server_process(arguments.baseline.resolve(), model_path, directory / "baseline.log")
        for server in servers.values():
            stack.enter_context(server)
        asyncio.run(measure(servers, arguments.rounds))


if __name__ == "__main__":
    main()
