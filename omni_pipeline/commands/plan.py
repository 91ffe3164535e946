"""`sgl-omni plan`: shows, before anything is loaded, how much memory of each GPU a deployment needs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct
from rich.console import Console

from omni_pipeline.commands.config import Gpus, Hosts, free_for, resolved, unknown_notes
from omni_pipeline.commands.options import takes_settings
from omni_pipeline.commands.plan_view import draw
from omni_pipeline.config.layers import Settings
from omni_pipeline.config.schema import MAIN_HOST
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.deployment.alternatives import Remedy, remedies
from omni_pipeline.deployment.checkpoint import describe_checkpoint
from omni_pipeline.deployment.host_descriptions import described
from omni_pipeline.deployment.host_traffic import HostEdge, heavy_notes, host_edges
from omni_pipeline.deployment.memory_plan import DevicePlan, Placement
from omni_pipeline.deployment.prepare import prepare
from omni_pipeline.deployment.replica_rooms import ReplicaRoom, bottleneck, group_requests, replica_rooms
from omni_pipeline.deployment.text_only import fitted
from omni_pipeline.errors import StartupError

_REQUEST = Request()
_Tokens = Annotated[int, typer.Option(min=1, metavar="N", help="Number of tokens of this kind in the example request.")]


class PlanReport(Struct, frozen=True):
    """The result of the command ``plan``: a placement of the stages on the GPUs.

    Attributes:
        remedies: Changes, each of which would make the placement fit; empty if it already fits, or if none was found.
        replicas: The replicas of all groups if there are several hosts; otherwise empty.
        edges: The edges between hosts.
    """

    model_path: str
    placement: Placement
    remedies: tuple[Remedy, ...]
    replicas: tuple[ReplicaRoom, ...] = ()
    edges: tuple[HostEdge, ...] = ()


@takes_settings
def plan(
    settings: Settings,
    gpus: Gpus = None,
    hosts: Hosts = None,
    prompt_tokens: _Tokens = _REQUEST.prompt_tokens,
    answer_tokens: _Tokens = _REQUEST.answer_tokens,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON, with sizes in bytes and tokens.")
    ] = False,
) -> None:
    """Show how much memory of each GPU a deployment needs, whether it fits, and what to change if it does not fit.

    Accepts the flags of serve. Loads no weights: a directory with config.json is enough. Exits with code 1 if the
    deployment does not fit.
    """
    made = planned(settings, gpus, hosts, Request(prompt_tokens, answer_tokens))
    if as_json:
        print(json.dumps(as_data(made), indent=1))
    else:
        console = Console()
        console.print(draw(made.placement, made.remedies, made.replicas, made.edges), highlight=False, soft_wrap=True)
    if not made.placement.fits:
        raise typer.Exit(1)


def planned(settings: Settings, gpus: str | None, hosts: str | None, request: Request) -> PlanReport:
    """The plan for these settings.

    Args:
        gpus, hosts: The values of ``--gpus`` and ``--hosts``.

    Raises:
        StartupError: the settings contradict each other, the checkpoint is unknown, or a host is unknown.
    """
    settings = fitted(settings)
    hardware = described(gpus, hosts, settings.config)
    deployment = resolved(settings, hardware)
    if deployment.unknown_hosts:
        raise StartupError(" ".join(unknown_notes(deployment)))
    spec = deployment.graph.checkpoint
    if spec is None:
        raise StartupError(f"The graph {deployment.graph.name} loads no checkpoint, so its memory cannot be planned.")
    found, free = describe_checkpoint(deployment.model_path, spec), free_for(deployment, hardware)
    prepared = prepare(deployment, found, free, request=request)
    deployment, placement = prepared.deployment, prepared.placement
    seek = deployment.uses_cuda and not placement.fits
    own = [gpu for gpu in deployment.gpus if not gpu.host]
    changes = remedies(settings.config, found, own, free, request) if seek else ()
    replicas = replica_rooms(deployment, placement) if deployment.hosts else ()
    return PlanReport(found.path, placement, changes, replicas, host_edges(deployment, found, request))


def as_data(made: PlanReport) -> dict[str, Any]:
    """The plan as data that can be written as JSON, including the sums that `Placement` computes."""
    placement = made.placement
    return {
        "model_path": made.model_path,
        "fits": placement.fits,
        "requests": placement.requests,
        "bounded_by": list(placement.bounded_by),
        "request": msgspec.to_builtins(placement.request),
        "devices": [_device(device, several=bool(made.replicas)) for device in placement.devices],
        "caches": [{**msgspec.to_builtins(cache), "requests": cache.requests} for cache in placement.caches],
        "limits": placement.limits,
        "problems": list(placement.problems),
        "notes": list(placement.notes),
        "remedies": msgspec.to_builtins(made.remedies),
        **(_hosts(made) if made.replicas else {}),
    }


def _hosts(made: PlanReport) -> dict[str, Any]:
    """The parts of the plan that exist only if there are several hosts."""
    return {
        "replicas": [{**msgspec.to_builtins(room), "host": room.host or MAIN_HOST} for room in made.replicas],
        **dict(zip(("requests", "bounded_by"), bottleneck(made.placement, made.replicas), strict=True)),
        "group_requests": group_requests(made.replicas),
        "edges": [
            {
                **msgspec.to_builtins(edge),
                "routes": [[end or MAIN_HOST for end in route] for route in edge.routes],
                "heavy": edge.heavy,
            }
            for edge in made.edges
        ],
        "notes": [*made.placement.notes, *heavy_notes(made.edges)],
    }


def _device(device: DevicePlan, *, several: bool) -> dict[str, Any]:
    """A device with its sums.

    Args:
        several: Whether there are several hosts. If so, the result contains the name of the device's host, and the
            index of the device on this host.
    """
    holdings = [{**msgspec.to_builtins(holding), "total": holding.total} for holding in device.holdings]
    data = {**msgspec.to_builtins(device), "taken": device.taken, "left": device.left, "holdings": holdings}
    host, offset = data.pop("host"), data.pop("offset")
    if not several:
        return data
    return {"host": host or MAIN_HOST, **data, "index": None if device.index is None else device.index - offset}
