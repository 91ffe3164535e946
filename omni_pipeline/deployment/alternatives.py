"""Finds changes that make a deployment fit: other layouts and checkpoints. Each change is tested before it is
suggested.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct, structs

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.contract.flag import Flag
from omni_pipeline.contract.graph import Graph, load_graph
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.deployment.checkpoint import Checkpoint, described
from omni_pipeline.deployment.memory_plan import Placement
from omni_pipeline.deployment.prepare import FreeMemory, prepare
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.deployment.stage_checks import check_stages
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu

MOST = 4
"""Maximum number of remedies to suggest."""

_GIB = 1024**3
_STEP = 8
_MOST_STEPS = 512
_RANKS = (2, 4, 8)
_ONCE = "run each stage once, without groups"
_ONE_HOST = "run each stage once, on the main host, without groups and hosts"
_FP8, _SILENT, _TOGETHER = "an FP8 checkpoint", "--text-only", "--colocate"


class Remedy(Struct, frozen=True):
    """A change to the deployment, and the number of example requests that fit at the same time after the change."""

    change: str
    requests: int


class _Room(Struct, frozen=True):
    """GPUs of the main host, and the memory that is free on them and on the other hosts."""

    gpus: tuple[Gpu, ...]
    free: FreeMemory

    def left(self) -> dict[int, float]:
        """Bytes that are free on each GPU."""
        return {gpu.index: float(gpu.memory - self.free.used.get(gpu.index, 0)) for gpu in self.gpus}


class _Attempt(Struct, frozen=True):
    change: str
    config: Config
    checkpoint: Checkpoint
    room: _Room


def remedies(
    config: Config, checkpoint: Checkpoint, gpus: Sequence[Gpu], free: FreeMemory, request: Request
) -> tuple[Remedy, ...]:
    """Changes that make `config` fit on `gpus`, the smallest change first. Each change is enough by itself.

    Args:
        gpus: The GPUs of the main host. The GPUs of the other hosts are in `free`.
    """
    found: list[Remedy] = []
    for group in _groups(config, checkpoint, _Room(tuple(gpus), free)):
        tried = ((attempt, _tried(attempt, request)) for attempt in group)
        fitting = ((attempt, placement) for attempt, placement in tried if placement is not None and placement.fits)
        for attempt, placement in fitting:
            found.append(Remedy(attempt.change, placement.requests or 0))
            break
        if len(found) == MOST:
            break
    return tuple(found)


def _groups(config: Config, checkpoint: Checkpoint, room: _Room) -> Iterator[Iterator[_Attempt]]:
    """The attempts, grouped by the kind of change. For each kind, the first attempt that fits is suggested."""
    graph = load_graph(config.graph)
    quantised = _quantised(graph, checkpoint)
    silent = structs.replace(config, text_only=True)
    if config.groups:
        yield _without_groups(config, checkpoint, room)
    yield _layouts((), (), config, checkpoint, room)
    if quantised is not None:
        yield _layouts((_FP8,), (), config, quantised, room)
    if not config.text_only and graph.text_stages:
        yield _layouts((), (_SILENT,), silent, checkpoint, room)
        if quantised is not None:
            yield _layouts((_FP8,), (_SILENT,), silent, quantised, room)
    if not config.hosts:
        yield _one_gpu(config, checkpoint, room.free.ram)


def _without_groups(config: Config, checkpoint: Checkpoint, room: _Room) -> Iterator[_Attempt]:
    once, change = structs.replace(config, groups={}, hosts={}), _ONE_HOST if config.hosts else _ONCE
    yield _Attempt(change, once, checkpoint, room)
    for attempt in _layouts((), (), once, checkpoint, room):
        yield structs.replace(attempt, change=f"{change}, and {attempt.change}")


def _layouts(
    takes: tuple[str, ...],
    flags: tuple[str, ...],
    config: Config,
    checkpoint: Checkpoint,
    room: _Room,
) -> Iterator[_Attempt]:
    """Attempts with this configuration. The first attempt has the configuration's own layout, the second has all stages
    on one GPU, and the others have the stages on several GPUs.

    Args:
        takes, flags: Differences from the operator's configuration. If there are no differences, the attempt with the
            configuration's own layout is left out, because the operator's deployment does not fit.
    """
    if takes or flags:
        yield _Attempt(_change(takes, flags), config, checkpoint, room)
    free = structs.replace(config, stages=_anywhere(config.stages), colocate=False)
    if not config.colocate:
        together = structs.replace(free, colocate=True)
        yield _Attempt(_change(takes, (*flags, _TOGETHER)), together, checkpoint, room)
    for places, spread in _spreads(free, checkpoint, room):
        yield _Attempt(_change(takes, (*flags, places)), spread, checkpoint, room)


def _change(takes: tuple[str, ...], flags: tuple[str, ...]) -> str:
    return " and ".join([*(f"use {what}" for what in takes), *([f"pass {' '.join(flags)}"] if flags else [])])


def _anywhere(stages: Mapping[str, StageConfig]) -> dict[str, StageConfig]:
    """A copy of the settings of the stages. It leaves out the GPUs, the worker, the memory and the number of ranks, so
    that every layout is possible.
    """
    return {
        name: structs.replace(stage, gpus=[], worker=None, memory=None, tp_size=None) for name, stage in stages.items()
    }


def _spreads(config: Config, checkpoint: Checkpoint, room: _Room) -> Iterator[tuple[str, Config]]:
    """Layouts over several GPUs. The parallel stage is on one or more GPUs. Each other stage is on the GPU with the
    most free memory.
    """
    graph = load_graph(config.graph)
    stages = [
        spec
        for spec in graph.stages
        if spec.accelerated and not (config.text_only and graph.text_stages and spec.name not in graph.text_stages)
    ]
    shared = next((spec.name for spec in stages if spec.parallel), None)
    if shared is None or len(room.gpus) < 2 or config.hosts:  # with hosts, each host counts its GPUs from 0
        return
    for ranks in (1, *(ranks for ranks in _RANKS if ranks <= len(room.gpus))):
        placed = {shared: list(range(ranks))}
        alone = {spec.name: [0] for spec in stages}
        sizes = _sizes(structs.replace(config, stages=_put(config.stages, alone | placed)), checkpoint, room)
        if sizes is None:
            continue
        left = room.left()
        for index in placed[shared]:
            left[index] -= sizes[shared]
        for name in sorted(alone.keys() - {shared}, key=lambda name: -sizes[name]):
            emptiest = max(left, key=lambda index: left[index])
            placed[name] = [emptiest]
            left[emptiest] -= sizes[name]
        ordered = {spec.name: placed[spec.name] for spec in stages}
        yield _flags(ordered, graph.flags), structs.replace(config, stages=_put(config.stages, ordered))


def _put(stages: Mapping[str, StageConfig], places: Mapping[str, list[int]]) -> dict[str, StageConfig]:
    named = {name: structs.replace(stages.get(name, StageConfig()), gpus=indices) for name, indices in places.items()}
    return {**stages, **named}


def _flags(places: Mapping[str, list[int]], flags: Sequence[Flag]) -> str:
    names = {path: flag.name for flag in flags for path in flag.settings}
    words = []
    for stage, indices in places.items():
        path, listed = f"stages.{stage}.gpus", ",".join(map(str, indices))
        words.append(f"{names[path]} {listed}" if path in names else f"--set {path}=[{listed}]")
    return " ".join(words)


def _sizes(config: Config, checkpoint: Checkpoint, room: _Room) -> dict[str, int] | None:
    """The number of bytes that each stage needs on a GPU, not counting its cache. None if the configuration is
    refused.
    """
    placement = _tried(_Attempt("", config, checkpoint, room), Request())
    if placement is None:
        return None
    return {holding.stage: holding.fixed for device in placement.devices for holding in device.holdings}


def _quantised(graph: Graph, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with its weights in FP8; None if the checkpoint is already quantised, or if its model has no FP8
    form.
    """
    spec = graph.checkpoint
    if spec is None or spec.quantised is None or any(stored.fixed for stored in checkpoint.tensors.values()):
        return None
    return described(checkpoint.path, spec.quantised(checkpoint.config), spec)


def _one_gpu(config: Config, checkpoint: Checkpoint, ram: int | None) -> Iterator[_Attempt]:
    """An attempt with all stages on one empty GPU. The memory of this GPU is the smallest multiple of 8 GiB that is
    large enough.
    """
    together = structs.replace(config, stages=_anywhere(config.stages), colocate=True)

    def attempt(step: int) -> _Attempt:
        change = _change((f"one GPU with {_STEP * step} GiB or more",), (_TOGETHER,))
        larger = Gpu(0, "larger", _STEP * step * _GIB, "0")
        return _Attempt(change, together, checkpoint, _Room((larger,), FreeMemory(ram)))

    def fits(step: int) -> bool:
        placement = _tried(attempt(step), Request())
        return placement is not None and placement.fits

    yield attempt(bisect.bisect_left(range(_MOST_STEPS), True, lo=1, key=fits))


def _tried(attempt: _Attempt, request: Request) -> Placement | None:
    """The memory placement of an attempt; None if its configuration is refused."""
    try:
        deployment = resolve(attempt.config, attempt.room.gpus, attempt.room.free.hosts)
        # without tensors, because the names of the tensors have already been checked
        check_stages(deployment, structs.replace(attempt.checkpoint, tensors={}))
    except StartupError:
        return None
    return prepare(deployment, attempt.checkpoint, attempt.room.free, request=request, checked=False).placement


def told(found: Sequence[Remedy]) -> list[str]:
    """A line of text for each remedy."""
    return [f"{remedy.change}: room for {_requests(remedy.requests)}" for remedy in found]


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number} requests"
