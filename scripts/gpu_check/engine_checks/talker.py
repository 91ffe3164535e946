"""Checks that the talker's engine computes the same codes for an utterance in four cases: the utterance is computed
alone, it is computed in a batch, some of its rows arrive late, or it is computed again after a retraction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gpu_check.engine_checks.driving import Driven, EngineAnswer, difference, named
from gpu_check.engine_checks.thinker import ALLOWED, CROWDED, judged
from gpu_check.running.finding import Finding
from gpu_check.running.setup import Setup
from stages.messages import Sampling
from stages.sglang_engine.checkpoint_view import talker_view
from stages.sglang_engine.engine import Generation
from stages.sglang_engine.prompt_rows import PromptRows
from stages.talker_ar.stage import ARCHITECTURE

VOICES = 8
FRAMES = 60
# The number of rows in each prompt. It equals the number of rows that a prefill step computes with the settings
# `CROWDED`, so each prefill step has only one utterance. The engine does not copy the rows of a single utterance. So
# the check also shows whether these rows are still unchanged when they are computed again after a retraction.
PROMPT = CROWDED["chunked_prefill_size"]


def run(setup: Setup, checkpoint: Path) -> Iterator[Finding]:
    allowed, voices = ALLOWED[setup.device], 5 if setup.small else VOICES
    view = talker_view(str(checkpoint), str(setup.directory))
    began = time.perf_counter()
    engine = Driven(setup, view, ARCHITECTURE, fed=True, disable_radix_cache=True)
    figures = {"seconds": round(time.perf_counter() - began, 1), "captured": engine.captured}
    yield Finding("talker: start", bool(engine.captured) or setup.device == "cpu", figures)
    said = Said(engine, voices)
    alone: dict[str, EngineAnswer] = {}
    for name in said.names:
        alone |= engine.run(named([said.voice(name)]), said.row)
    together = engine.run(named([said.voice(name) for name in said.names]), said.row)
    yield judged("talker: voices together equal one alone", difference(alone, together, allowed), allowed)

    def late(name: str, step: int) -> bool:
        return (step + int(name)) % 3 == 0

    parked = engine.run(named([said.voice(name) for name in said.names]), said.row, late)
    yield judged("talker: parked voices equal one alone", difference(alone, parked, allowed), allowed)
    engine.close()
    options = {"disable_radix_cache": True, **CROWDED}
    small = Driven(setup, view, ARCHITECTURE, fed=True, tokens=3 * (PROMPT + FRAMES), requests=8, **options)
    again = small.run(named([said.voice(name) for name in said.names]), said.row)
    lost = int(small.engine.stats()["preemptions"])
    small.close()
    finding = judged("talker: retraction", difference(alone, again, allowed), allowed, preemptions=lost)
    yield Finding(finding.check, finding.ok and lost > 0, finding.figures)


class Said:
    """Utterances with random prompts and with random rows for their frames. Every run uses the same prompts and
    rows.
    """

    def __init__(self, engine: Driven, voices: int) -> None:
        self.names = [str(index) for index in range(voices)]
        model = engine.engine.model
        self._table: torch.Tensor = model.model.embed_tokens.weight
        self._device, self._dtype = self._table.device, self._table.dtype

    def voice(self, name: str) -> Generation:
        ids = torch.zeros(PROMPT, dtype=torch.int64)
        rows = PromptRows(
            ids=ids, positions=None, delta=0.0, media_rows=torch.arange(PROMPT), media_embeds=self._random(name, PROMPT)
        )
        sampling = Sampling(max_tokens=FRAMES, repetition_penalty=1.05)
        return Generation(name, ids, rows, sampling, penalize_prompt=False)

    def row(self, name: str, frame: int) -> torch.Tensor:
        return self._random(f"{name}{frame:03}", 1)[0]

    def _random(self, seed: str, rows: int) -> torch.Tensor:
        """Random rows of the size of embeddings, on the device, where the talker's stage makes them."""
        generator = torch.Generator().manual_seed(int(seed) + 1)
        size = float(self._table.float().std())
        drawn = torch.randn(rows, self._table.shape[1], generator=generator) * size
        return drawn.to(self._device, self._dtype)
