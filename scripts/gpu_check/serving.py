"""Starts a server in one layout, asks the guide's questions, measures it, and checks that it frees the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_process import ServerProcess

from gpu_check import child
from gpu_check.child import Cause
from gpu_check.machine import GIB, Memory, gpu_memory
from gpu_check.questions import EXAMPLES, body, judge
from gpu_check.report import Check, Report, block, quoted, table

ROOT = Path(__file__).parents[2]

MINUTES = 60
"""The maximum number of minutes that one layout takes. This time includes the start of the server, the compilation of
kernels during the first requests, and the measurements.
"""

START_SECONDS = 1800  # enough for a 70 GB checkpoint on a slow disk
_CLI = (sys.executable, "-m", "omni_pipeline.cli")
_PLAIN = {"COLUMNS": "110", "NO_COLOR": "1"}
# The memory in use may exceed the plan by at most this share of the GPU's memory.
_PLAN_OFF = 0.05
_LEFT_BEHIND = GIB // 2
_LOG = 4000
_BENCH_SECONDS = 1800
_FIRST_SECONDS = 900  # enough for a request that compiles kernels


@dataclass(frozen=True)
class TriedLayout:
    """A way to run the model: its name and its flags."""

    name: str
    flags: tuple[str, ...]
    speech: bool = True


def layouts(gpus: int) -> list[TriedLayout]:
    """The layouts to try on this number of GPUs (0: on the CPU)."""
    found = [
        TriedLayout("text", ("--text-only",), speech=False),
        TriedLayout("split", ()),
        TriedLayout("colocated", ("--colocate",)),
    ]
    for ranks in (2, 4, 8):
        if ranks <= gpus:
            shared = ",".join(map(str, range(ranks)))
            found.append(TriedLayout(f"thinker on {ranks}", ("--gpu-thinker", shared)))
    return found


@dataclass(frozen=True)
class Run:
    """The steps to run in each layout.

    Attributes:
        bench: Further flags of `sgl-omni bench`; None skips the benchmark.
    """

    model: Path
    device: str
    directory: Path
    bench: Sequence[str] | None


def try_layout(report: Report, layout: TriedLayout, run: Run) -> None:
    """Try one layout: plan it, start its server, ask the questions, measure the server, and stop the server. The report
    gets one section about the layout.
    """
    plan, drawn = planned(layout, run)
    heading = f"Layout: {layout.name} ({' '.join(layout.flags) or 'no flags'})"
    if not plan["fits"]:
        report.add(heading, block(drawn), Check(layout.name, None, "the plan says that it does not fit"))
        return
    before = gpu_memory()
    flags = ["--device", run.device, "--model-name", "qwen3-omni", *layout.flags]
    media = ["--allowed-local-media-path", str(run.directory)]
    output = run.directory / f"server-{layout.name.replace(' ', '-')}.log"
    server = ServerProcess(["--model-path", str(run.model), *media, *flags], output, directory=run.directory)
    began = time.monotonic()
    try:
        server.start().wait_until_ready(START_SECONDS)
    except (RuntimeError, TimeoutError) as error:
        failed = Check(f"{layout.name}: start", False, "see the section of this layout")
        report.add(heading, f"{block(drawn)}\n\n{block(str(error)[-_LOG:])}", failed)
        return
    checks = [Check(f"{layout.name}: start", True, f"ready after {time.monotonic() - began:.0f} s")]
    parts: list[str] = []
    try:
        for text, found in _use(server, layout, plan, run):
            parts.append(text)
            checks += found
    except (OSError, ValueError, LookupError) as error:  # the server does not answer, or its answers are malformed
        checks.append(Check(f"{layout.name}: answers", False, f"{type(error).__name__}: {error}"))
    except BaseException:  # stop the server also on Ctrl-C, so that no process is left
        server.stop()
        raise
    checks.append(_stop(server, layout, before))
    log = server.log.read_text()
    if any(check.passed is False for check in checks) or "Traceback" in log:
        parts.append(f"End of the server's log:\n\n{block(log[-_LOG:])}")
    report.add(heading, "\n\n".join([block(drawn), *filter(None, parts)]), *checks)


def planned(layout: TriedLayout, run: Run) -> tuple[dict[str, Any], str]:
    """The output of `sgl-omni plan` for the layout on this machine, as data and as text."""
    command = [*_CLI, "plan", "--model-path", str(run.model), "--device", run.device, *layout.flags]
    said, drawn = (
        subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | _PLAIN
        )
        for more in (["--json"], [])
    )
    if not said.stdout:  # the flags contradict each other or do not suit the machine
        return {"fits": False, "devices": []}, said.stderr
    data: dict[str, Any] = json.loads(said.stdout)
    return data, drawn.stdout


def _use(
    server: ServerProcess, layout: TriedLayout, plan: dict[str, Any], run: Run
) -> Iterator[tuple[str, list[Check]]]:
    """Ask the questions and measure. Check the memory last, because torch still reserves memory during the questions
    and the measurements.
    """
    yield _ask(server, layout)
    if run.bench is not None:
        for output in ("text", "speech") if layout.speech else ("text",):
            yield bench(server.url, layout.name, output, run.bench, run.directory)
    yield compare(layout.name, plan, gpu_memory())


def _ask(server: ServerProcess, layout: TriedLayout) -> tuple[str, list[Check]]:
    rows, problems = [], []
    for name in EXAMPLES:
        for speech in (False, True) if layout.speech else (False,):
            began = time.monotonic()
            status, result = server.post(body(name, speech=speech), timeout=_FIRST_SECONDS)
            answer = judge(status, result, speech=speech)
            seconds = time.monotonic() - began
            sound = "–" if answer.seconds is None else f"{answer.seconds:.1f} s"
            rows.append(
                (name, "aloud" if speech else "in text", quoted(answer.text), sound, f"{seconds:.2f} s", answer.problem)
            )
            problems += [f"{name}: {answer.problem}"] if answer.problem else []
    header = ("question", "answered", "text", "sound", "took", "problem")
    return table(header, rows), [Check(f"{layout.name}: the guide's questions", not problems, "; ".join(problems))]


def bench(url: str, layout: str, output: str, flags: Sequence[str], directory: Path) -> tuple[str, list[Check]]:
    """Run `sgl-omni bench` for one kind of answer. Its results are also written to a file in `directory`."""
    results = directory / f"bench-{layout.replace(' ', '-')}-{output}.json"
    command = [*_CLI, "bench", "--url", url, "--output", output, "--json", str(results), *flags]
    done = child.run(command, _BENCH_SECONDS, cwd=ROOT, environment={**os.environ, **_PLAIN})
    shown = f"`sgl-omni bench --output {output} {' '.join(flags)}`:\n\n{block(done.output)}"
    done.go_on()
    detail = f"ended with {done.status}" if done.cause is Cause.ITSELF else done.cause.value
    return shown, [Check(f"{layout}: bench, {output}", done.status == 0 and done.cause is Cause.ITSELF, detail)]


def compare(layout: str, plan: dict[str, Any], there: Sequence[Memory]) -> tuple[str, list[Check]]:
    """Compare the planned and the actual memory of each GPU. The result is empty without GPUs."""
    planned_gpus = [device["taken"] for device in plan["devices"] if device["index"] is not None]
    rows, checks = [], []
    for index, (taken, now) in enumerate(zip(planned_gpus, there, strict=False)):
        off = (now.used - taken) / now.total
        rows.append((f"GPU {index}", *(f"{size / GIB:.1f}" for size in (taken, now.used, now.total)), f"{off:+.1%}"))
        checks.append(Check(f"{layout}: memory of GPU {index}", off <= _PLAN_OFF, f"{off:+.1%} against the plan"))
    return table(("GiB", "planned", "used after the load", "total", "off by"), rows) if rows else "", checks


def _stop(server: ServerProcess, layout: TriedLayout, before: Sequence[Memory]) -> Check:
    """End the server, and check its exit status and the GPU memory that is still in use."""
    name = f"{layout.name}: stop"
    try:
        status = server.stop()
    except RuntimeError as error:
        return Check(name, False, str(error))
    left = [now.used - then.used for then, now in zip(before, gpu_memory(), strict=True)]
    worst = max(left, default=0)
    detail = f"exit status {status}" + (f", {worst / GIB:.1f} GiB left on a GPU" if worst > _LEFT_BEHIND else "")
    return Check(name, status == 0 and worst <= _LEFT_BEHIND, detail)
