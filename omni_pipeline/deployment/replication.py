"""Determines the groups of stages that a configuration replicates, and the GPUs of each replica."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct, structs

from omni_pipeline.config.schema import MAIN_HOST, Config, GroupConfig
from omni_pipeline.contract.graph import Graph, StageSpec
from omni_pipeline.deployment.gpu_assignment import gpu_sets
from omni_pipeline.deployment.host_facts import Machine
from omni_pipeline.errors import StartupError, suggestion

WHOLE = "all"
"""If the configuration lists no stages for the group of this name, the group has all stages."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class StageGroup(Struct, frozen=True):
    """A group of stages that has several replicas.

    Attributes:
        replicas: Number of replicas for which the server plans memory.
        started: Number of replicas that are started with the server.
        gpus: Indices of the GPUs of each replica, on the replica's host; empty if the stages use their own GPUs.
        hosts: Names of the hosts, as in `WorkerPlan.host`. Replica i runs on entry i. If there are more replicas than
            entries, the list is repeated.
    """

    name: str
    stages: frozenset[str]
    replicas: int = 1
    started: int = 1
    gpus: tuple[tuple[int, ...], ...] = ()
    hosts: tuple[str, ...] = ("",)

    def host(self, replica: int) -> str:
        """Name of the host of a replica; empty for the main host."""
        return self.hosts[replica % len(self.hosts)]


def stage_groups(config: Config, whole: Graph, graph: Graph) -> dict[str, StageGroup]:
    """The group of each stage that is in a group, by the stage's name.

    Args:
        whole: The complete graph of the model.
        graph: The stages that this deployment runs. Other stages of a group are ignored.

    Raises:
        StartupError: a group contains an unknown stage, two groups share a stage, or a group contains only some of the
            stages of a set in `Graph.together`.
    """
    found: dict[str, StageGroup] = {}
    for name, said in config.groups.items():
        if not _NAME.fullmatch(name):
            raise StartupError(f"groups: {name!r} is not a name: use letters, digits, - and _, with a letter first.")
        most = said.replicas if said.max_replicas is None else said.max_replicas
        if most < said.replicas:
            raise StartupError(
                f"groups.{name}.max_replicas: {most} is less than groups.{name}.replicas, which is {said.replicas}."
            )
        if said.gpus and len(said.gpus) != most:
            raise StartupError(
                f"groups.{name}.gpus: there are {most} replicas, but the number of lists is {len(said.gpus)}; write "
                "one list of GPUs for each replica, such as [[0], [1]]."
            )
        listed = _listed(name, said, whole)
        _check_together(name, listed, whole)
        hosts = tuple("" if host == MAIN_HOST else host for host in said.hosts) or ("",)
        group = StageGroup(name, listed, most, said.replicas, tuple(map(tuple, said.gpus)), hosts)
        for stage in sorted(listed):
            if stage in found:
                raise StartupError(
                    f"groups.{name}.stages: {stage} is already in the group {found[stage].name}, and a stage "
                    "cannot be in more than one group."
                )
            found[stage] = group
    return {stage: group for stage, group in found.items() if stage in graph.stage_names}


def _listed(name: str, said: GroupConfig, graph: Graph) -> frozenset[str]:
    """The stages of the group `name`."""
    if said.stages is None:
        if name in graph.groups:
            return graph.groups[name]
        if name in graph.stage_names:
            return frozenset({name})
        if name != WHOLE:
            known = (*graph.groups, *graph.stage_names, WHOLE)
            raise StartupError(
                f"groups.{name}: the model has no group and no stage of this name; {suggestion(name, known)} To make a "
                f"group of your own, list its stages in groups.{name}.stages."
            )
    if said.stages is None or said.stages == "*":
        return frozenset(graph.stage_names)
    for stage in said.stages:
        if stage not in graph.stage_names:
            raise StartupError(
                f"groups.{name}.stages: there is no stage {stage}; {suggestion(stage, graph.stage_names)}"
            )
    if not said.stages:
        raise StartupError(f"groups.{name}.stages: the list is empty; list the stages, or write * for all stages.")
    return frozenset(said.stages)


def _check_together(name: str, listed: Collection[str], graph: Graph) -> None:
    for stages in graph.together:
        inside = stages.intersection(listed)
        if inside and inside != stages:
            missing = ", ".join(sorted(stages - inside))
            raise StartupError(
                f"groups.{name}.stages: {', '.join(sorted(inside))} needs {missing} in the same group, because "
                f"these stages exchange several messages for each piece of their work; add {missing} to the list."
            )


def replica_gpu_sets(
    group: StageGroup, specs: Sequence[StageSpec], config: Config, machines: Mapping[str, Machine]
) -> list[Mapping[str, tuple[int, ...]]]:
    """Divide the GPUs of each replica among its stages, for a group that has its own GPUs. Returns, for each replica,
    the indices of each stage's GPUs.

    Args:
        specs: The stages of the group that compute on GPUs.
        machines: The GPUs of each host.

    Raises:
        StartupError: a GPU does not exist, or the GPUs do not fit the stages' ranks or ``colocate``.
    """
    place = f"groups.{group.name}.gpus"
    if not specs:
        raise StartupError(f"{place}: no stage of the group computes on a GPU.")
    for spec in specs:
        if spec.name in config.stages and config.stages[spec.name].gpus:
            raise StartupError(
                f"{place}: stages.{spec.name}.gpus also sets the GPUs of {spec.name}; remove one of these two settings."
            )
    sets: list[Mapping[str, tuple[int, ...]]] = []
    for replica, indices in enumerate(group.gpus):
        machine = machines[group.host(replica)]
        gpus = machine.gpus
        if machine.unknown:
            sets.append(dict.fromkeys((spec.name for spec in specs), ()))
            continue
        for index in indices:
            if index >= len(gpus):
                there = "there is only GPU 0" if len(gpus) == 1 else f"the GPUs are 0 to {len(gpus) - 1}"
                raise StartupError(f"{place}: there is no GPU {index}{machine.of}; {there}.")
        if not indices or len(set(indices)) < len(indices):
            raise StartupError(f"{place}: each list needs at least one GPU, and must not contain a GPU twice.")
        if config.colocate and len(indices) > 1:
            raise StartupError(
                f"{place}: the setting 'colocate' puts all stages of a replica on one GPU, so list one GPU for each "
                "replica."
            )
        own = structs.replace(config, colocate=False, hosts={})
        sets.append(gpu_sets(specs, own, [gpus[index] for index in indices]))
    return sets
