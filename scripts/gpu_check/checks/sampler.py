"""Checks the sampler of the language models: whether it picks the same ids as on a CPU, how long it takes, and how
often it waits for the device.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from gpu_check.running.finding import Finding
from gpu_check.running.measure import times
from gpu_check.running.setup import Setup
from stages.messages import Sampling

VOCABULARIES = (152_064, 3_072)
ROWS = (1, 8, 32, 64)
PROMPT = 200

WAYS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.9, top_k=40, top_p=0.9, seed=7),
    "penalised": Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.05, presence_penalty=0.2, seed=7),
}


def run(setup: Setup) -> Iterator[Finding]:
    _stand_in_for_sglang()
    rows, vocabularies = ((1, 3), (1_000,)) if setup.small else (ROWS, VOCABULARIES)
    yield _equality(setup, max(rows), vocabularies)
    for vocabulary in vocabularies:
        figures: dict[str, Any] = {}
        for way in WAYS:
            for count in rows:
                if setup.in_time:
                    work = SamplingStep(count, vocabulary, way, setup.device)
                    figures[f"{way}_{count}_ms"] = times(work, setup.device, setup.runs(10)).steady
                    figures[f"{way}_{count}_waits"] = waits(work, setup.device)
        yield Finding(f"sampler: {vocabulary} ids", bool(figures), figures)


def _stand_in_for_sglang() -> None:
    """Provide a class that replaces SGLang's `Sampler`, because SGLang may not be installed. The module
    `stages.sglang_engine.sampler` imports nothing else from SGLang.
    """
    module: Any = types.ModuleType("sglang.srt.layers.sampler")
    module.Sampler = torch.nn.Module
    for name in ("sglang", "sglang.srt", "sglang.srt.layers"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[module.__name__] = module


class SamplingStep:
    """Picks an id for each request of a batch. Each run adds the picked ids to the outputs of the requests, as the
    engine does.
    """

    def __init__(self, rows: int, vocabulary: int, way: str, device: str, dtype: torch.dtype = torch.bfloat16) -> None:
        from stages.sglang_engine.sampler import OmniSampler, SamplingState

        generator = torch.Generator().manual_seed(rows)
        logits = torch.randn(rows, vocabulary, generator=generator) * 3
        self._logits = types.SimpleNamespace(next_token_logits=logits.to(device, dtype))
        self._outputs: list[list[int]] = [[row] for row in range(rows)]
        self._sampler = OmniSampler()
        self._sampler.rows = [
            SamplingState(
                WAYS[way], prompt_ids=torch.arange(min(PROMPT, vocabulary)), output_ids=output, eos_ids=[vocabulary - 1]
            )
            for output in self._outputs
        ]

    @torch.inference_mode()
    def __call__(self) -> list[int]:
        ids: list[int] = self._sampler.forward(self._logits, None, False, [], [], torch.zeros(0)).tolist()
        for output, picked in zip(self._outputs, ids, strict=True):
            output.append(picked)
        return ids


def _equality(setup: Setup, rows: int, vocabularies: tuple[int, ...]) -> Finding:
    """Compare the ids of several steps on the device and on the CPU, from the same float32 logits."""
    different = compared = 0
    for vocabulary in vocabularies:
        for way in WAYS:
            here, there = (
                SamplingStep(rows, vocabulary, way, device, torch.float32) for device in ("cpu", setup.device)
            )
            for _ in range(3):
                different += sum(a != b for a, b in zip(here(), there(), strict=True))
                compared += rows
    # The device and the CPU compute slightly different borders between two ids, because they round differently. If a
    # random number lies between the device's border and the CPU's border, the ids differ. This happens about once in
    # 1e12 draws.
    return Finding("sampler: equal to the CPU", not different, {"picks": compared, "different": different})


def waits(work: SamplingStep, device: str) -> int | None:
    """The number of times that one run waits for the device, as torch counts the waits; None on a CPU."""
    if device == "cpu":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
