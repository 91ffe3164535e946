"""The results of the recorded decode step equal the results of SGLang's modules, for batches of all sizes and for
sequences of all lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.messages import Sampling
from stages.sglang_engine import cpu_kernels, packed_head
from stages.sglang_engine.decode_trace import DecodeTrace
from stages.sglang_engine.engine import Engine, Generation, Token
from stages.sglang_engine.prompt_rows import PromptRows
from stages.thinker.stage import ARCHITECTURE


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
        options={"disable_radix_cache": True},
    )
    if engine.model.compiled is not None:  # in this case, the layers are not recorded
        runner = engine._scheduler.tp_worker.model_runner
        engine.model.compiled = None
        engine.model.recorded = DecodeTrace(engine.model, runner.attn_backend, runner.token_to_kv_pool)
    yield engine
    engine.close()


class Compared:
    """Decodes each batch with and without the recording. Records the size of each batch, and the largest difference
    that the recording makes to a logit.
    """

    def __init__(self, engine: Engine) -> None:
        self.seen: list[tuple[int, float]] = []
        self._model = engine.model
        self._attention = engine.model.recorded._attention
        self._trace = DecodeTrace(engine.model, self._attention, engine.model.recorded._cache)

    def __call__(self, input_ids: torch.Tensor, batch: Any) -> Any:
        expected = self._model.decode(input_ids, batch).next_token_logits
        repeated = self._trace(input_ids, batch)
        if self._attention.places is not None:
            self.seen.append((len(input_ids), (repeated.next_token_logits - expected).abs().max().item()))
        return repeated


@pytest.fixture
def compared(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Compared:
    compared = Compared(engine)
    monkeypatch.setattr(engine.model, "recorded", compared)
    return compared


def generate(engine: Engine, lengths: dict[int, int]) -> list[tuple[str, int]]:
    """Answer several prompts at once. `lengths` maps the length of each prompt to the number of tokens of the
    answer. Returns the tokens.
    """
    for prompt, tokens in lengths.items():
        ids = torch.randint(2, 2000, (prompt,), generator=torch.Generator().manual_seed(prompt))
        rows = PromptRows(ids=ids, positions=None, delta=0.0)
        engine.add(Generation(str(prompt), ids, rows, Sampling(max_tokens=tokens, ignore_eos=True)))
    tokens = []
    while engine.has_work:
        tokens += [(event.request_id, event.id) for event in engine.step() if isinstance(event, Token)]
    return tokens


@pytest.mark.parametrize("first", [{12: 3}, {12: 3, 9: 3, 40: 3}])
def test_one_recording_serves_batches_of_every_size(first: dict[int, int], engine: Engine, compared: Compared) -> None:
    generate(engine, first)
    generate(engine, {20: 4, 21: 8, 57: 12, 130: 16, 300: 20})
    generate(engine, {200: 3})
    assert {rows for rows, _ in compared.seen} >= {1, 2, 3, 4, 5}
    assert max(difference for _, difference in compared.seen) < 1e-5


def test_lengths_that_padding_does_not_suit_are_computed(
    engine: Engine, compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "FREE_PLACES", 0)
    generate(engine, {10: 4, 11: 4, 12: 4, 400: 6})
    assert {rows for rows, _ in compared.seen} == {1}


def test_a_packed_head_picks_the_same_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {20: 12, 57: 12, 130: 12}
    before = generate(engine, lengths)
    monkeypatch.setattr(packed_head, "LEAST_WEIGHTS", 1)
    engine.model.logits_processor.pack(engine.model.lm_head)
    assert not engine.model.lm_head.weight.numel()
    assert generate(engine, lengths) == before
