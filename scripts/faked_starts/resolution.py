"""Resolves and builds the engines of all starts under fake GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from fake_gpu import Accelerator, Machine
from msgspec import Struct

from faked_starts.data import STAGES, Arguments, Built, PlannedEngine
from faked_starts.layouts import CARDS, FakedStart

_MODULE = "faked_starts.engines"

# Modules that the process under fake GPUs imports once, instead of in each of its forks.
_PRELOADED = ("stages.sglang_engine.preload",)


class Started(Struct, frozen=True):
    """An engine that one of the faked starts of a server would create, and SGLang's resolved arguments for it."""

    start: FakedStart
    engine: PlannedEngine
    arguments: Arguments


def resolve(accelerator: Accelerator, starts: Iterable[FakedStart]) -> Iterator[Started]:
    """The engines of all `starts`, each with its resolved arguments.

    Equal engines on the same card are resolved once.
    """
    accelerator.load(_PRELOADED)
    pairs = [(start, engine) for start in starts for engine in start.engines]
    for card in CARDS:
        here = [(start, engine) for start, engine in pairs if start.card == card]
        engines: list[PlannedEngine] = []
        for _, engine in here:
            if engine not in engines:
                engines.append(engine)
        machine = Machine.of(CARDS[card], max((engine.ranks for engine in engines), default=1))
        order = msgspec.to_builtins(engines)
        found = msgspec.convert(accelerator.run(f"{_MODULE}:resolve", machine=machine, engines=order), list[Arguments])
        for start, engine in here:
            yield Started(start, engine, found[engines.index(engine)])


def sample(stage: str, checkpoint: Path, **options: Any) -> PlannedEngine:
    """A stage's engine for a checkpoint. The engine is small enough for every kind of GPU in `CARDS`."""
    return PlannedEngine(stage, str(checkpoint), {"max_total_tokens": 100_000, **options}, STAGES, static=40 * 1024**3)


def build(accelerator: Accelerator, engine: PlannedEngine) -> Built:
    """The model of an engine, built on ``meta``."""
    accelerator.load(_PRELOADED)
    return msgspec.convert(accelerator.run(f"{_MODULE}:build", engine=msgspec.to_builtins(engine)), Built)
