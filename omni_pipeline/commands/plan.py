"""`sgl-omni plan`: shows, before anything is loaded, how much memory of each GPU a deployment needs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct
from rich.console import Console

from omni_pipeline.commands.config import Gpus, free_for, resolved
from omni_pipeline.commands.options import takes_settings
from omni_pipeline.commands.plan_view import draw
from omni_pipeline.config.layers import Settings
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.deployment.alternatives import Remedy, remedies
from omni_pipeline.deployment.checkpoint import describe_checkpoint
from omni_pipeline.deployment.memory_plan import DevicePlan, Placement
from omni_pipeline.deployment.prepare import prepare
from omni_pipeline.errors import StartupError

_REQUEST = Request()
_Tokens = Annotated[int, typer.Option(min=1, metavar="N", help="Number of these tokens in the plan's example request.")]


class PlanReport(Struct, frozen=True):
    """A placement and, if it does not fit, the changes that would make it fit."""

    model_path: str
    placement: Placement
    remedies: tuple[Remedy, ...]


@takes_settings
def plan(
    settings: Settings,
    gpus: Gpus = None,
    prompt_tokens: _Tokens = _REQUEST.prompt_tokens,
    answer_tokens: _Tokens = _REQUEST.answer_tokens,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON, with sizes in bytes and tokens.")
    ] = False,
) -> None:
    """Show how much memory of each GPU a deployment needs, whether it fits, and what to change if it does not.

    Accepts the flags of serve. Loads no weights: a directory with config.json is enough. Exits with code 1 if the
    deployment does not fit.
    """
    made = planned(settings, gpus, Request(prompt_tokens, answer_tokens))
    if as_json:
        print(json.dumps(as_data(made), indent=1))
    else:
        console = Console()
        console.print(draw(made.placement, made.remedies), highlight=False, soft_wrap=True)
    if not made.placement.fits:
        raise typer.Exit(1)


def planned(settings: Settings, gpus: str | None, request: Request) -> PlanReport:
    """The plan for these settings.

    Raises:
        StartupError: the settings contradict each other, or the checkpoint is unknown.
    """
    deployment = resolved(settings, gpus)
    spec = deployment.graph.checkpoint
    if spec is None:
        raise StartupError(f"The graph {deployment.graph.name} loads no checkpoint, so its memory cannot be planned.")
    found, free = describe_checkpoint(deployment.model_path, spec), free_for(deployment, gpus)
    placement = prepare(deployment, found, free, request=request).placement
    seek = deployment.uses_cuda and not placement.fits
    changes = remedies(settings.config, found, deployment.gpus, free, request) if seek else ()
    return PlanReport(found.path, placement, changes)


def as_data(made: PlanReport) -> dict[str, Any]:
    """The plan as data that can be written as JSON, including the sums that `Placement` computes."""
    placement = made.placement
    return {
        "model_path": made.model_path,
        "fits": placement.fits,
        "requests": placement.requests,
        "bounded_by": list(placement.bounded_by),
        "request": msgspec.to_builtins(placement.request),
        "devices": [_device(device) for device in placement.devices],
        "caches": [{**msgspec.to_builtins(cache), "requests": cache.requests} for cache in placement.caches],
        "limits": placement.limits,
        "problems": list(placement.problems),
        "notes": list(placement.notes),
        "remedies": msgspec.to_builtins(made.remedies),
    }


def _device(device: DevicePlan) -> dict[str, Any]:
    holdings = [{**msgspec.to_builtins(holding), "total": holding.total} for holding in device.holdings]
    return {**msgspec.to_builtins(device), "taken": device.taken, "left": device.left, "holdings": holdings}
