"""Shows a resolved configuration as YAML, with the source of each value as a comment. The output is a valid
configuration file.
"""

from __future__ import annotations

from typing import Any

import msgspec
import yaml
from msgspec import Struct

from omni_pipeline.config.layers import Settings, leaves
from omni_pipeline.config.schema import MAIN_HOST, StageConfig
from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.deployment.resolve import Deployment

DEFAULT = "default"
HIDDEN = "(hidden)"
DIVIDED = "computed; see `sgl-omni plan`"

_SECRETS = ("server.api_keys",)


class ConfigLine(Struct, frozen=True):
    """One value of the configuration, with its dotted path and its source. The source is `DEFAULT`, a file, a flag, an
    environment variable, or a reason.
    """

    path: str
    value: Any
    origin: str


def explain(settings: Settings, deployment: Deployment) -> list[ConfigLine]:
    """Every value of the configuration, in the order of the schema. Includes the values that the server chooses."""
    tree: dict[str, Any] = msgspec.to_builtins(settings.config)
    derived: dict[str, str] = {}
    tree["stages"] = {}
    for spec in deployment.graph.stages:
        for worker in deployment.workers:
            for plan in worker.stages:
                if plan.name == spec.name and worker.replica == 0:
                    tree["stages"][plan.name] = _stage(settings, worker, plan, deployment)
                    derived |= _reasons(settings, worker, plan, deployment, accelerated=spec.accelerated)
    for name, group in settings.config.groups.items():
        if group.stages is None:
            members = {stage for worker in deployment.workers if worker.group == name for stage in worker.stage_names}
            tree["groups"][name]["stages"] = [stage for stage in deployment.graph.stage_names if stage in members]
            derived[f"groups.{name}.stages"] = "from the name of the group"
    lines = []
    for path, value in leaves(tree):
        if path in _SECRETS and value:
            value = [HIDDEN] * len(value)
        lines.append(ConfigLine(path, value, settings.origin(path) or derived.get(path, DEFAULT)))
    return lines


def render(lines: list[ConfigLine]) -> str:
    """`lines` as YAML, with the source of each value as a comment. Defaults have no comment."""
    rows: list[tuple[str, str]] = []
    above: list[str] = []
    for line in lines:
        *parents, name = line.path.split(".")
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != parents[: depth + 1]:
                rows.append((f"{'  ' * depth}{parent}:", ""))
        above = parents
        value = yaml.safe_dump(line.value, default_flow_style=True, width=10**6, allow_unicode=True)
        value = value.removesuffix("\n").removesuffix("\n...")
        rows.append((f"{'  ' * len(parents)}{name}: {value}", "" if line.origin == DEFAULT else f"# {line.origin}"))
    width = min(48, max((len(text) for text, origin in rows if origin), default=0))
    return "\n".join(f"{text:<{width}}  {origin}" if origin else text for text, origin in rows)


def _stage(settings: Settings, worker: WorkerPlan, plan: StagePlan, deployment: Deployment) -> Any:
    said = settings.config.stages.get(plan.name, StageConfig())
    placed = _placed_by_group(settings, worker)
    decided = {
        "worker": worker.base_name,
        "device": said.device if _unknown(deployment, plan.name) else plan.device,
        "gpus": said.gpus if placed else list(plan.gpus),
        "tp_size": said.tp_size if _unknown(deployment, plan.name) else plan.tp_size,
        "options": msgspec.to_builtins(plan.options),
    }
    if said.memory is None and plan.memory is not None:
        decided["memory"] = f"{plan.memory / 2**30:.2f}GiB"
    return msgspec.to_builtins(said) | decided


def _placed_by_group(settings: Settings, worker: WorkerPlan) -> bool:
    """Whether the worker's group decides the GPUs of each replica. This is true if the group lists GPUs, or if the
    group lists other hosts.
    """
    group = settings.config.groups.get(worker.group)
    return group is not None and bool(group.gpus or set(group.hosts) - {MAIN_HOST})


def _unknown(deployment: Deployment, stage: str) -> bool:
    """Whether a stage runs on a host whose hardware is unknown."""
    return any(worker.host in deployment.unknown_hosts for worker in deployment.workers if stage in worker.stage_names)


def _reasons(
    settings: Settings, worker: WorkerPlan, plan: StagePlan, deployment: Deployment, *, accelerated: bool
) -> dict[str, str]:
    """For each setting that the server chose for a stage: the reason, keyed by the path of the setting."""
    place = f"stages.{plan.name}"
    colocated = settings.origin("colocate") if settings.config.colocate and accelerated else None
    if _unknown(deployment, plan.name):
        device = "the GPUs of this stage's hosts are unknown until the hosts join"
    elif not accelerated:
        device = "this stage computes on the CPU only"
    elif settings.config.device != "auto":
        device = settings.origin("device") or DEFAULT
    else:
        device = "a GPU is visible" if plan.device == "cuda" else "no GPU is visible"
    return {
        f"{place}.worker": colocated or "a separate process",
        f"{place}.device": device,
        **({f"{place}.gpus": colocated or "automatic"} if plan.gpus and not _placed_by_group(settings, worker) else {}),
        **({f"{place}.tp_size": "one rank for each GPU"} if plan.tp_size > 1 else {}),
        **(dict.fromkeys((f"{place}.memory", f"{place}.options.max_total_tokens"), DIVIDED) if plan.memory else {}),
    }
