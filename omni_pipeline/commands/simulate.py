"""`sgl-omni simulate`: predicts the throughput and the latencies of a deployment, without a model and without GPUs."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from omni_pipeline.commands.config import Gpus, Hosts, free_for, resolved, unknown_notes
from omni_pipeline.commands.options import takes_settings
from omni_pipeline.commands.simulate_view import draw
from omni_pipeline.config.layers import Settings
from omni_pipeline.contract.graph import load_object
from omni_pipeline.contract.simulation import SimulationModel
from omni_pipeline.deployment.checkpoint import describe_checkpoint
from omni_pipeline.deployment.host_descriptions import DescribedHardware, described
from omni_pipeline.deployment.prepare import prepare
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.deployment.text_only import fitted
from omni_pipeline.errors import StartupError
from omni_pipeline.simulation.capacity import Capacity, find_capacity
from omni_pipeline.simulation.changes import changes
from omni_pipeline.simulation.law_files import read_laws
from omni_pipeline.simulation.load import Load, RequestShape
from omni_pipeline.simulation.network import Costs
from omni_pipeline.simulation.report import ChangeResult, Level, SimulationReport
from omni_pipeline.simulation.results import Prediction
from omni_pipeline.simulation.run import Scenario
from omni_pipeline.simulation.run import simulate as simulate_load
from omni_pipeline.simulation.site import site_of

_REQUESTS, _LOAD, _TIMES, _RESULT = "Requests", "Load", "Times", "Result"
_SHAPE = RequestShape()
_STREAMS = (1, 8, 16, 32)
_JITTER = 0.02


def _count(panel: str, text: str, least: int = 0) -> Any:
    return typer.Option(min=least, metavar="N", help=text, rich_help_panel=panel)


@takes_settings
def simulate(
    settings: Settings,
    gpus: Gpus = None,
    hosts: Hosts = None,
    laws: Annotated[
        list[str] | None,
        typer.Option(
            "--laws",
            help="Source of the times of the stages' steps: 'published' (times that the model's authors report), a "
            "file with a formula (law) for the step times of each stage (see docs/scaling.md), or the metrics of a "
            "running server (a URL that ends with /metrics, or a saved page FILE.prom; repeatable). The default is "
            "'published'.",
            metavar="NAME|FILE|URL",
            rich_help_panel=_TIMES,
            show_default=False,
        ),
    ] = None,
    slow: Annotated[
        float, typer.Option(help="Multiply the times of all steps by this factor.", min=0.001, rich_help_panel=_TIMES)
    ] = 1.0,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Latency between two hosts, in milliseconds.",
            min=0.0,
            rich_help_panel=_TIMES,
            show_default=f"{Costs().latency * 1e3:g}",
        ),
    ] = None,
    gbit: Annotated[
        float | None,
        typer.Option(
            help="Bandwidth between two hosts, in Gbit/s.",
            min=0.001,
            rich_help_panel=_TIMES,
            show_default=f"{Costs().bandwidth * 8e-9:g}",
        ),
    ] = None,
    streams: Annotated[
        list[int] | None,
        typer.Option(
            help="Closed loop: simulate this number of clients. Each client sends its next request when its answer is "
            "complete. Repeatable.",
            min=1,
            metavar="N",
            rich_help_panel=_LOAD,
            show_default=", ".join(map(str, _STREAMS)),
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Open loop: simulate this number of requests per second, at random times. Repeatable.",
            min=0.001,
            metavar="R",
            rich_help_panel=_LOAD,
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="Number of simulated seconds that are measured, after a warm-up.", min=0.1, rich_help_panel=_LOAD
        ),
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the random times of requests.", rich_help_panel=_LOAD)] = 0,
    prompt_tokens: Annotated[int, _count(_REQUESTS, "Number of tokens in each prompt.", 1)] = _SHAPE.prompt_tokens,
    media_tokens: Annotated[
        int, _count(_REQUESTS, "Number of tokens in each prompt that stand for images and video.")
    ] = _SHAPE.media_tokens,
    answer_tokens: Annotated[int, _count(_REQUESTS, "Number of text tokens in each answer.", 1)] = _SHAPE.answer_tokens,
    audio_frames: Annotated[
        int,
        _count(_REQUESTS, "Number of codec frames (80 ms of sound) in each answer; 0 means answers without speech."),
    ] = _SHAPE.audio_frames,
    capacity: Annotated[
        bool,
        typer.Option(
            "--capacity",
            help="Also search for the gapless capacity: the largest number of streams whose sound has no gaps.",
            rich_help_panel=_RESULT,
        ),
    ] = False,
    what_if: Annotated[
        bool,
        typer.Option(
            "--what-if",
            help="Also predict how one more replica or one more GPU changes the results of the last load.",
            rich_help_panel=_RESULT,
        ),
    ] = False,
    max_streams: Annotated[int, _count(_RESULT, "Largest number of streams that --capacity tries.", 1)] = 256,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON.", rich_help_panel=_RESULT)
    ] = False,
) -> None:
    """Predict throughput, latencies and bottleneck of a deployment, on a virtual clock.

    Accepts the flags of serve. Loads no weights and needs no GPU. --model-path is not needed. If it is a directory with
    config.json, the sizes of the KV caches are considered. docs/scaling.md describes the simulation and its limits.
    """
    hardware = described(gpus, hosts, settings.config)
    deployment, notes = _deployment(settings, hardware)
    if not deployment.graph.simulation:
        raise StartupError(f"The graph {deployment.graph.name} cannot be simulated.")
    model: SimulationModel = load_object(deployment.graph.simulation)
    found = read_laws(laws or (), model)
    costs = _costs(found.costs or Costs(), latency_ms, gbit)
    speaks = all(name in deployment.graph.stage_names for name in model.stages)
    shape = RequestShape(prompt_tokens, answer_tokens, audio_frames if speaks else 0, media_tokens)
    if media_tokens > prompt_tokens:
        raise StartupError("--media-tokens is larger than --prompt-tokens, which includes the media tokens.")
    if capacity and not shape.audio_frames:
        raise StartupError(
            "--capacity: only spoken answers have a gapless capacity; leave out --text-only, and set --audio-frames to "
            "more than 0."
        )
    scenario = Scenario(
        deployment.graph,
        model,
        site_of(deployment.workers),
        {name: law.scaled(slow) for name, law in found.laws.items()},
        costs,
        {gpu.index: gpu.label for gpu in deployment.gpus},
        _JITTER,
    )
    loads = _loads(streams, rate, seconds, seed, shape, model.frame_seconds)
    levels = tuple(Level(name, simulate_load(scenario, load, shape)) for name, load in loads.items())
    most = max_streams if capacity else 0
    report = SimulationReport(
        laws=found.source + (f" All times are multiplied by {slow:g}." if slow != 1 else ""),
        notes=notes,
        levels=levels,
        capacity=_capacity(scenario, shape, most, seed),
        changes=_changes(scenario, list(loads.values())[-1], shape, levels[-1].prediction, most) if what_if else (),
    )
    if as_json:
        print(json.dumps(msgspec.to_builtins(report), indent=1))
    else:
        Console().print(draw(report), highlight=False, soft_wrap=True)


def _deployment(settings: Settings, hardware: DescribedHardware) -> tuple[Deployment, tuple[str, ...]]:
    """The deployment, and remarks. If the checkpoint is known, the deployment has the sizes of its caches."""
    path = settings.config.model_path
    if path is None:
        settings = msgspec.structs.replace(settings, config=msgspec.structs.replace(settings.config, model_path="-"))
    settings = fitted(settings)
    deployment = resolved(settings, hardware)
    if deployment.unknown_hosts:
        raise StartupError(" ".join(unknown_notes(deployment)))
    notes = []
    if not deployment.uses_cuda:
        notes.append(
            "No stage has a GPU, so each process is simulated with a device of its own. Describe GPUs with --gpus."
        )
    spec = deployment.graph.checkpoint
    if path is not None and spec is not None and os.path.isfile(os.path.join(path, "config.json")):
        prepared = prepare(deployment, describe_checkpoint(path, spec), free_for(deployment, hardware))
        prepared.refuse()
        return prepared.sized(), tuple(notes)
    notes.append(
        "No checkpoint directory is given, so KV caches have no limit: only max_running_requests limits the batches."
    )
    return deployment, tuple(notes)


def _costs(costs: Costs, latency_ms: float | None, gbit: float | None) -> Costs:
    if latency_ms is not None:
        costs = msgspec.structs.replace(costs, latency=latency_ms / 1e3)
    if gbit is not None:
        costs = msgspec.structs.replace(costs, bandwidth=gbit * 1e9 / 8)
    return costs


def _loads(
    streams: list[int] | None,
    rate: list[float] | None,
    seconds: float,
    seed: int,
    shape: RequestShape,
    frame_seconds: float,
) -> dict[str, Load]:
    """The loads, keyed by name. Before the measured time, there is a warm-up, which is a quarter as long as the
    measured time. In a closed loop, there is also an interval before the warm-up. Each client begins at a random time
    in this interval. The interval is as long as the sound of an answer, but at least one second.
    """
    warm_up = seconds / 4
    spread = max(shape.audio_frames * frame_seconds, 1.0)
    loads = {
        f"{number} stream{'' if number == 1 else 's'}": Load(
            streams=number, seconds=seconds, spread=spread, warm_up=warm_up, seed=seed
        )
        for number in streams or (() if rate else _STREAMS)
    }
    for each in rate or ():
        loads[f"{each:g} req/s"] = Load(rate=each, seconds=seconds, warm_up=warm_up, seed=seed)
    return loads


def _capacity(scenario: Scenario, shape: RequestShape, most: int, seed: int) -> Capacity | None:
    """The gapless capacity: the largest number of streams whose sound has no gaps. None if `most`, the largest number
    of streams to simulate, is 0.
    """
    if not most:
        return None
    seconds = scenario.model.frame_seconds
    return find_capacity(scenario, shape, frame_seconds=seconds, most=most, seed=seed)


def _changes(
    scenario: Scenario, load: Load, shape: RequestShape, now: Prediction, most: int
) -> tuple[ChangeResult, ...]:
    """The predictions for each change of the deployment. The change with the largest gain comes first.

    Args:
        now: The prediction for the unchanged deployment.
        most: Largest number of streams for the search of the gapless capacity; 0 for no search.
    """
    results = []
    used = {use.name.partition("@")[0] for use in now.stages if use.busy}
    for change in changes(scenario.workers, scenario.graph, used):
        changed = msgspec.structs.replace(scenario, workers=change.workers)
        found = simulate_load(changed, load, shape)
        gain = found.answers_per_second / now.answers_per_second - 1 if now.answers_per_second else 0.0
        own = _capacity(changed, shape, most, load.seed)
        results.append(ChangeResult(change.text, change.gpus, found, gain, own))
    return tuple(sorted(results, key=lambda result: -result.gain))
