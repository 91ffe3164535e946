"""Computes the memory that the memory plan gives to a stage on a checkpoint, so that tests can compare this memory with
the stage's real memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omni_pipeline.contract.stage_memory import Needs, Request, Situation
from omni_pipeline.deployment.checkpoint import inspect
from stages.topology import QWEN3_OMNI

ITEM_SIZE = 4  # bytes of a float32 number; float32 is the type on a CPU


def weight_bytes(path: Path, stage: str) -> int:
    """Planned bytes of a stage's weights."""
    assert QWEN3_OMNI.checkpoint is not None
    return inspect(path, QWEN3_OMNI.checkpoint).held_bytes(QWEN3_OMNI.stage(stage).weights, ITEM_SIZE)


def needs(path: Path, stage: str, options: Any) -> Needs:
    """Planned memory needs of a stage besides its weights, if all stages run on one CPU."""
    assert QWEN3_OMNI.checkpoint is not None
    tell = QWEN3_OMNI.stage(stage).needs
    assert tell is not None
    return tell(
        Situation(
            config=inspect(path, QWEN3_OMNI.checkpoint).config,
            options=options,
            device="cpu",
            item_size=ITEM_SIZE,
            ranks=1,
            device_memory=0,
            stages=frozenset(QWEN3_OMNI.stage_names),
            request=Request(),
        )
    )


def engine_bytes(engine: Any) -> tuple[int, float]:
    """The bytes of the engine's weights, and the bytes of keys and values for each token."""
    pool = engine._scheduler.tp_worker.model_runner.token_to_kv_pool
    slots = pool.size + pool.page_size  # padding writes to one extra page of the pool
    return sum(weight.nbytes for weight in engine.model.parameters()), sum(pool.get_kv_size_bytes()) / slots
