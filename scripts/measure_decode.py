"""Measures what a decode step of the thinker costs on a CPU, and which operations it consists of.

    python scripts/measure_decode.py --model-path demo/qwen3-omni-demo
    python scripts/measure_decode.py --model-path checkpoints/tiny --batches 32 --sampled --operations 15

The engine runs in this process, without the other stages. Each time is the lower fifth over the steps, in milliseconds.
Results are comparable only within one run on a quiet machine.
"""

from __future__ import annotations

import os
import sys

# OpenMP reads the variable when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1")

import argparse
import time
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from stages.messages import Sampling
from stages.sglang_engine.engine import Engine, Generation
from stages.sglang_engine.prompt_rows import PromptRows
from stages.thinker.stage import ARCHITECTURE

# Number of steps that run under the profiler.
PROFILED = 8


class Stopwatch:
    """The durations of each call of some methods, by label."""

    def __init__(self) -> None:
        self.times: defaultdict[str, list[float]] = defaultdict(list)

    def watch(self, owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.times[label].append(time.perf_counter() - began)

        setattr(owner, name, timed)

    def milliseconds(self, label: str) -> float:
        times = sorted(self.times[label])
        return 1000 * times[len(times) // 5]


def watched_engine(model_path: str) -> tuple[Engine, Stopwatch]:
    engine = Engine(
        model_path=model_path,
        architecture=ARCHITECTURE,
        device="cpu",
        dtype=None,
        eos_ids=[0],
        max_total_tokens=None,
        max_running_requests=64,
        options={},
    )
    watch, scheduler = Stopwatch(), engine._scheduler
    runner = scheduler.tp_worker.model_runner
    watch.watch(engine, "step", "step")
    watch.watch(runner, "forward", "forward")
    watch.watch(engine.model.logits_processor, "all_logits", "head")
    watch.watch(runner.sampler, "forward", "sampler")
    return engine, watch


def start(engine: Engine, batch: int, arguments: argparse.Namespace) -> None:
    """Add the requests of one batch, and run the engine until all of them decode."""
    for index in range(batch):
        ids = torch.randint(2, 1000, (arguments.prompt,), generator=torch.Generator().manual_seed(1000 * batch + index))
        drawn: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": index} if arguments.sampled else {}
        sampling = Sampling(max_tokens=arguments.steps + PROFILED + batch + 8, ignore_eos=True, **drawn)
        engine.add(Generation(f"{batch}-{index}", ids, PromptRows(ids, None, 0.0), sampling))
    while len(engine.batch) < batch or engine.model.prefill is not None:
        engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--steps", type=int, default=50, help="measured steps of each batch")
    parser.add_argument("--prompt", type=int, default=80, help="tokens in a prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sampled", action="store_true", help="sample with top-p 0.9 instead of greedily")
    parser.add_argument("--operations", type=int, default=0, help="also list this many of torch's operations")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine, watch = watched_engine(arguments.model_path)
    start(engine, 1, arguments)  # makes the recording
    while engine.has_work:
        engine.step()
    print(f"{'batch':>6}{'step':>9}{'layers':>9}{'head':>9}{'sampler':>9}{'python':>9}")
    for batch in arguments.batches:
        start(engine, batch, arguments)
        watch.times.clear()
        for _ in range(arguments.steps):
            engine.step()
        step, forward, head, sampler = map(watch.milliseconds, ("step", "forward", "head", "sampler"))
        python = step - forward - sampler
        print(f"{batch:>6}{step:>9.3f}{forward - head:>9.3f}{head:>9.3f}{sampler:>9.3f}{python:>9.3f}", flush=True)
        if arguments.operations:
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                for _ in range(PROFILED):
                    engine.step()
            print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=arguments.operations))
        while engine.has_work:
            engine.step()


if __name__ == "__main__":
    main()
