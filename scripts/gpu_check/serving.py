"""Starts a server in one layout, asks the guide's questions, measures it, and looks whether it leaves the GPU clean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_check.machine import GIB, gpu_memory
from gpu_check.questions import EXAMPLES, body, judge
from gpu_check.report import Check, Report, block, table
from tests.server import Server

ROOT = Path(__file__).parents[2]

START_SECONDS = 1800  # a 70 GB checkpoint from a slow disk
_CLI = (sys.executable, "-m", "omni_pipeline.cli")
_PLAIN = {"COLUMNS": "110", "NO_COLOR": "1"}
# What a plan may be wrong by and still be called right, of each GPU.
_PLAN_OFF = 0.05
_LEFT_BEHIND = GIB // 2
_LOG = 4000


@dataclass(frozen=True)
class Layout:
    """A way to run the model: a name, and the flags for it."""

    name: str
    flags: tuple[str, ...]
    speech: bool = True


def layouts(gpus: int) -> list[Layout]:
    """Those worth trying on so many GPUs (0: on the CPU)."""
    found = [Layout("text", ("--text-only",), speech=False), Layout("split", ()), Layout("colocated", ("--colocate",))]
    for ranks in (2, 4, 8):
        if ranks <= gpus:
            shared = ",".join(map(str, range(ranks)))
            found.append(Layout(f"thinker on {ranks}", ("--gpu-thinker", shared)))
    return found


@dataclass(frozen=True)
class Run:
    """What to do in each layout.

    Attributes:
        bench: Further flags of `sgl-omni bench`; None leaves it out.
    """

    model: Path
    device: str
    directory: Path
    bench: Sequence[str] | None


def try_layout(report: Report, layout: Layout, run: Run) -> None:
    """Plan, start, ask, measure and stop; one section."""
    plan, drawn = planned(layout, run)
    heading = f"Layout: {layout.name} ({' '.join(layout.flags) or 'no flags'})"
    if not plan["fits"]:
        report.add(heading, block(drawn), Check(layout.name, None, "the plan says that it does not fit"))
        return
    before = gpu_memory()
    flags = ["--device", run.device, "--model-name", "qwen3-omni", *layout.flags]
    server = Server(
        run.model, run.directory, {}, [flag for flag in flags if flag != "--text-only"], layout.speech, START_SECONDS
    )
    began = time.monotonic()
    try:
        server.start()
    except (RuntimeError, AssertionError) as error:
        report.add(heading, block(str(error)[-6000:]), Check(f"{layout.name}: start", False, "see the log below"))
        return
    started = time.monotonic() - began
    try:
        parts, checks = _use(server, layout, plan, run)
    finally:
        status = server.stop()
    checks = [
        Check(f"{layout.name}: start", True, f"ready after {started:.0f} s"),
        *checks,
        _clean(layout, status, before),
    ]
    log = server.log.read_text()
    if any(check.passed is False for check in checks) or "Traceback" in log:
        parts.append(f"End of the server's log:\n\n{block(log[-_LOG:])}")
    report.add(heading, "\n\n".join([block(drawn), *filter(None, parts)]), *checks)


def planned(layout: Layout, run: Run) -> tuple[dict[str, Any], str]:
    """`sgl-omni plan` for the layout on this machine: as data, and drawn."""
    command = [*_CLI, "plan", "--model-path", str(run.model), "--device", run.device, *layout.flags]
    said, drawn = (
        subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | _PLAIN
        )
        for more in (["--json"], [])
    )
    if not said.stdout:  # the flags contradict themselves, or the machine
        return {"fits": False, "devices": []}, said.stderr
    data: dict[str, Any] = json.loads(said.stdout)
    return data, drawn.stdout


def _use(server: Server, layout: Layout, plan: dict[str, Any], run: Run) -> tuple[list[str], list[Check]]:
    parts, checks = [], []
    text, answered = _ask(server, layout)
    parts.append(text)
    checks.append(answered)
    if run.bench is not None:
        for output in ("text", "speech") if layout.speech else ("text",):
            text, measured = _bench(server, layout, output, run.bench)
            parts.append(text)
            checks.append(measured)
    # After the load, when torch has reserved what it ever needs.
    text, compared = _compare(layout, plan)
    return [text, *parts], [*checks, *compared]


def _ask(server: Server, layout: Layout) -> tuple[str, Check]:
    rows, problems = [], []
    for name in EXAMPLES:
        for speech in (False, True) if layout.speech else (False,):
            began = time.monotonic()
            status, result = server.post(body(name, speech=speech), timeout=600)
            answer = judge(status, result, speech=speech)
            seconds = time.monotonic() - began
            sound = "–" if answer.seconds is None else f"{answer.seconds:.1f} s"
            rows.append(
                (name, "aloud" if speech else "in text", answer.text, sound, f"{seconds:.2f} s", answer.problem)
            )
            problems += [f"{name}: {answer.problem}"] if answer.problem else []
    header = ("question", "answered", "text", "sound", "took", "problem")
    return table(header, rows), Check(f"{layout.name}: the guide's questions", not problems, "; ".join(problems))


def _bench(server: Server, layout: Layout, output: str, flags: Sequence[str]) -> tuple[str, Check]:
    results = server.directory / f"bench-{layout.name.replace(' ', '-')}-{output}.json"
    command = [*_CLI, "bench", "--url", server.url, "--output", output, "--json", str(results), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **_PLAIN})
    shown = f"`sgl-omni bench --output {output} {' '.join(flags)}`:\n\n{block(done.stdout or done.stderr)}"
    return shown, Check(f"{layout.name}: bench, {output}", done.returncode == 0, f"ended with {done.returncode}")


def _compare(layout: Layout, plan: dict[str, Any]) -> tuple[str, list[Check]]:
    """Memory as planned and as it is."""
    rows, checks = [], []
    for index, (device, now) in enumerate(zip(plan["devices"], gpu_memory(), strict=False)):
        off = (now.used - device["taken"]) / now.total
        figures = (f"{device['taken'] / GIB:.1f}", f"{now.used / GIB:.1f}", f"{now.total / GIB:.1f}", f"{off:+.1%}")
        rows.append((f"GPU {index}", *figures))
        checks.append(Check(f"{layout.name}: memory of GPU {index}", off <= _PLAN_OFF, f"{off:+.1%} against the plan"))
    if not rows:
        return "", []
    return table(("GiB", "planned", "used after the load", "there", "off by"), rows), checks


def _clean(layout: Layout, status: int, before: Sequence[Any]) -> Check:
    left = [now.used - then.used for then, now in zip(before, gpu_memory(), strict=True)]
    worst = max(left, default=0)
    detail = f"exit status {status}" + (f", {worst / GIB:.1f} GiB left on a GPU" if worst > _LEFT_BEHIND else "")
    return Check(f"{layout.name}: stop", status == 0 and worst <= _LEFT_BEHIND, detail)
