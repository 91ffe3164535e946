"""Determines which GPUs each stage uses. If the configuration specifies no GPUs for a stage, chooses the GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.contract.graph import StageSpec
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import Gpu

_NONE = StageConfig()


def gpu_sets(specs: Sequence[StageSpec], config: Config, gpus: Sequence[Gpu]) -> dict[str, tuple[int, ...]]:
    """Indices of each stage's GPUs. All stages in `specs` compute on GPUs. `gpus` are the available GPUs of one host.

    If the configuration lists no GPUs for a stage, the server chooses from the GPUs that are not listed for any stage.
    If all GPUs are listed for stages, the server chooses from all GPUs. The GPUs from which the server chooses are
    called free GPUs here. The choice depends on the stage's number of ranks and on `StageSpec.usual_gpu`:

    - A stage with several ranks gets the first free GPUs, one for each rank.
    - A stage with one rank and the `usual_gpu` 0 gets the first free GPU.
    - A stage with one rank and a higher `usual_gpu` gets a free GPU after the GPUs of the stage with the most ranks.
      The `usual_gpu` 1 selects the first free GPU after them, and 2 selects the second. If there are too few free GPUs,
      the stage gets the last free GPU.
    - If the deployment has several hosts, the lowest `usual_gpu` of the stages on a host is first subtracted from the
      `usual_gpu` of each of these stages.

    Raises:
        StartupError: the configuration contains a GPU that does not exist, a stage's GPUs do not fit its ranks or
            ``colocate``, or the ranks of a stage cannot communicate.
    """
    settings = {spec.name: config.stages.get(spec.name, _NONE) for spec in specs}
    named = {spec.name: _named(spec, settings[spec.name], gpus) for spec in specs if settings[spec.name].gpus}
    if config.colocate:
        return dict.fromkeys(settings, (_shared(settings, named, gpus),))
    claimed = {index for indices in named.values() for index in indices}
    free = [gpu.index for gpu in gpus if gpu.index not in claimed] or [gpu.index for gpu in gpus]
    widths = {spec.name: settings[spec.name].tp_size or 1 for spec in specs if spec.name not in named}
    lowest = min((spec.usual_gpu for spec in specs), default=0) if config.hosts else 0
    extra = max(widths.values(), default=1) - 1
    chosen: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        if spec.name in named:
            chosen[spec.name] = _connected(spec, named[spec.name], gpus)
            continue
        width = widths[spec.name]
        if width > len(free):
            raise StartupError(
                f"stages.{spec.name}.tp_size: {width} ranks need {width} GPUs, but this stage can have only "
                f"{_count(len(free))}."
            )
        usual = spec.usual_gpu - lowest
        first = usual + (extra if usual else 0)
        indices = tuple(free[:width]) if width > 1 else (free[min(first, len(free) - 1)],)
        chosen[spec.name] = _connected(spec, indices, gpus)
    return chosen


def _named(spec: StageSpec, stage: StageConfig, gpus: Sequence[Gpu]) -> tuple[int, ...]:
    place = f"stages.{spec.name}.gpus"
    for index in stage.gpus:
        if index >= len(gpus):
            there = f"there is only GPU 0 ({gpus[0].name})" if len(gpus) == 1 else f"the GPUs are 0 to {len(gpus) - 1}"
            host = f" of {gpus[0].host}" if gpus[0].host else ""
            raise StartupError(f"{place}: there is no GPU {index}{host}; {there}.")
        if stage.gpus.count(index) > 1:
            raise StartupError(f"{place}: GPU {index} is named twice.")
    if len(stage.gpus) > 1 and not spec.parallel:
        raise StartupError(f"{place}: {spec.name} computes on one GPU, and cannot use {len(stage.gpus)} GPUs.")
    if stage.tp_size is not None and stage.tp_size != len(stage.gpus):
        raise StartupError(
            f"stages.{spec.name}.tp_size: {stage.tp_size} ranks need one GPU each, but "
            f"stages.{spec.name}.gpus names {_count(len(stage.gpus))} ({', '.join(map(str, stage.gpus))})."
        )
    return tuple(gpus[index].index for index in stage.gpus)


def _connected(spec: StageSpec, indices: tuple[int, ...], gpus: Sequence[Gpu]) -> tuple[int, ...]:
    """Returns `indices`. Raises StartupError if ranks on these GPUs cannot communicate."""
    divided = next((gpu for gpu in gpus if gpu.index in indices and gpu.is_mig), None)
    if len(indices) > 1 and divided is not None:
        raise StartupError(
            f"stages.{spec.name}: the stage cannot have {len(indices)} ranks, because {divided.label} is "
            "a MIG instance: a process sees at most one instance, and NCCL connects only whole GPUs. Choose one GPU, "
            "or only GPUs that are not MIG instances."
        )
    return indices


def _shared(settings: Mapping[str, StageConfig], named: Mapping[str, tuple[int, ...]], gpus: Sequence[Gpu]) -> int:
    """The index of the GPU that all stages on a host share, for a configuration with ``colocate``."""
    for name, stage in settings.items():
        if (stage.tp_size or 1) > 1 or len(stage.gpus) > 1:
            raise StartupError(
                f"stages.{name}: the setting 'colocate' puts all stages on one GPU, so {name} cannot have several GPUs."
            )
    indices = sorted({index for (index,) in named.values()})
    numbers = {gpu.index: gpu.number for gpu in gpus}
    if len(indices) > 1:
        raise StartupError(
            "The setting 'colocate' puts all stages on one GPU, but the settings of the stages name the GPUs "
            f"{', '.join(str(numbers[index]) for index in indices)} "
            f"({', '.join(f'{name}: {numbers[index]}' for name, (index,) in named.items())})."
        )
    return indices[0] if indices else min(numbers, default=0)


def _count(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"
