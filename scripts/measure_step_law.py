#!/usr/bin/env python3
"""Measures how many streams play without a gap, if each step takes the same time as on a GPU. The script measures four
different servers.

    python scripts/make_tiny_checkpoint.py --out checkpoints/nano --preset nano
    python scripts/measure_step_law.py --model-path checkpoints/nano

The *laws* in the package `step_law` give the time of each step. The docstring of the package says what a measurement
with these laws can show. There are two layouts: `split` (the thinker on one GPU, the stages that speak on another) and
`colocated` (everything in one process on one GPU). Each layout is measured twice: with work in the order of arrival,
and with work in the order in which listeners need it (`just_in_time`). `sgl-omni bench --capacity` searches for the
largest number of streams that play without a gap. Then this number of streams is measured once more, to see which
processes use the CPU. A step is *late* if the CPU needs more time for the step than its law gives. If many steps are
late, the CPU limits the server, and the result says nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from server_process import PROGRAM, ServerProcess

HERE = Path(__file__).parent
LAYOUTS = ("split", "colocated")
ORDERS = {"arrival": "false", "need": "true"}


class Measured(Struct, frozen=True):
    """The result for one server.

    Attributes:
        layout, order: The server's layout, and the order of its work.
        capacity: The value `capacity` in the bench's JSON.
        main, workers, client: The number of cores that the main process, all workers, and the bench keep busy on
            average when the number of streams is the capacity.
        late: Share of the steps for which the CPU needed more time than the law gives.
    """

    layout: str
    order: str
    capacity: dict[str, Any]
    main: float
    workers: float
    client: float
    late: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    print(
        "| layout | order | gapless capacity | s of audio/s, at most | ratio | main / workers / client, cores | late |"
    )
    print("|---|---|---|---|---|---|---|")
    for layout in options.layout or LAYOUTS:
        for order in options.order or ORDERS:
            print(row(measure(layout, order, options)), flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="a tiny checkpoint")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="only this layout; can be repeated")
    parser.add_argument("--order", action="append", choices=tuple(ORDERS), help="only this order; can be repeated")
    parser.add_argument("--tokens", type=int, default=24, help="text tokens of each answer")
    parser.add_argument("--audio-frames", type=int, default=60, help="codec frames of each answer")
    parser.add_argument("--requests", type=int, default=25, help="number of requests at each level of the search")
    parser.add_argument("--max-streams", type=int, default=128, help="largest level of the search")
    return parser


def measure(layout: str, order: str, options: argparse.Namespace) -> Measured:
    """Start a server, search for its gapless capacity, and end it."""
    just_in_time = [f"stages.{stage}.options.just_in_time={ORDERS[order]}" for stage in ("talker_ar", "code2wav")]
    arguments = ["--config", str(HERE / "step_law" / f"{layout}.yaml"), "--model-path", options.model_path]
    arguments += [part for setting in just_in_time for part in ("--set", setting)]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(arguments, Path(folder) / "log", environment={"PYTHONPATH": paths}, with_parent=True)
        with server:
            server.wait_until_ready()
            shape = ["--tokens", str(options.tokens), "--audio-frames", str(options.audio_frames)]
            search = ["--capacity", "--requests", str(options.requests), "--max-streams", str(options.max_streams)]
            capacity = bench(server, [*search, *shape])["capacity"]
            streams = max(capacity["streams"], 1)
            before = counters(server)
            load = ["--output", "speech", "--concurrency", str(streams), "--requests", str(3 * streams)]
            [level] = bench(server, [*load, *shape])["levels"]
            after = counters(server)
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    cpu = {name: spent[name] / level["seconds"] for name in spent if name.startswith("cpu ")}
    return Measured(
        layout,
        order,
        capacity,
        main=cpu.pop("cpu main"),
        workers=sum(cpu.values()),
        client=level["client_cpu"],
        late=spent["late"] / spent["steps"],
    )


def bench(server: ServerProcess, arguments: list[str]) -> Any:
    """Run `sgl-omni bench`. Returns its results, which are JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [*PROGRAM, "bench", "--url", server.url, "--json", str(file), *arguments]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(file.read_text())


def counters(server: ServerProcess) -> dict[str, float]:
    """Three kinds of counters: the CPU seconds of each process, the number of steps, and the number of late steps. Both
    numbers of steps are sums over all stages that have a law.
    """
    totals = {"steps": 0.0, "late": 0.0}
    paced = set()
    steps: dict[str, float] = {}
    for name, labels, value in samples(server):
        if name == "omni_process_cpu_seconds_total":
            totals[f"cpu {labels['process']}"] = value
        elif name == "omni_stage_figure" and labels["figure"] == "late_steps":
            paced.add(labels["stage"])
            totals["late"] += value
        elif name == "omni_stage_steps_total":
            steps[labels["stage"]] = value
    totals["steps"] = sum(steps[stage] for stage in paced)
    return totals


def samples(server: ServerProcess) -> Iterator[tuple[str, dict[str, str], float]]:
    """The values on the server's metrics page: name, labels, value."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
        for family in text_string_to_metric_families(page.read().decode()):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value


def row(found: Measured) -> str:
    capacity = found.capacity
    ratio = capacity["ratio"]
    cells = [
        found.layout,
        found.order,
        str(capacity["streams"]),
        f"{capacity['loudest_audio_seconds_per_second']:.1f}",
        "–" if ratio is None else f"{ratio:.2f}",
        f"{found.main:.2f} / {found.workers:.2f} / {found.client:.2f}",
        f"{found.late:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
