"""Measures what the pipeline adds to the engine: runs the same greedy requests through the server and a bare loop.

    python scripts/measure_pipeline.py --model-path checkpoints/tiny

The script starts the server (six workers, or one with --fused). In this process it runs SGLang's own scheduler in a
loop, without any of our stages: once with recorded decoding as in the server, and once with SGLang's own decoding. All
three get the same prompts in turn, under the same conditions. The script prints the medians and their ratios for each
number of streams. Results are comparable only within one run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the workers, which share the cores

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import torch
import yaml
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
        """Seconds to answer all prompts at once, with decoding `recorded` as in the server, or as in SGLang."""
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


class Served:
    """The whole server, over HTTP."""

    def __init__(self, model_path: str, fused: bool, directory: str) -> None:
        config = Path(directory) / "config.yaml"
        config.write_text(yaml.safe_dump({"stages": FUSED if fused else {}}))
        command = [sys.executable, "-m", "omni_pipeline.cli", "serve", "--text-only", "--device", "cpu"]
        command += ["--model-path", model_path, "--config", str(config), "--port", "0", "--log-level", "warning"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._url = next(word for line in self._process.stdout for word in line.split() if word.startswith("http://"))

    async def wait(self) -> None:
        """Wait until the server has finished its warm-up."""
        async with aiohttp.ClientSession(self._url) as session:
            while True:
                async with session.get("/health") as answer:
                    if answer.status == 200:
                        return
                await asyncio.sleep(0.2)

    async def run(self, prompts: list[str], tokens: int) -> float:
        """Seconds to answer all prompts at once."""

        async def ask(session: aiohttp.ClientSession, prompt: str) -> None:
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "ignore_eos": True}
            async with session.post("/v1/chat/completions", json=body) as answer:
                usage = (await answer.json())["usage"]
                assert usage["completion_tokens"] == tokens, usage

        async with aiohttp.ClientSession(self._url) as session:
            await asyncio.gather(*(session.get("/health") for _ in prompts))  # so that connecting is not measured
            began = time.perf_counter()
            await asyncio.gather(*(ask(session, prompt) for prompt in prompts))
            return time.perf_counter() - began

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def prompts_of(count: int, words: int, seed: int) -> list[str]:
    """Random prompts, which share no beginning, so that the prefix cache has no effect."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


async def measure(arguments: argparse.Namespace, report: Callable[[str], None]) -> dict[str, float]:
    """Measure and report. Returns the median seconds and their ratios, by number of streams."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        served = Served(arguments.model_path, arguments.fused, directory)
        try:
            bare = Bare(arguments.model_path)
            await served.wait()
            for streams in arguments.streams:
                ours, theirs, plain = [], [], []
                for turn in range(arguments.rounds + 1):  # the first round is the warm-up
                    prompts = prompts_of(streams, arguments.words, seed=1000 * streams + turn)
                    ours.append(await served.run(prompts, arguments.tokens))
                    theirs.append(await asyncio.to_thread(bare.run, prompts, arguments.tokens, recorded=True))
                    plain.append(await asyncio.to_thread(bare.run, prompts, arguments.tokens, recorded=False))
                server, engine, sglang = (statistics.median(times[1:]) for times in (ours, theirs, plain))
                result |= {f"served_{streams}": server, f"bare_{streams}": engine, f"ratio_{streams}": server / engine}
                result |= {f"sglang_{streams}": sglang, f"ratio_to_sglang_{streams}": server / sglang}
                report(
                    f"{streams:3d} streams × {arguments.tokens} tokens: served {server:.3f} s, bare {engine:.3f} s, "
                    f"ratio {server / engine:.2f}; bare, not recorded {sglang:.3f} s, ratio {server / sglang:.2f}"
                )
        finally:
            served.stop()
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
