"""The environment of an agent that Ray starts."""

from __future__ import annotations

import os

import pytest

from omni_pipeline.hosts.ray_keeper import agent_environment


@pytest.fixture(autouse=True)
def _in_ray_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a Ray worker. In this environment, the worker's raylet is the process of the tests."""
    monkeypatch.setenv("RAY_RAYLET_PID", str(os.getpid()))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("LANG", "C.UTF-8")


def test_an_agent_sees_only_the_gpus_that_ray_has_reserved() -> None:
    assert agent_environment([2, 3])["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert agent_environment(["GPU-abc"])["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    assert agent_environment([])["CUDA_VISIBLE_DEVICES"] == ""


def test_an_agent_does_not_get_the_token_of_the_cluster() -> None:
    environment = agent_environment([])
    assert not [name for name in environment if name.startswith("RAY_")]
    assert environment["LANG"] == "C.UTF-8"


def test_an_agent_keeps_the_operators_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # tests/conftest.py sets this variable after the start of this process, as Ray does in its workers
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("omni_pipeline.hosts.ray_keeper._raylet_environment", lambda: {"OMP_NUM_THREADS"})
    assert agent_environment([])["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr("omni_pipeline.hosts.ray_keeper._raylet_environment", lambda: {"PATH"})
    assert "OMP_NUM_THREADS" not in agent_environment([])
