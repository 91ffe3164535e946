"""Has the engines of all starts resolved and built under fake GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from fake_gpu import Accelerator, Machine
from msgspec import Struct

from faked_starts.data import Arguments, Built, Engine
from faked_starts.layouts import CARDS, Start

_MODULE = "faked_starts.engines"


class Started(Struct, frozen=True):
    """An engine of a start, and what SGLang makes of it."""

    start: Start
    engine: Engine
    arguments: Arguments


def resolve(accelerator: Accelerator, starts: Iterable[Start]) -> Iterator[Started]:
    """Every engine of these starts; equal ones on the same card are resolved once."""
    pairs = [(start, engine) for start in starts for engine in start.engines]
    for card in CARDS:
        here = [(start, engine) for start, engine in pairs if start.card == card]
        engines: list[Engine] = []
        for _, engine in here:
            if engine not in engines:
                engines.append(engine)
        machine = Machine.of(CARDS[card], max((engine.ranks for engine in engines), default=1))
        order = msgspec.to_builtins(engines)
        found = msgspec.convert(accelerator.run(f"{_MODULE}:resolve", machine=machine, engines=order), list[Arguments])
        for start, engine in here:
            yield Started(start, engine, found[engines.index(engine)])


def build(accelerator: Accelerator, engine: Engine) -> Built:
    """The model of an engine, on ``meta``."""
    return msgspec.convert(accelerator.run(f"{_MODULE}:build", engine=msgspec.to_builtins(engine)), Built)
