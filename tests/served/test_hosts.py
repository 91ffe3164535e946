"""A server whose speech stages are on other hosts gives the same answers as a server on one host."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
import yaml

from tests.device import PATIENCE
from tests.served.joined import joined, on_hosts
from tests.served.test_replicas import REQUESTS, STAGES, Heard, alone, ask, metrics, replicas_that_worked
from tests.server import Server, fused

__all__ = ["alone"]

# The first server on two hosts in the documentation. Tokens, frames and sound cross hosts.
WALK = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text().partition("### A first server on two hosts")[2]
DOCUMENTED: dict[str, Any] = yaml.safe_load(WALK.partition("```yaml\n")[2].partition("```")[0])


@pytest.fixture(scope="module")
def spread(tiny_checkpoint: Path, repository: Path) -> Iterator[tuple[Server, dict[str, subprocess.Popen[bytes]]]]:
    config = fused() | on_hosts(*DOCUMENTED["hosts"]) | {"groups": DOCUMENTED["groups"]}
    config["stages"]["preprocessing"] |= STAGES["stages"]["preprocessing"]
    server = Server(tiny_checkpoint, repository, config, speech=True)
    with joined(server) as agents:
        wait_for_ok(server)
        yield server, agents
    assert "Traceback" not in server.log.read_text()


def test_the_documentation_uses_the_commands_of_these_tests() -> None:
    """`tests.served.joined` runs `invite HOST` and `join`, and passes the output of the first to the second."""
    commands = WALK.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert commands[0].startswith("sgl-omni serve --model-path /models/Qwen3-Omni --config hosts.yaml ")
    assert commands[1].split("  ")[0] == "sgl-omni invite b | ssh b sgl-omni join"


def wait_for_ok(server: Server) -> None:
    server.until(lambda: server.health()[1]["status"] == "ok", PATIENCE.start)


def test_answers_do_not_depend_on_hosts(
    spread: tuple[Server, dict[str, subprocess.Popen[bytes]]], alone: dict[str, Heard]
) -> None:
    server, _ = spread
    for name, (ids, sound) in alone.items():
        for _ in range(3):  # one after the other, the requests go through all replicas in turn
            found_ids, found_sound = ask(server, name)
            assert found_ids == ids, name
            assert numpy.array_equal(found_sound, sound), name
    assert replicas_that_worked(server, "talker_ar") == {"0", "1"}
    assert replicas_that_worked(server, "code2wav") == {"0", "1"}


def test_answers_to_many_requests_do_not_depend_on_hosts(
    spread: tuple[Server, dict[str, subprocess.Popen[bytes]]], alone: dict[str, Heard]
) -> None:
    server, _ = spread
    names = [*REQUESTS] * 3
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: ask(server, name), names))
    for name, (ids, sound) in zip(names, answers, strict=True):
        assert ids == alone[name][0], name
        assert len(sound) == len(alone[name][1])
        # batches of other sizes round differently
        assert numpy.abs(sound.astype(int) - alone[name][1]).max(initial=0) <= 2, name


def test_health_and_metrics_name_the_hosts(spread: tuple[Server, dict[str, subprocess.Popen[bytes]]]) -> None:
    server, agents = spread
    workers = server.health()[1]["workers"]
    assert {name: report["host"] for name, report in workers.items() if report["host"]} == {
        "talker_ar@1": "b",
        "code_predictor@1": "b",
        "code2wav@0": "b",
    }
    family = {process.pid for process in psutil.Process(agents["b"].pid).children(recursive=True)}
    assert workers["talker_ar@1"]["pid"] in family
    lines = metrics(server)
    assert 'omni_host_up{host="b"} 1.0' in lines
    assert any(line.startswith('omni_process_resident_memory_bytes{process="talker_ar@1"}') for line in lines)


def test_a_lost_host_ends_only_its_own_answers_and_comes_back(
    spread: tuple[Server, dict[str, subprocess.Popen[bytes]]], alone: dict[str, Heard]
) -> None:
    server, agents = spread
    agent = psutil.Process(agents["b"].pid)
    os.kill(agent.pid, signal.SIGSTOP)  # the agent is silent until its lease has expired
    try:
        server.until(lambda: server.health()[1]["status"] == "degraded", PATIENCE.request)
        assert server.health()[0] == 200
        begin = time.monotonic()
        for name in ("greedy speech", "seeded speech", "greedy text"):
            ids, sound = ask(server, name)
            assert ids == alone[name][0]
            assert numpy.array_equal(sound, alone[name][1])
        assert time.monotonic() - begin < PATIENCE.request
        assert 'omni_host_up{host="b"} 0.0' in metrics(server)
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    # the agent joins again by itself, without a new invitation
    wait_for_ok(server)
    assert agents["b"].poll() is None
