"""Plans the layouts in `configs/` on machines with one kind of GPU: the placement, and the engines' settings."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import msgspec
from fake_gpu import H20, H100, H200, Card
from msgspec import Struct

from faked_starts.checkpoints import ROOT
from faked_starts.data import PlannedEngine
from omni_pipeline.config.layers import gather
from omni_pipeline.deployment.checkpoint import Checkpoint, describe_checkpoint
from omni_pipeline.deployment.memory_plan import Placement, place, sized
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.deployment.stage_checks import check_stages
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse
from stages.topology import QWEN3_OMNI

CONFIGS = ROOT / "configs"

CARDS: dict[str, Card] = {"H100-80GB": H100, "H20-96GB": H20, "H200-141GB": H200}
"""Cards by their names in ``--gpus``."""

COUNTS = (1, 2, 4, 8)


class FakedStart(Struct, frozen=True):
    """A layout with a kind of checkpoint on a number of equal GPUs.

    Attributes:
        refused: The reason why this deployment is impossible; None if it is possible.
        placement: The memory that the deployment needs on each GPU, even if it does not fit.
        engines: The engines that start if the deployment fits.
    """

    layout: str
    kind: str
    card: str
    gpus: int
    refused: str | None = None
    placement: Placement | None = None
    engines: tuple[PlannedEngine, ...] = ()

    @property
    def fits(self) -> bool:
        return self.placement is not None and self.placement.fits


@functools.cache
def layouts() -> tuple[str, ...]:
    """Names of the layout files that use a GPU if the machine has a GPU."""
    names = (path.stem for path in sorted(CONFIGS.glob("*.yaml")))
    return tuple(name for name in names if _deployed(name, "x", f"8x{next(iter(CARDS))}").uses_cuda)


def starts(checkpoints: dict[str, Path]) -> Iterator[FakedStart]:
    """All layouts on all machines.

    Args:
        checkpoints: For each kind of checkpoint, a directory with its ``config.json``.
    """
    for kind, path in checkpoints.items():
        described = _described(path)
        checked: set[tuple[tuple[str, int], ...]] = set()
        for layout in layouts():
            for card in CARDS:
                yield from _growing(FakedStart(layout, kind, card, 0), path, described, checked)


def _growing(
    start: FakedStart, path: Path, checkpoint: Checkpoint | StartupError, checked: set[tuple[tuple[str, int], ...]]
) -> Iterator[FakedStart]:
    """Plans one layout on GPUs of one kind, for each number of GPUs in `COUNTS`. The layout is planned again only if
    more GPUs change the workers of the layout.

    Args:
        checked: The combinations that have already been checked against the checkpoint. A combination consists of the
            name and the number of ranks of each stage. Each combination is checked once, not once per kind of GPU,
            because all GPUs in `CARDS` are of one generation.
    """
    known: list[tuple[Deployment, FakedStart]] = []
    for count in COUNTS:
        try:
            if isinstance(checkpoint, StartupError):
                raise checkpoint
            deployment = _deployed(start.layout, str(path), f"{count}x{start.card}")
            same = next((made for other, made in known if other.workers == deployment.workers), None)
            ranks = tuple((plan.name, plan.tp_size) for worker in deployment.workers for plan in worker.stages)
            if ranks not in checked:
                check_stages(deployment, checkpoint)
                checked.add(ranks)
        except StartupError as error:
            yield msgspec.structs.replace(start, gpus=count, refused=str(error))
            continue
        found = same or _planned(start, deployment, checkpoint)
        known.append((deployment, found))
        yield msgspec.structs.replace(found, gpus=count)


def _planned(start: FakedStart, deployment: Deployment, checkpoint: Checkpoint) -> FakedStart:
    placement = place(deployment, checkpoint)
    engines = tuple(_engines(sized(deployment, placement))) if placement.fits else ()
    return msgspec.structs.replace(start, placement=placement, engines=engines)


def _described(path: Path) -> Checkpoint | StartupError:
    assert QWEN3_OMNI.checkpoint is not None
    try:
        return describe_checkpoint(str(path), QWEN3_OMNI.checkpoint)
    except StartupError as error:
        return error


def _deployed(layout: str, model_path: str, gpus: str) -> Deployment:
    config = gather(CONFIGS / f"{layout}.yaml", assignments=[f"model_path={model_path}"]).config
    return resolve(config, parse(gpus))


def _engines(deployment: Deployment) -> Iterator[PlannedEngine]:
    for worker in deployment.workers:
        for plan in worker.stages:
            if deployment.graph.stage(plan.name).fills_memory:
                yield PlannedEngine(
                    stage=plan.name,
                    model_path=deployment.model_path,
                    options=msgspec.to_builtins(plan.options),
                    stages=tuple(sorted(deployment.graph.stage_names)),
                    ranks=plan.tp_size,
                    static=plan.static,
                )
