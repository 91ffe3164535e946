"""Runs the short forms of `chaos.py`, `soak.py` and `siege.py` on one server, and tests that their checks notice
faults.
"""

from __future__ import annotations

import functools
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import chaos
import pytest
import siege
import soak
from trials.client import Outcome
from trials.conduct import Findings, conduct
from trials.conversations import conversations
from trials.report import PromiseCheck, TrialReport
from trials.service import Service
from trials.shared_memory import ROOT
from trials.traffic import Book

# The limits on times are generous here, because times depend on the machine. The long forms judge the times strictly.
PATIENT = ["--errors", "60", "--recover", "120"]


async def test_busy_server_survives_the_loss_of_each_worker_and_clients_that_leave_or_attack(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    model = ["--model-path", str(checkpoints("nano")), "--of-each", "1"]
    killed = chaos.parser().parse_args([*model, *PATIENT, "--signals", "KILL"])
    stopped = [*model, *PATIENT, "--signals", "STOP", "--silent-seconds", "5", "--workers", "talker_ar", "--seed", "1"]
    left = soak.parser().parse_args([*model, "--seconds", "0", "--disconnects", "40", "--free", "60", "--growth", "9"])
    besieged = siege.parser().parse_args([*model, "--seconds", "10", "--quiet", "2", "--free", "60"])
    config = {"supervision": {"silent_seconds": 5}, **siege.CONFIG}
    service = Service(checkpoints("nano"), config, [], tmp_path / "server.log")
    report = await conduct(
        "short forms",
        service,
        functools.partial(chaos.break_workers, arguments=killed),
        functools.partial(chaos.break_workers, arguments=chaos.parser().parse_args(stopped)),
        functools.partial(soak.keep_busy, arguments=left),
        functools.partial(siege.besiege, arguments=besieged, timed=False),
    )
    print(report.markdown())  # the report has the latency of the honest clients, which the short form does not judge
    assert report.good, report.markdown()


def test_every_worker_is_hit_as_often_as_was_said_and_nobody_twice_in_a_round() -> None:
    arguments = chaos.parser().parse_args(["--model-path", "x", "--times", "3"])
    strikes = chaos.plan(arguments, [f"worker {number}" for number in range(9)], chaos.random.Random(0))
    assert len(strikes) == 9 * 2 * 3
    assert all(len({victim for victim, _ in strikes[start : start + 9]}) == 9 for start in range(0, 54, 9))
    assert {number for _, number in strikes} == {signal.SIGKILL, signal.SIGSTOP}


def test_conversations_are_the_same_for_the_same_seed() -> None:
    first, again, other = (conversations(seed, of_each=2, speech=True) for seed in (1, 1, 2))
    assert first == again != other
    assert len({conversation.name for conversation in first}) == len(first)
    assert not any(conversation.spoken for conversation in conversations(1, of_each=1, speech=False))


@pytest.mark.parametrize(
    ("outcome", "broken"),
    [
        (Outcome("text 0", 0, 1, "answered", digest="right"), None),
        (Outcome("text 0", 0, 1, "answered", digest="wrong"), "answers equal those without other requests"),
        (Outcome("text 0", 0, 1, "cut"), "every request ended"),
        (Outcome("text 0", 0, 1, "endless"), "every request ended"),
        (Outcome("text 0", 0, 1, "error", 500, "internal_error"), "only faults cause errors"),
        (Outcome("text 0", 0, 5, "error", 503, "worker_lost"), "errors within 1 s of a kill"),
    ],
)
def test_what_breaks_a_promise_of_chaos_is_noticed(outcome: Outcome, broken: str | None) -> None:
    faults = [chaos.Fault("thinker", "SIGKILL", 0.0)]
    book = Book({"text 0": "right"}, [outcome])
    chaos.charge(faults, book.outcomes)
    findings = Findings()
    chaos.judge(findings, chaos.parser().parse_args(["--model-path", "x"]), faults, book)
    assert [check.promise for check in findings.checks if not check.kept] == ([] if broken is None else [broken])


def test_leftovers_are_found(tmp_path: Path) -> None:
    service = Service(tmp_path, {}, [], tmp_path / "log")
    service.server.end()  # the test needs no server, and without a checkpoint the server cannot start
    (service.temporary / "forgotten").touch()
    assert service.leftovers()["temporary files"] == ["forgotten"]
    assert not service.temporary.exists()


def test_shared_memory_of_others_is_not_the_servers(tmp_path: Path) -> None:
    """Other programs create shared memory while the server runs; only the files of the server count."""
    with tempfile.NamedTemporaryFile(dir=ROOT) as foreign, tempfile.NamedTemporaryFile(dir=ROOT) as own:
        with subprocess.Popen(["sleep", "60"], stdin=own) as holder:
            service = Service(tmp_path, {}, [], tmp_path / "log")
            service.server.end()
            service.server.process = holder
            service.processes()
            holder.kill()
            holder.wait()
        left = service.leftovers()["shared memory"]
    assert own.name in left
    assert foreign.name not in left


def test_report_is_good_only_if_every_promise_was_kept(tmp_path: Path) -> None:
    kept, broken = PromiseCheck("a", "1", True), PromiseCheck("b", "2", False)
    assert TrialReport("t", "c", [kept], {}, {}).good
    report = TrialReport("t", "c", [kept, broken], {"Figures": [["x"], ["1"]]}, {"all": [1]})
    assert not report.good
    report.write(tmp_path)
    assert "| b | 2 | BROKEN |" in (tmp_path / "report.md").read_text()
    assert '"all"' in (tmp_path / "report.json").read_text()
