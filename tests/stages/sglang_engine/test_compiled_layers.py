"""The compiled decoder layers compute what SGLang's modules compute, for prompts and for generated tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.messages import Sampling
from stages.sglang_engine import compiled_layers
from stages.sglang_engine.engine import Engine, Generation, Prefilled, Token
from stages.sglang_engine.prompt_rows import PromptRows
from stages.thinker.stage import ARCHITECTURE

LAYERS_WITH_DEEPSTACK = 3
TAP = 2


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Iterator[Engine]:
    engine = Engine(
        model_path=str(tiny_checkpoint),
        architecture=ARCHITECTURE,
        device="cpu",
        dtype=None,
        eos_ids=[0],
        max_total_tokens=4096,
        max_running_requests=8,
        options={"chunked_prefill_size": 64},
        tap_layer=TAP,
    )
    yield engine
    engine.close()


class Compared:
    """Computes each batch twice: with the compiled layers and with SGLang's modules. Records the kind and the number of
    rows of each batch, and the largest difference of a state.
    """

    def __init__(self, model: Any) -> None:
        self.seen: list[tuple[str, int, float]] = []
        self._model = model
        self._run = model.run_layers

    def __call__(
        self, input_ids: torch.Tensor, angles: Any, batch: Any, rows: torch.Tensor | None = None, **options: Any
    ) -> Any:
        compiled, self._model.compiled = self._model.compiled, None
        expected = self._run(input_ids, angles, batch, None if rows is None else rows.clone(), **options)
        self._model.compiled = compiled
        results = self._run(input_ids, angles, batch, rows, **options)
        pairs = [(result, wanted) for result, wanted in zip(results, expected, strict=True) if wanted is not None]
        difference = max((result - wanted).abs().max().item() for result, wanted in pairs)
        kind = "prompts" if batch.forward_mode.is_extend() else "tokens"
        self.seen.append((kind, len(results[0]), difference))
        return results


@pytest.fixture
def compared(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Compared:
    assert engine.model.compiled is not None
    compared = Compared(engine.model)
    monkeypatch.setattr(engine.model, "run_layers", compared)
    return compared


def prompt(length: int, seed: int, *, media: bool = False) -> PromptRows:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 2000, (length,), generator=random)
    if not media:
        return PromptRows(ids, None, 0.0)
    visual = torch.arange(3, length - 3)
    return PromptRows(
        ids,
        torch.arange(length, dtype=torch.float32).repeat(3, 1) * 0.5,
        -length / 2,
        media_rows=visual,
        media_embeds=torch.randn(len(visual), 128, generator=random),
        visual_rows=visual,
        deepstack=torch.randn(LAYERS_WITH_DEEPSTACK, len(visual), 128, generator=random) * 0.1,
    )


def generate(engine: Engine, prompts: list[PromptRows]) -> tuple[list[tuple[str, int]], int]:
    """Answer prompts together. Returns the tokens, and the number of prompt tokens that came from the prefix cache."""
    for index, rows in enumerate(prompts):
        tapped = rows.visual_rows
        engine.add(Generation(str(index), rows.ids, rows, Sampling(max_tokens=5, ignore_eos=True), tapped_rows=tapped))
    tokens, cached = [], 0
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Token):
                tokens.append((event.request_id, event.id))
            elif isinstance(event, Prefilled):
                cached += event.cached_tokens
    return tokens, cached


@pytest.mark.parametrize("media", [False, True])
def test_states_are_those_of_the_modules(media: bool, engine: Engine, compared: Compared) -> None:
    prompts = [prompt(length, seed + 100 * media, media=media) for seed, length in enumerate((9, 30, 100, 17))]
    generate(engine, prompts)
    kinds = {kind: [rows for seen, rows, _ in compared.seen if seen == kind] for kind in ("prompts", "tokens")}
    assert max(kinds["prompts"]) > 30
    assert max(kinds["tokens"]) == 4
    assert max(difference for _, _, difference in compared.seen) < 2e-5


def test_a_prompt_from_the_prefix_cache(engine: Engine, compared: Compared) -> None:
    first, cached = generate(engine, [prompt(50, 7)])
    assert cached == 0
    again, cached = generate(engine, [prompt(50, 7)])
    assert cached > 40
    assert again == first
    assert max(difference for _, _, difference in compared.seen) < 2e-5


def test_a_batch_with_much_attention_is_left_to_the_modules(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = generate(engine, [prompt(40, 9)])
    runs: list[int] = []
    run = engine.model.compiled.run
    monkeypatch.setattr(
        engine.model.compiled, "run", lambda x, *rest, **more: runs.append(len(x)) or run(x, *rest, **more)
    )
    monkeypatch.setattr(compiled_layers, "MOST_PAIRS", 40)
    assert generate(engine, [prompt(40, 10), prompt(40, 9)])[0]
    assert runs == []
    monkeypatch.undo()
    assert generate(engine, [prompt(40, 9)])[0] == expected


def test_other_data_types_are_left_to_the_modules(engine: Engine) -> None:
    cache = engine._scheduler.tp_worker.model_runner.token_to_kv_pool
    assert compiled_layers.CompiledLayers.suits(engine.model, cache)
    weight = engine.model.model.layers[1].self_attn.o_proj.weight
    plain = weight.data
    try:
        weight.data = plain.to(torch.bfloat16)
        assert not compiled_layers.CompiledLayers.suits(engine.model, cache)
    finally:
        weight.data = plain
