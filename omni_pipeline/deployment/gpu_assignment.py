"""Decides which GPUs each stage gets. If the configuration names no GPU for a stage, chooses a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.contract.graph import StageSpec
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu

_NONE = StageConfig()


def gpu_sets(specs: Sequence[StageSpec], config: Config, gpus: Sequence[Gpu]) -> dict[str, tuple[int, ...]]:
    """Indices of each stage's GPUs. All stages in `specs` compute on GPUs.

    If the configuration names no GPU for a stage, the server chooses among the GPUs that are not named for any stage,
    or among all GPUs if every GPU is named. A stage with several ranks gets the first of these GPUs. A stage with one
    rank gets the GPU at its usual index; an index above 0 is counted after the GPUs of a stage with several ranks. If
    there are too few GPUs, the stage gets the last GPU.

    Raises:
        StartupError: the configuration names a GPU that does not exist, or a stage's GPUs do not fit its ranks or
            ``colocate``, or the ranks of a stage cannot reach each other.
    """
    settings = {spec.name: config.stages.get(spec.name, _NONE) for spec in specs}
    named = {spec.name: _named(spec, settings[spec.name], gpus) for spec in specs if settings[spec.name].gpus}
    if config.colocate:
        return dict.fromkeys(settings, (_shared(settings, named),))
    claimed = {index for indices in named.values() for index in indices}
    free = [gpu.index for gpu in gpus if gpu.index not in claimed] or [gpu.index for gpu in gpus]
    widths = {spec.name: settings[spec.name].tp_size or 1 for spec in specs if spec.name not in named}
    extra = max(widths.values(), default=1) - 1
    chosen: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        if spec.name in named:
            chosen[spec.name] = _connected(spec, named[spec.name], gpus)
            continue
        width = widths[spec.name]
        if width > len(free):
            raise StartupError(
                f"stages.{spec.name}.tp_size: {width} ranks need {width} GPUs, with only {_count(len(free))} left."
            )
        first = spec.usual_gpu + (extra if spec.usual_gpu else 0)
        indices = tuple(free[:width]) if width > 1 else (free[min(first, len(free) - 1)],)
        chosen[spec.name] = _connected(spec, indices, gpus)
    return chosen


def _named(spec: StageSpec, stage: StageConfig, gpus: Sequence[Gpu]) -> tuple[int, ...]:
    place = f"stages.{spec.name}.gpus"
    for index in stage.gpus:
        if index >= len(gpus):
            there = f"there is only GPU 0 ({gpus[0].name})" if len(gpus) == 1 else f"the GPUs are 0 to {len(gpus) - 1}"
            raise StartupError(f"{place}: there is no GPU {index}; {there}.")
        if stage.gpus.count(index) > 1:
            raise StartupError(f"{place}: GPU {index} is named twice.")
    if len(stage.gpus) > 1 and not spec.parallel:
        raise StartupError(f"{place}: {spec.name} computes on one GPU, and cannot be spread over {len(stage.gpus)}.")
    if stage.tp_size is not None and stage.tp_size != len(stage.gpus):
        raise StartupError(
            f"stages.{spec.name}.tp_size: {stage.tp_size} ranks need one GPU each, but "
            f"stages.{spec.name}.gpus names {_count(len(stage.gpus))} ({', '.join(map(str, stage.gpus))})."
        )
    return tuple(stage.gpus)


def _connected(spec: StageSpec, indices: tuple[int, ...], gpus: Sequence[Gpu]) -> tuple[int, ...]:
    """Returns `indices` if ranks can reach each other on these GPUs. Raises StartupError."""
    divided = next((gpus[index] for index in indices if gpus[index].is_mig), None)
    if len(indices) > 1 and divided is not None:
        raise StartupError(
            f"stages.{spec.name}: it cannot have {len(indices)} ranks, since GPU {divided.index} ({divided.name}) is a "
            "MIG instance: a process sees at most one instance, and NCCL connects only whole GPUs. Give it one GPU, "
            "or only GPUs that are not MIG instances."
        )
    return indices


def _shared(settings: Mapping[str, StageConfig], named: Mapping[str, tuple[int, ...]]) -> int:
    """The one GPU of a colocated deployment."""
    for name, stage in settings.items():
        if (stage.tp_size or 1) > 1 or len(stage.gpus) > 1:
            raise StartupError(
                f"stages.{name}: colocate puts everything on one GPU, so {name} cannot have several GPUs."
            )
    indices = sorted({index for (index,) in named.values()})
    if len(indices) > 1:
        raise StartupError(
            f"colocate puts everything on one GPU, but the stages name {', '.join(map(str, indices))} "
            f"({', '.join(f'{name}: {index}' for name, (index,) in named.items())})."
        )
    return indices[0] if indices else 0


def _count(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"
