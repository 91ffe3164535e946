#!/usr/bin/env python3
"""Compares the predictions of `sgl-omni simulate` with measurements of a real server whose steps follow *laws*.

    python scripts/make_tiny_checkpoint.py --out checkpoints/nano --preset nano
    python scripts/judge_simulation.py --model-path checkpoints/nano

A law gives the time of a step on a GPU. The real server runs with the stages of `step_law`: the gateway, the workers,
the messages and the order of the work are the server's own, and each step *sleeps*, so that it takes as long as on a
GPU. The simulation gets the same laws, layout and load. The only measured value that it gets is the number of prompt
tokens. All times of the laws are multiplied by --slow, so that the cores are not the bottleneck. The script needs a
machine without other load. The column *late* shows the share of late steps. A step is late if the CPU needs more time
for the step than its law gives. If this share is large, the measurement says nothing about GPUs.

The script prints a row for each deployment and number of streams. The row has the prediction, the measurement and their
ratio for four values: the answers per second, and the mean times to the first text, to the first sound and to the end
of an answer. A prediction is the mean of --seeds simulations, in which steps deviate at random from their laws. The
exit status is 1 if any row has a ratio that differs from 1 by more than --tolerance; the time to the first text is not
judged. With --capacity, the script compares the gapless capacities instead, with one replica and without deviations
from the laws.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import measure_step_law
from measure_step_law import bench, counters, samples
from msgspec import Struct, structs
from server_process import ServerProcess
from step_law.server import server_by_law

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.contract.graph import load_object
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.gpus import parse
from omni_pipeline.simulation.capacity import find_capacity
from omni_pipeline.simulation.load import Load, RequestShape
from omni_pipeline.simulation.network import Costs
from omni_pipeline.simulation.run import Scenario, simulate
from omni_pipeline.simulation.site import site_of

PACED = ("thinker", "talker_ar", "code_predictor", "code2wav")
SPEAKING = PACED[1:]
LAYOUTS = ("split", "colocated")
JITTER = 0.02
"""See `Scenario.jitter`."""

LEAST_REQUESTS = 12
"""The minimum number of requests that are sent in one measurement, even if there are few streams."""

WARM_UP = 3
"""Number of requests that a server has answered before it is measured."""

PROMPT_TOKENS = 60
"""Tokens of a prompt of `sgl-omni bench`, with the tokenizer of a tiny checkpoint."""
BATCHES: dict[str, dict[str, Any]] = {
    "thinker": {"max_running_requests": 256},
    "talker_ar": {"max_running_requests": 256, "engine": {"prefill_max_requests": 256}},
    "code_predictor": {"max_batch": 256},
    "code2wav": {"max_streams": 256, "max_batch": 256},
}
"""The batch sizes of the simulated stages. They are the defaults in `step_law.options`, which the real servers use."""


class Deployment(Struct, frozen=True):
    """A server to measure and to simulate.

    Attributes:
        replicas: Number of replicas of the groups `voice` and `vocoder`. Each replica has a GPU of its own.
    """

    layout: str
    replicas: int


class Figures(Struct, frozen=True):
    """The measured or predicted values that are compared. `rate` is in answers per second, and the other values are
    means in seconds.
    """

    rate: float
    ttft: float
    ttfa: float
    e2e: float


class Measured(Struct, frozen=True):
    """The measured values of the real server.

    Attributes:
        late: Share of the steps for which the CPU needed more time than the law gives.
        prompt_tokens: Mean number of tokens of a prompt.
    """

    figures: Figures
    late: float
    prompt_tokens: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.capacity:
        return judge_capacity(options)
    cells = ["answers/s", "first text", "first sound", "whole answer"]
    print(f"| layout | replicas | streams | {' | '.join(cells)} | late |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    broken = 0
    for deployment in deployments(options):
        for streams, measured in measure(deployment, options):
            predicted = predict(deployment, streams, round(measured.prompt_tokens), options)
            print(row(deployment, streams, predicted, measured), flush=True)
            broken += not agrees(predicted, measured.figures, options.tolerance)
    if broken:
        print(f"{broken} rows differ by more than {options.tolerance:.0%}.")
    return 1 if broken else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="a tiny checkpoint")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="only this layout; can be repeated")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4], help="numbers of replicas (split only)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16, 32], help="numbers of streams")
    parser.add_argument("--slow", type=float, default=4.0, help="factor by which each step is slower than its law")
    parser.add_argument("--batch", type=int, help="utterances that a replica works on at a time (default: all)")
    parser.add_argument("--tokens", type=int, default=12, help="text tokens of each answer")
    parser.add_argument("--audio-frames", type=int, default=24, help="codec frames of each answer")
    parser.add_argument("--rounds", type=int, default=4, help="number of requests of each stream")
    parser.add_argument("--seeds", type=int, default=5, help="number of simulations of each row")
    parser.add_argument("--capacity", action="store_true", help="compare the gapless capacities")
    parser.add_argument("--requests", type=int, default=50, help="least number of requests of each level (--capacity)")
    parser.add_argument("--tolerance", type=float, default=0.15, help="largest difference of a ratio from 1")
    return parser


def judge_capacity(options: argparse.Namespace) -> int:
    """Compare the gapless capacities. Returns the exit status."""
    print("| layout | gapless capacity | s of audio/s, at most | late |", "|---|---|---|---|", sep="\n", flush=True)
    broken = 0
    for layout in options.layout or LAYOUTS:
        asked = measure_step_law.parser().parse_args(
            ["--model-path", options.model_path, "--requests", str(options.requests)]
        )
        measured = measure_step_law.measure(layout, "need", asked)
        real = measured.capacity
        shape = RequestShape(PROMPT_TOKENS, asked.tokens, asked.audio_frames)
        simulated = scenario(Deployment(layout, 1), 1.0, None)
        found = find_capacity(
            simulated, shape, frame_seconds=simulated.model.frame_seconds, most=asked.max_streams, seed=0
        )
        pairs = [
            (found.streams, real["streams"]),
            (found.audio_seconds_per_second, real["loudest_audio_seconds_per_second"]),
        ]
        cells = [f"{mine:.1f} / {measured:.1f} = {mine / measured:.2f}" for mine, measured in pairs]
        print(f"| {' | '.join([layout, *cells, f'{measured.late:.1%}'])} |", flush=True)
        broken += any(abs(mine / measured - 1) > options.tolerance for mine, measured in pairs)
    return 1 if broken else 0


def deployments(options: argparse.Namespace) -> Iterator[Deployment]:
    for layout in options.layout or LAYOUTS:
        for replicas in options.replicas if layout == "split" else [1]:
            yield Deployment(layout, replicas)


def measure(deployment: Deployment, options: argparse.Namespace) -> Iterator[tuple[int, Measured]]:
    """Start a real server, and measure it under each load. A load is a number of simultaneous streams."""
    settings = [f"stages.{stage}.options.slow={options.slow}" for stage in PACED]
    if options.batch:
        settings.append(f"stages.talker_ar.options.max_running_requests={options.batch}")
    shape = ["--output", "speech", "--tokens", str(options.tokens), "--audio-frames", str(options.audio_frames)]
    with server_by_law(deployment.layout, options.model_path, settings, deployment.replicas) as server:
        for streams in options.streams:
            requests = max(options.rounds * streams, LEAST_REQUESTS)
            load = ["--concurrency", str(streams), "--requests", str(requests), "--warmup", "0"]
            before, prompts_before = counters(server), prompt_tokens(server)
            [level] = bench(server, [*load, *shape])["levels"]
            after, prompts = counters(server), prompt_tokens(server)
            steps = after["steps"] - before["steps"]
            yield (
                streams,
                Measured(
                    figures_of(level),
                    (after["late"] - before["late"]) / steps,
                    (prompts - prompts_before) / requests,
                ),
            )


def prompt_tokens(server: ServerProcess) -> float:
    """Number of prompt tokens that all thinkers have computed."""
    return sum(
        value
        for name, labels, value in samples(server)
        if name == "omni_stage_prompt_tokens_total" and labels["stage"] == "thinker"
    )


def figures_of(level: Mapping[str, Any]) -> Figures:
    times = (level[name]["mean"] for name in ("ttft", "ttfa", "e2e"))
    return Figures(level["completed"] / level["seconds"], *times)


def predict(deployment: Deployment, streams: int, prompt: int, options: argparse.Namespace) -> Figures:
    """Simulate the deployment with the load of `measure`, and return the mean over all seeds."""
    simulated = scenario(deployment, options.slow, options.batch)
    load = Load(
        streams=streams, requests=max(options.rounds * streams, LEAST_REQUESTS), continues=False, before=WARM_UP
    )
    shape = RequestShape(prompt, options.tokens, options.audio_frames)
    found = [simulate(simulated, structs.replace(load, seed=seed), shape) for seed in range(options.seeds)]
    return Figures(
        mean([each.answers / each.seconds for each in found]),
        *(mean([each.mean for each in times]) for times in zip(*((f.ttft, f.ttfa, f.e2e) for f in found), strict=True)),
    )


def scenario(deployment: Deployment, slow: float, batch: int | None) -> Scenario:
    """The scenario with which `deployment` is simulated."""
    limit = {"max_running_requests": batch} if batch else {}
    batches = {**BATCHES, "talker_ar": {**BATCHES["talker_ar"], **limit}}
    settings: dict[str, Any] = {
        "model_path": "-",
        "colocate": deployment.layout == "colocated",
        "stages": {name: {"options": sizes} for name, sizes in batches.items()},
    }
    if deployment.replicas > 1:
        own = [[1 + replica] for replica in range(deployment.replicas)]
        settings["groups"] = {name: {"replicas": deployment.replicas, "gpus": own} for name in ("voice", "vocoder")}
    gpus = 1 if deployment.layout == "colocated" else 1 + deployment.replicas
    made = resolve(convert(settings, Config, ""), parse(f"{gpus}xH100-80GB"))
    model = load_object(made.graph.simulation)
    laws = {name: law.scaled(slow) for name, law in model.law_sets["published"].laws.items()}
    return Scenario(made.graph, model, site_of(made.workers), laws, Costs(), jitter=JITTER)


def mean(values: Sequence[float | None]) -> float:
    return statistics.fmean(value for value in values if value is not None)


def row(deployment: Deployment, streams: int, predicted: Figures, measured: Measured) -> str:
    """A row of the table: each cell has the prediction, the measurement, and their ratio."""
    pairs = zip(values(predicted), values(measured.figures), strict=True)
    cells = [f"{mine:.3f} / {real:.3f} = {mine / real:.2f}" for mine, real in pairs]
    name = [deployment.layout, str(deployment.replicas), str(streams)]
    return f"| {' | '.join([*name, *cells, f'{measured.late:.1%}'])} |"


def agrees(predicted: Figures, measured: Figures, tolerance: float) -> bool:
    """Whether throughput, time to the first sound and time to the end are predicted well enough."""
    pairs = [(predicted.rate, measured.rate), (predicted.ttfa, measured.ttfa), (predicted.e2e, measured.e2e)]
    return all(abs(mine / real - 1) <= tolerance for mine, real in pairs)


def values(figures: Figures) -> tuple[float, ...]:
    return figures.rate, figures.ttft, figures.ttfa, figures.e2e


if __name__ == "__main__":
    sys.exit(main())
