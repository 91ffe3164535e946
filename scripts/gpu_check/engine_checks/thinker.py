"""Checks the thinker's engine:

- On a GPU, decode steps are captured as CUDA graphs. Steps with and without graphs give the same answers.
- A request gets the same answer alone, in a padded batch, and after a retraction.
- The picked ids, and the states that the engine copies for the talker, agree with the results of Hugging Face.

The checks allow differences that rounding can explain.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeConfig

from gpu_check.engine_checks.driving import Difference, Driven, EngineAnswer, difference, named, prompts, text
from gpu_check.running.finding import Finding
from gpu_check.running.setup import Setup
from stages.checkpoint.weights import load_part
from stages.thinker.stage import ARCHITECTURE

TOKENS = 48
BATCHES = (1, 3, 5, 8, 13)
TIMED = (1, 8, 32)
TAP_LAYER = 2

# Settings that cause retractions. By default, SGLang reserves memory for the expected growth of running requests, so
# that retractions are rare. With these settings, SGLang expects little growth, and prefill chunks are small.
CROWDED: dict[str, Any] = {"schedule_conservativeness": 0.01, "chunked_prefill_size": 32}

# Allowed difference of a logit. On a CPU, float32 rounds differently in batches of different shapes. On a GPU, the
# difference may be a few units in the last place of bfloat16, for logits up to 30.
ALLOWED = {"cpu": 1e-3, "cuda": 0.5}


def run(setup: Setup, checkpoint: Path) -> Iterator[Finding]:
    allowed = ALLOWED[setup.device]
    asked = prompts(checkpoint, max(BATCHES[:3] if setup.small else BATCHES))
    began = time.perf_counter()
    engine = Driven(setup, checkpoint, ARCHITECTURE, tap_layer=TAP_LAYER)
    sizes = engine.captured
    figures = {"seconds": round(time.perf_counter() - began, 1), "captured": sizes}
    yield Finding("thinker: start", bool(sizes) or setup.device == "cpu", figures)
    alone: dict[str, EngineAnswer] = {}
    for index, ids in enumerate(asked):
        alone |= engine.run(named([text(str(index), ids, TOKENS)]))
    yield _padding(setup, engine, asked, alone, allowed)
    yield _taps(setup, checkpoint, engine, asked, allowed)
    yield _reference(setup, checkpoint, asked, alone)
    if setup.in_time:
        yield _steps(setup, engine, asked[0])
    engine.close()
    if setup.in_time:
        eager = Driven(setup, checkpoint, ARCHITECTURE, eager=True)
        computed: dict[str, EngineAnswer] = {}
        for index, ids in enumerate(asked):
            computed |= eager.run(named([text(str(index), ids, TOKENS)]))
        eager.close()
        yield judged("thinker: graphs equal eager", difference(alone, computed, allowed), allowed)
    if setup.in_time:
        yield _retraction(setup, checkpoint, asked, alone, allowed)


def judged(name: str, found: Difference, allowed: float, **more: Any) -> Finding:
    """The finding for the differences between two runs of the same requests."""
    figures = {
        "logits_off_by": round(found.logits, 6), "picks": found.compared, "parted": found.parted,
        "parted_though_sure": found.wrong, **more,
    }  # fmt: skip
    return Finding(name, found.compared > 0 and not found.wrong and found.logits <= allowed, figures)


def _padding(
    setup: Setup, engine: Driven, asked: list[torch.Tensor], alone: dict[str, EngineAnswer], allowed: float
) -> Finding:
    """Compare batches with runs of each request alone. A batch is padded if no decode step of its size is captured."""
    worst = Difference()
    for size in (size for size in BATCHES if 1 < size <= len(asked)):
        together = engine.run(named([text(str(index), asked[index], TOKENS) for index in range(size)]))
        found = difference({name: alone[name] for name in together}, together, allowed)
        worst = Difference(
            max(worst.logits, found.logits), worst.parted + found.parted, worst.wrong + found.wrong,
            worst.compared + found.compared,
        )  # fmt: skip
    return judged("thinker: padded batches equal one alone", worst, allowed)


@torch.inference_mode()
def _taps(setup: Setup, checkpoint: Path, engine: Driven, asked: list[torch.Tensor], allowed: float) -> Finding:
    """Compare the states that the engine copies for the talker (*taps*) with Hugging Face's states. Then compare them
    with the states after a hit in the prefix cache.
    """
    ids = asked[3 % len(asked)]
    rows = torch.arange(len(ids))
    first, again = (engine.run(named([text("tap", ids, 2, rows)]))["tap"].tapped for _ in range(2))
    assert first is not None
    assert again is not None
    model = _hugging_face(setup, checkpoint)
    theirs = model(input_ids=ids[None].to(setup.device), output_hidden_states=True).hidden_states[TAP_LAYER][0]
    scale = float(theirs.float().abs().max())
    off = float((first.float().cpu() - theirs.float().cpu()).abs().max()) / scale
    cached = float((first.float() - again.float()).abs().max()) / scale
    limit = 1e-4 if setup.device == "cpu" else 0.05
    figures = {"off_hugging_face": off, "off_from_cache": cached, "rows": len(ids)}
    return Finding("thinker: taps", off < limit and cached < limit, figures)


@torch.inference_mode()
def _reference(setup: Setup, checkpoint: Path, asked: list[torch.Tensor], alone: dict[str, EngineAnswer]) -> Finding:
    """Compare each pick with the logits that Hugging Face computes after the same picks, in the same data type."""
    model = _hugging_face(setup, checkpoint)
    exact = _hugging_face(setup, checkpoint, torch.float32)
    off = rounding = furthest = 0.0
    different = picks = 0
    for index, prompt in enumerate(asked):
        answer = alone[str(index)]
        whole = torch.cat((prompt, torch.tensor(answer.ids)))[None].to(setup.device)
        theirs, truth = (one(input_ids=whole).logits[0, len(prompt) - 1 : -1].float().cpu() for one in (model, exact))
        ours = torch.stack(answer.logits)[:, : theirs.shape[1]]
        off, rounding = max(off, float((ours - truth).abs().max())), max(rounding, float((theirs - truth).abs().max()))
        best = truth.max(-1).values
        chosen = truth.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        furthest = max(furthest, float((best - chosen).max()))
        different += int((truth.argmax(-1) != torch.tensor(answer.ids)).sum())
        picks += len(answer.ids)
    # The limit for a logit is 1.5 × Hugging Face's own error in this data type, plus a small margin. A pick may be
    # below the best logit by twice the limit, because both logits may have this error.
    limit = 1.5 * rounding + 1e-3
    figures = {
        "picks": picks, "different": different, "furthest_below_best": furthest, "off_float32": off,
        "hugging_face_off_float32": rounding, "limit": limit,
    }  # fmt: skip
    return Finding("thinker: equal to Hugging Face", off <= limit and furthest <= 2 * limit, figures)


def _hugging_face(setup: Setup, checkpoint: Path, dtype: torch.dtype | None = None) -> Any:
    dtype = dtype or (torch.bfloat16 if setup.device == "cuda" else torch.float32)
    config = Qwen3OmniMoeConfig.from_pretrained(checkpoint).thinker_config
    kind = Qwen3OmniMoeThinkerForConditionalGeneration
    return load_part(kind, config, checkpoint, "thinker.", dtype, setup.device)


def _steps(setup: Setup, engine: Driven, ids: torch.Tensor) -> Finding:
    """Milliseconds of a decode step, including everything around the model."""
    figures: dict[str, float] = {}
    tokens = 8 if setup.small else 64
    for batch in TIMED[: 2 if setup.small else 3]:
        for index in range(batch):
            engine.engine.add(text(f"t{index}", ids, tokens))
        taken = []
        while engine.engine.has_work:
            began = time.perf_counter()
            engine.engine.step()
            taken.append(time.perf_counter() - began)
        figures[f"step_{batch}_ms"] = round(sorted(taken)[len(taken) // 2] * 1e3, 3)
    return Finding("thinker: ms per step", True, figures)


def _retraction(
    setup: Setup, checkpoint: Path, asked: list[torch.Tensor], alone: dict[str, EngineAnswer], allowed: float
) -> Finding:
    """Run more requests than fit into the KV cache, until all have ended. Some requests lose their memory and are
    computed again.
    """
    longest = max(map(len, asked))
    engine = Driven(setup, checkpoint, ARCHITECTURE, tokens=2 * (longest + TOKENS), requests=8, **CROWDED)
    requests = [text(str(index), ids, TOKENS) for index, ids in enumerate(asked)]
    fillers = [text(f"f{index}", asked[0], TOKENS) for index in range(8)]
    answers = engine.run(named([*fillers, *requests]))
    lost = int(engine.engine.stats()["preemptions"])
    engine.close()
    found = difference(alone, answers, allowed)
    finding = judged("thinker: retraction", found, allowed, preemptions=lost)
    return Finding(finding.check, finding.ok and lost > 0, finding.figures)
