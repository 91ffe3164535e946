"""Measures the time of a decode step of the thinker on a CPU, and lists the operations of the step.

    python scripts/measure_decode.py --model-path demo/qwen3-omni-demo
    python scripts/measure_decode.py --model-path checkpoints/tiny --batches 32 --sampled --operations 15
    python scripts/measure_decode.py --model-path demo/qwen3-omni-demo --batches 8 --grammar --rounds 10

The engine runs in this process, without the other stages. Each time is the median over the steps, in milliseconds.
Results are comparable only within one run on a quiet machine.
"""

from __future__ import annotations

import os
import sys

# OpenMP reads the variable when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1")

import argparse
import json
import time
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer

from stages.checkpoint.weights import read_config
from stages.grammars.grammar_cache import GrammarCompiler
from stages.grammars.vocabulary import Vocabulary
from stages.messages import Grammar, Sampling
from stages.sglang_engine.engine import Engine, Generation
from stages.sglang_engine.prompt_rows import PromptRows
from stages.thinker.stage import ARCHITECTURE, end_of_turn_id

# Number of steps that run under the profiler.
PROFILED = 8


class Stopwatch:
    """For each label, the durations of all calls of the methods that are watched under this label."""

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
        return 1000 * times[len(times) // 2]


def watched_engine(model_path: str, dtype: str) -> tuple[Engine, Stopwatch]:
    engine = Engine(
        model_path=model_path,
        architecture=ARCHITECTURE,
        device="cpu",
        dtype=dtype,
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


# The texts of this grammar are so long that no text ends during the measurement.
PEOPLE = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "emails": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 3},
            "kind": {"enum": ["friend", "colleague"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    },
}


def compiler(model_path: str, engine: Engine) -> GrammarCompiler:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    return GrammarCompiler(Vocabulary.of(tokenizer, engine.vocabulary, end_of_turn_id(read_config(model_path))))


def start(engine: Engine, batch: int, arguments: argparse.Namespace, grammars: GrammarCompiler | None) -> None:
    """Add the requests of one batch, and run the engine until all of them decode."""
    grammar = None if grammars is None else Grammar("json_schema", json.dumps(PEOPLE))
    for index in range(batch):
        ids = torch.randint(2, 1000, (arguments.prompt,), generator=torch.Generator().manual_seed(1000 * batch + index))
        drawn: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": index} if arguments.sampled else {}
        sampling = Sampling(
            max_tokens=arguments.steps + PROFILED + batch + 8, ignore_eos=True, grammar=grammar, **drawn
        )
        matcher = grammars.compile(grammar) if grammars is not None and grammar is not None else None
        engine.add(Generation(f"{batch}-{index}", ids, PromptRows(ids, None, 0.0), sampling, matcher=matcher))
    while len(engine.batch) < batch or engine.model.prefill is not None:
        engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--steps", type=int, default=50, help="measured steps of each batch")
    parser.add_argument("--prompt", type=int, default=80, help="tokens in a prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--sampled", action="store_true", help="sample with top-p 0.9 instead of greedily")
    parser.add_argument("--grammar", action="store_true", help="also measure requests that follow a JSON schema")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="number of times that each batch is measured; with --grammar, in turns without and with the schema",
    )
    parser.add_argument("--operations", type=int, default=0, help="also list this many of torch's operations")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine, watch = watched_engine(arguments.model_path, arguments.dtype)
    grammars = compiler(arguments.model_path, engine) if arguments.grammar else None
    kinds = {"": None, "grammar": grammars} if arguments.grammar else {"": None}
    for kind in kinds.values():
        # During this run, the engine records its decode step. So no measurement includes the recording.
        start(engine, 1, arguments, kind)
        finish(engine)
    print(f"{'batch':>6}{'step':>9}{'layers':>9}{'head':>9}{'sampler':>9}{'python':>9}")
    for batch in arguments.batches:
        times: dict[str, defaultdict[str, list[float]]] = {name: defaultdict(list) for name in kinds}
        for _ in range(arguments.rounds):
            for name, kind in kinds.items():
                start(engine, batch, arguments, kind)
                watch.times = times[name]
                for _ in range(arguments.steps):
                    engine.step()
                watch.times = defaultdict(list)
                finish(engine)
        steps = []
        for name, watch.times in times.items():
            step, forward, head, sampler = map(watch.milliseconds, ("step", "forward", "head", "sampler"))
            parts = (step, forward - head, head, sampler, step - forward - sampler)
            print(f"{batch:>6}", *(f"{part:>9.3f}" for part in parts), f" {name}", sep="", flush=True)
            steps.append(step)
        if arguments.grammar:
            print(f"{'':>6}{steps[1] / steps[0]:>9.2f} times as long with a grammar", flush=True)
        if arguments.operations:
            start(engine, batch, arguments, grammars)
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                for _ in range(PROFILED):
                    engine.step()
            print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=arguments.operations))
            finish(engine)


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


if __name__ == "__main__":
    main()
