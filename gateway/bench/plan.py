"""Defines what a run of the bench measures, and the interface for reporting its progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from gateway.bench.report import Load
from gateway.bench.scenarios import Scenario


class CapacityGoal(Struct, frozen=True):
    """The goal of a search for the gapless capacity: the fraction of the answers that must play without a gap, and the
    largest number of streams to measure.
    """

    share: float
    most: int


class BenchPlan(Struct, frozen=True, kw_only=True):
    """The measurements to make, and the server to measure.

    Attributes:
        url, model, api_key: Server and model to measure. If `model` is None, the first model that the server lists is
            used.
        loads: Loads, measured one after the other. If `baseline` is set, every load must be a closed loop. If
            `capacity` is set, `loads` has no effect, because the search chooses the loads.
        requests: Number of requests to measure at each load. If `baseline` is set, this number is rounded up to a
            multiple of the concurrency, because a round has one request per stream. If `capacity` is set, this number
            is a minimum, because levels with many streams need more requests.
        warmup: Number of requests that are sent before the measured requests and are not counted.
        seed: Seed of prompts and arrival times.
        timeout: Longest time for one request, in seconds.
        baseline: Checkpoint with which Hugging Face answers the same requests; None to measure only the server.
        capacity: The goal of the search for the gapless capacity; None if there is no search.
    """

    url: str
    model: str | None
    api_key: str | None
    scenario: Scenario
    loads: Sequence[Load]
    requests: int
    warmup: int
    seed: int
    timeout: float
    media_dir: Path
    baseline: str | None = None
    capacity: CapacityGoal | None = None


class BenchProgress(Protocol):
    """Receives the progress of a run: the beginning of each set of requests, each answer, and each result."""

    def begin(self, what: str, total: int) -> None: ...

    def advance(self) -> None: ...

    def note(self, result: str) -> None: ...
