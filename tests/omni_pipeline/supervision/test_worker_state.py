"""The data that a `WorkerState` has about a process is dropped when the process ends or hangs."""

from __future__ import annotations

import pytest

from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.supervision.worker_state import WorkerState
from omni_pipeline.wire.counters import EdgeStats
from omni_pipeline.wire.messages import StageStats
from tests.omni_pipeline.echo_stages import Options


@pytest.fixture
def worker() -> WorkerState:
    plan = WorkerPlan("shout", (StagePlan("shout", "cpu", Options()),), threads=1)
    edges = [EdgeStats("split", "shout")]
    return WorkerState(plan, "ipc://x", running=True, ready=True, stats={"shout": StageStats()}, edges=edges)


def test_counters_go_when_the_process_ends(worker: WorkerState) -> None:
    worker.process_ended("was killed by SIGKILL", [])
    assert (worker.stats, worker.edges) == ({}, [])


def test_counters_go_when_the_process_hangs_although_it_still_runs(worker: WorkerState) -> None:
    worker.hangs("was inactive for 10 s")
    assert (worker.stats, worker.edges) == ({}, [])
    assert worker.running


def test_how_a_process_ended_is_still_known_after_the_restart(worker: WorkerState) -> None:
    worker.process_ended("was killed by SIGKILL", ["a last line"])
    assert (worker.last_end, worker.previous_end) == ("was killed by SIGKILL", None)
    worker.became_ready(0.0, 1.0)
    assert (worker.last_end, worker.previous_end) == (None, "was killed by SIGKILL")
