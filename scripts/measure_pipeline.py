"""Measures the time that the pipeline adds to SGLang's own time. Sends the same greedy requests to the server and to
SGLang's scheduler alone.

    python scripts/measure_pipeline.py --model-path checkpoints/tiny

The script starts the server (six workers, or one with --fused). Inside the script's own process, SGLang's scheduler
runs in a loop without our stages. There are two such loops: one with the recorded decode step that the server uses, and
one with SGLang's own decoding. The server and both loops get the same prompts in turn, under the same conditions. The
script prints the medians and their ratios for each number of streams. Results are comparable only within one run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same number of threads as in the workers, which share the cores

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import torch
import yaml
from server_process import ServerProcess
from transformers import AutoTokenizer

from stages.checkpoint.weights import read_config
from stages.messages import Sampling
from stages.sglang_engine.engine import Engine, Generation
from stages.sglang_engine.prompt_rows import PromptRows
from stages.thinker.stage import ARCHITECTURE, end_of_turn_id

WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country",
)  # fmt: skip
FUSED = {name: {"worker": "text"} for name in ("preprocessing", "image_encoder", "audio_encoder", "mm_aggregate")}
FUSED |= {name: {"worker": "text"} for name in ("thinker", "decode")}


class Bare:
    """SGLang's scheduler in this process."""

    def __init__(self, model_path: str) -> None:
        self._engine = Engine(
            model_path=model_path,
            architecture=ARCHITECTURE,
            device="cpu",
            dtype=None,
            eos_ids=[end_of_turn_id(read_config(model_path))],
            max_total_tokens=None,
            max_running_requests=64,
            options={},
        )
        self._recorded = self._engine.model.recorded
        self._tokenizer = AutoTokenizer.from_pretrained(model_path)

    def run(self, prompts: list[str], tokens: int, recorded: bool) -> float:
        """Seconds that SGLang's scheduler needs to answer all prompts, which are added at once. If `recorded` is true,
        the decode steps are the server's recorded steps. Otherwise, they are SGLang's own steps.
        """
        self._engine.model.recorded = self._recorded if recorded else None
        requests = []
        for index, prompt in enumerate(prompts):
            text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
            ids = torch.tensor(self._tokenizer.encode(text))
            sampling = Sampling(max_tokens=tokens, ignore_eos=True)
            requests.append(Generation(f"{index:06d}", ids, PromptRows(ids, None, 0.0), sampling))
        began = time.perf_counter()
        for request in requests:
            self._engine.add(request)
        while self._engine.has_work:
            self._engine.step()
        return time.perf_counter() - began


async def run_served(url: str, prompts: list[str], tokens: int) -> float:
    """Seconds that the server needs to answer all prompts, which are sent at once over HTTP."""

    async def ask(session: aiohttp.ClientSession, prompt: str) -> None:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "ignore_eos": True}
        async with session.post("/v1/chat/completions", json=body) as answer:
            usage = (await answer.json())["usage"]
            assert usage["completion_tokens"] == tokens, usage

    async with aiohttp.ClientSession(url) as session:
        await asyncio.gather(*(session.get("/health") for _ in prompts))  # open the connections before the measurement
        began = time.perf_counter()
        await asyncio.gather(*(ask(session, prompt) for prompt in prompts))
        return time.perf_counter() - began


def server_process(model_path: str, fused: bool, directory: Path) -> ServerProcess:
    """The whole server; its configuration and its log are in `directory`."""
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump({"stages": FUSED if fused else {}}))
    arguments = ["--text-only", "--device", "cpu", "--model-path", model_path, "--config", str(config)]
    return ServerProcess([*arguments, "--log-level", "warning"], directory / "server.log")


def prompts_of(count: int, words: int, seed: int) -> list[str]:
    """Random prompts, which share no beginning, so that the prefix cache has no effect."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


async def measure(arguments: argparse.Namespace, report: Callable[[str], None]) -> dict[str, float]:
    """Measure and report. Returns the median seconds and their ratios, for each number of streams."""
    result: dict[str, float] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(server_process(arguments.model_path, arguments.fused, directory))
        bare = Bare(arguments.model_path)
        await asyncio.to_thread(server.wait_until_ready)
        for streams in arguments.streams:
            ours, theirs, plain = [], [], []
            for turn in range(arguments.rounds + 1):  # the first round is a warm-up
                prompts = prompts_of(streams, arguments.words, seed=1000 * streams + turn)
                ours.append(await run_served(server.url, prompts, arguments.tokens))
                theirs.append(await asyncio.to_thread(bare.run, prompts, arguments.tokens, recorded=True))
                plain.append(await asyncio.to_thread(bare.run, prompts, arguments.tokens, recorded=False))
            served, engine, sglang = (statistics.median(times[1:]) for times in (ours, theirs, plain))
            result |= {f"served_{streams}": served, f"bare_{streams}": engine, f"ratio_{streams}": served / engine}
            result |= {f"sglang_{streams}": sglang, f"ratio_to_sglang_{streams}": served / sglang}
            report(
                f"{streams:3d} streams × {arguments.tokens} tokens: served {served:.3f} s, bare {engine:.3f} s, "
                f"ratio {served / engine:.2f}; bare and not recorded {sglang:.3f} s, ratio {served / sglang:.2f}"
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--fused", action="store_true", help="serve all stages in one worker")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--words", type=int, default=64, help="words in a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens in an answer")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file to write the results to, as JSON")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments, print))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
