"""The GPU checks of single parts of the server all pass on a CPU with small sizes, and each check finds a planted
fault.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check import parts
from gpu_check.checks import SECONDS, copies, machine, predictor, ring, rotary, towers, vocoder
from gpu_check.running.children import findings, forked, spawned
from gpu_check.running.finding import Finding, Log
from gpu_check.running.random_parts import RandomModel
from gpu_check.running.setup import Setup
from msgspec.structs import replace

from stages.checkpoint import memory_needs
from stages.code2wav.history import History, Streams
from stages.code_predictor.graphs import FrameGraphs
from stages.code_predictor.stage import load_network
from stages.options import CodePredictorOptions

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check" / "parts.py"
USERS = (
    "stages.encoders.image_encoder",
    "stages.encoders.audio_encoder",
    "stages.code_predictor.stage",
    "stages.code2wav.stage",
)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup("cpu", True, tmp_path, time.monotonic() + 600)


@pytest.fixture(autouse=True)
def stages_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore `load_part` after each test, since the checks replace it to load random weights."""
    for name in USERS:
        module = importlib.import_module(name)
        for function in ("load_part", "read_tensors"):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, getattr(module, function))


def outcomes(found: Iterator[Finding]) -> dict[str, bool]:
    return {finding.check: finding.ok for finding in found}


def test_every_part_passes_at_small_sizes_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "parts.jsonl"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu", "--small", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if line["result"] != "ok"] == []
    assert done.returncode == 0, done.stderr
    assert list(dict.fromkeys(line["check"].split(":")[0] for line in lines)) == list(SECONDS)
    assert out.read_text() == done.stdout


def test_what_the_deadline_leaves_no_time_for_fails(tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--small", "--seconds", "1", "--only", "machine", "--only", "ring"]
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["check"], line["result"]) for line in lines] == [("machine", "FAIL"), ("ring", "FAIL")]
    assert done.returncode == 1


def test_on_a_gpu_a_check_is_a_program_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    """The check that this test starts ends at once, because there is no GPU."""
    assert parts.main(["--device", "cuda", "--only", "machine"]) == 1
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["check"], first["result"], first["figures"]["gpus"]) == ("machine", "FAIL", 0)
    assert second["check"] == "machine: hooks of transformers"


GOOD = Finding("a", True, {"ms": 1}).line()
ENDINGS = {
    "its time was over": f"import time; print({GOOD!r}, flush=True); time.sleep(600)",
    "it was ended by SIGSEGV": f"import os; print({GOOD!r}, flush=True); os.kill(os.getpid(), 11)",
    "it ended with 3": f"import sys; print({GOOD!r}); sys.exit(3)",
    "it printed no finding": "print('hello'); print('{}')",
}


@pytest.mark.parametrize("problem", ENDINGS)
def test_a_child_that_ends_badly_keeps_what_it_found_and_fails(problem: str) -> None:
    began = time.monotonic()
    *before, last = findings("a", spawned([sys.executable, "-c", ENDINGS[problem]], os.environ), 2.0)
    assert before == ([] if problem == "it printed no finding" else [Finding("a", True, {"ms": 1})])
    assert (last.ok, last.figures["problem"]) == (False, problem)
    assert time.monotonic() - began < 30


def test_what_a_child_wrote_to_stderr_is_told() -> None:
    def work() -> None:
        raise ValueError("the reason")

    [finding] = findings("a", forked(work), 20.0)
    assert finding.figures["problem"] == "it ended with 1"
    assert "ValueError: the reason" in finding.figures["stderr"]


def test_the_children_of_a_child_end_with_it(tmp_path: Path) -> None:
    """A check's child process starts a process that keeps the pipe open. This process neither delays the next check nor
    outlives its own check.
    """
    note = tmp_path / "pid"
    script = f"import os, pathlib, time\npid = os.fork()\nif pid: pathlib.Path({str(note)!r}).write_text(str(pid))\n"
    script += f"print({GOOD!r}, flush=True)\nif not pid: time.sleep(600)"
    assert len(list(findings("a", spawned([sys.executable, "-c", script], os.environ), 3.0))) >= 1
    grandchild = Path(f"/proc/{note.read_text()}/stat")
    until = time.monotonic() + 20
    while grandchild.exists() and grandchild.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not grandchild.exists() or grandchild.read_text().split()[2] == "Z"


@pytest.mark.parametrize(("results", "status"), [([True, True], 0), ([True, False], 1), ([], 1)])
def test_the_exit_status_says_whether_all_is_right(results: list[bool], status: int) -> None:
    log = Log(None)
    for ok in results:
        log.add(Finding("a", ok))
    assert log.status == status


def test_angles_that_stay_on_the_cpu_are_found(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    class Stuck(rotary.InterleavedAngles):
        def __init__(self, *sizes: Any) -> None:
            super().__init__(*sizes)
            self.register_buffer("inverse", torch.ones(64, device="cpu"), persistent=False)

    monkeypatch.setattr(rotary, "InterleavedAngles", Stuck)
    assert rotary.stray_buffers("meta")["inverse"] == "cpu"
    assert not outcomes(rotary.run(setup))["rotary: built on meta"]


def test_a_transformers_without_a_hook_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling = importlib.import_module("transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe")
    assert machine.missing_hooks(modeling) == []
    source = machine.inspect.getsource(modeling).replace("valid_indices", "indices")
    monkeypatch.setattr(machine.inspect, "getsource", lambda module: source)
    monkeypatch.delattr(modeling, "Qwen3OmniMoeSnakeBeta")
    missing = machine.missing_hooks(modeling)
    assert "Qwen3OmniMoeSnakeBeta" in missing
    assert "Qwen3OmniMoeAudioEncoder: valid_indices" in missing


def test_graphs_that_mix_their_rows_are_found(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    plain = FrameGraphs.frames

    def mixed(self: FrameGraphs, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        codes, embeddings = plain(self, *given)
        return codes.flip(0), embeddings

    monkeypatch.setattr(FrameGraphs, "frames", mixed)
    assert not outcomes(predictor.run(setup))["predictor: graphs equal eager"]


def test_replays_that_hold_memory_are_found(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    held: list[torch.Tensor] = []
    calls = itertools.count()
    plain = FrameGraphs.frames

    def hoarding(self: FrameGraphs, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if next(calls) % 5 == 0:
            # This tensor has more than 32 MiB, because for a block of this size, malloc always gets new memory from the
            # system. A smaller tensor could be in memory that earlier tests have freed.
            held.append(torch.ones(9 * 1024, 1024))
        return plain(self, *given)

    monkeypatch.setattr(FrameGraphs, "frames", hoarding)
    assert not outcomes(predictor.run(setup))["predictor: replays hold no memory"]


def test_chunks_that_forget_what_came_before_are_found(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    def forgetful(self: History, x: torch.Tensor, streams: Streams) -> torch.Tensor:
        return torch.cat((torch.zeros_like(streams.read(self._kept)), x), -1)

    monkeypatch.setattr(History, "extend", forgetful)
    found = outcomes(vocoder.run(setup))
    assert not found["vocoder: chunks equal the whole"]


def test_a_peak_above_the_plan_is_found(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    plan = memory_needs.vision
    half = lambda situation: replace(plan(situation), activations=plan(situation).activations // 2)  # noqa: E731
    monkeypatch.setattr(memory_needs, "vision", half)
    finding = next(towers.run(setup))
    assert (finding.check, finding.ok) == ("towers: picture of 1 MP", False)


def test_rows_gathered_wrongly_are_found(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    made = []
    plain = copies.gather

    def second_is_off(*given: Any) -> Any:
        rows = plain(*given)
        made.append(rows)
        if len(made) == 2:
            rows.media_embeds[0] += 1
        return rows

    monkeypatch.setattr(copies, "gather", second_is_off)
    assert not outcomes(copies.run(setup))["copies: gather"]


def test_a_ring_whose_other_process_is_gone_ends(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    monkeypatch.setattr(ring, "_START_SECONDS", 0.5)
    monkeypatch.setattr(ring, "predict", lambda *given: None)
    [finding] = findings("ring", forked(lambda: list(ring.run(setup))), 60.0)
    assert "the other process does not answer" in finding.figures["stderr"]


def test_random_parts_have_the_sizes_of_the_config(setup: Setup) -> None:
    model = RandomModel(setup.directory, "cpu", small=True)
    network = load_network(model.path, "cpu", CodePredictorOptions(max_batch=2))
    assert (network.codebooks, network.vocab, network.hidden_size, network.first_vocab) == (4, 256, 256, 1280)
