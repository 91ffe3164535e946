"""Turns a configuration into a deployment: which worker runs which stages, on which device, with which options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from omni_pipeline.config import access, trace_target
from omni_pipeline.config.schema import MAIN_HOST, Config, Server, StageConfig, convert
from omni_pipeline.contract.graph import StageSpec, load_graph
from omni_pipeline.contract.plan import Device, StagePlan, WorkerPlan
from omni_pipeline.deployment.gpu_assignment import gpu_sets
from omni_pipeline.deployment.host_checks import check_hosts
from omni_pipeline.deployment.host_facts import HostFacts, Machine, machines_of
from omni_pipeline.deployment.replication import StageGroup, replica_gpu_sets, stage_groups
from omni_pipeline.deployment.worker_grouping import WorkerKey, grouped
from omni_pipeline.errors import StartupError, suggestion
from omni_pipeline.gpus import Gpu, detect
from omni_pipeline.sizes import parse_size
from omni_pipeline.supervision.plan import PipelinePlan


class Deployment(PipelinePlan, frozen=True):
    """A configuration after all decisions of the server. No value is ``auto`` any more.

    Attributes:
        model_path: The model path of the configuration; `checkpoint.find_checkpoint` turns a hub name into a directory.
        gpus: The GPUs that the server may use, on all hosts: first the main host, then the hosts in the order of the
            configuration.
        server: Settings of the HTTP server.
        unknown_hosts: Names of the hosts that run workers, have not joined, and are not described. The stages on these
            hosts are planned for a CPU. A deployment with unknown hosts can be shown, but not started.
    """

    model_path: str
    gpus: tuple[Gpu, ...]
    server: Server
    unknown_hosts: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the other hosts that run workers, in the order of their first workers."""
        return tuple(dict.fromkeys(worker.host for worker in self.workers if worker.host))

    def workers_on(self, host: str) -> tuple[WorkerPlan, ...]:
        """The workers on a host; an empty name means the main host."""
        return tuple(worker for worker in self.workers if worker.host == host)

    @property
    def uses_cuda(self) -> bool:
        return any(stage.device == "cuda" for worker in self.workers for stage in worker.stages)

    @property
    def layout(self) -> tuple[str, ...]:
        """One line of text for each GPU that has stages, with the names of these stages."""
        plans = [plan for worker in self.workers for plan in worker.stages]
        stages = {gpu: ", ".join(plan.name for plan in plans if gpu.index in plan.gpus) for gpu in self.gpus}
        return tuple(f"{gpu.label}: {names}" for gpu, names in stages.items() if names)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the operator on settings that have no effect, or that allow more access than an operator may
        expect.
        """
        ineffective = tuple(
            f"stages.{plan.name}: mem_fraction_static has no effect on the CPU, where the KV cache has a fixed size"
            for worker in self.workers
            for plan in worker.stages
            if plan.device == "cpu" and plan.options.mem_fraction_static is not None
        )
        return ineffective + access.notes(self.server)


def resolve(
    config: Config, gpus: Sequence[Gpu] | None = None, remote: Mapping[str, HostFacts] | None = None
) -> Deployment:
    """Make all decisions that `config` leaves to the server.

    Args:
        gpus: The GPUs to use on the main host; None means the GPUs of this machine.
        remote: The facts of the other hosts, by the host's name. A host without facts is unknown.

    Raises:
        StartupError: the configuration contradicts itself, or does not fit the graph or the machine.
    """
    if config.model_path is None:
        raise StartupError("No model is named: pass --model-path with a checkpoint directory or a hub name.")
    graph = whole = load_graph(config.graph)
    for name in config.stages:
        if name not in graph.stage_names:
            raise StartupError(f"stages.{name}: there is no such stage; {suggestion(name, graph.stage_names)}")
    for name in config.server.limits.stage_requests:
        if name not in graph.stage_names:
            known = suggestion(name, graph.stage_names)
            raise StartupError(f"server.limits.stage_requests.{name}: there is no such stage; {known}")
    if config.text_only and graph.text_stages:
        graph = graph.narrowed(graph.text_stages)
    check_hosts(config)
    settings = {spec.name: config.stages.get(spec.name, StageConfig()) for spec in graph.stages}
    groups = stage_groups(config, whole, graph)
    hosts = {spec.name: _hosts(groups.get(spec.name)) for spec in graph.stages}
    if gpus is None:
        wants = any(
            spec.accelerated and _wanted(settings[spec.name], config) != "cpu" and "" in hosts[spec.name]
            for spec in graph.stages
        )
        gpus = detect() if wants else ()
    running = {host for names in hosts.values() for host in names}
    machines = machines_of((name for name in config.hosts if name in running), gpus, remote or {})
    gpus = [gpu for machine in machines.values() for gpu in machine.gpus]
    places = {spec.name: [machines[host] for host in dict.fromkeys(hosts[spec.name])] for spec in graph.stages}
    devices = {spec.name: _device(spec, settings[spec.name], config, places[spec.name]) for spec in graph.stages}
    sets = _gpus([spec for spec in graph.stages if devices[spec.name] == "cuda"], groups, config, machines)
    workers: dict[WorkerKey, list[StagePlan]] = {}
    for spec in graph.stages:
        stage, group = settings[spec.name], groups.get(spec.name)
        if not any(machine.unknown for machine in places[spec.name]):
            _check_placement(spec, stage, devices[spec.name], config)
        own = "gpu" if config.colocate and spec.accelerated else spec.name
        for replica, host in enumerate(hosts[spec.name]):
            indices, unknown = sets[spec.name][replica] if spec.name in sets else (), machines[host].unknown
            plan = StagePlan(
                name=spec.name,
                device="cpu" if unknown else devices[spec.name],
                options=convert(stage.options, spec.options, f"stages.{spec.name}.options"),
                gpus=indices,
                tp_size=len(indices) or stage.tp_size or 1,
                memory=_bytes(stage.memory, [gpus[index] for index in indices]) if not unknown else None,
            )
            spare = group is not None and replica >= group.started
            key = WorkerKey(stage.worker or own, group.name if group else "", replica, spare, host)
            workers.setdefault(key, []).append(plan)
    return Deployment(
        graph_path=config.graph,
        graph=graph,
        model_path=config.model_path,
        workers=grouped(workers, graph, settings, gpus),
        gpus=tuple(gpus),
        unknown_hosts=tuple(name for name, machine in machines.items() if machine.unknown),
        supervision=config.supervision,
        server=access.without_root(config.server),
        log_level=config.log_level.upper(),
        log_format=config.log_format,
        trace=trace_target.resolve_trace(config.trace, os.environ),
        routing=config.routing,
    )


def _hosts(group: StageGroup | None) -> tuple[str, ...]:
    """The host of each replica of a stage that is in `group`."""
    return tuple(group.host(replica) for replica in range(group.replicas)) if group is not None else ("",)


def _gpus(
    specs: Sequence[StageSpec], groups: Mapping[str, StageGroup], config: Config, machines: Mapping[str, Machine]
) -> dict[str, list[tuple[int, ...]]]:
    """For each stage, by name: the GPU indices of each replica.

    Args:
        specs: The stages that compute on GPUs.
        groups: The groups by the names of their stages.
        machines: The hosts by name.
    """
    placed = {group.name: group for group in groups.values() if group.gpus}
    rest = [spec for spec in specs if spec.name not in groups or not groups[spec.name].gpus]
    usual = {
        host: gpu_sets([spec for spec in rest if host in _hosts(groups.get(spec.name))], config, machine.gpus)
        for host, machine in machines.items()
        if not machine.unknown
    }
    sets = {
        spec.name: [usual[host][spec.name] if host in usual else () for host in _hosts(groups.get(spec.name))]
        for spec in rest
    }
    for group in placed.values():
        own = [spec for spec in specs if spec.name in group.stages]
        if not own and any(machines[host].unknown for host in group.hosts):
            continue
        for chosen in replica_gpu_sets(group, own, config, machines):
            for name, indices in chosen.items():
                sets.setdefault(name, []).append(indices)
    return sets


def _wanted(stage: StageConfig, config: Config) -> str:
    return stage.device if stage.device != "auto" else config.device


def _device(spec: StageSpec, stage: StageConfig, config: Config, machines: Sequence[Machine]) -> Device:
    """The device of a stage that runs on `machines`. Machines whose GPUs are unknown do not count."""
    known = [machine for machine in machines if not machine.unknown]
    without = [machine.host for machine in known if not machine.gpus]
    if not spec.accelerated:
        if stage.device == "cuda":
            raise StartupError(f"stages.{spec.name}.device: this stage computes on the CPU only.")
        return "cpu"
    match _wanted(stage, config):
        case "cuda":
            if without:
                where = f" on {_names(without)}" if config.hosts else ""
                raise StartupError(
                    f"Stage {spec.name} needs a GPU (device cuda), but no GPU is visible{where}: use --device cpu."
                )
            return "cuda"
        case "cpu":
            return "cpu"
    if without and len(without) < len(known):
        having = [machine.host for machine in known if machine.gpus]
        raise StartupError(
            f"stages.{spec.name}.device: all replicas of {spec.name} need the same kind of device, but "
            f"{_names(having)} {'has' if len(having) == 1 else 'have'} a GPU and {_names(without)} "
            f"{'has' if len(without) == 1 else 'have'} none. Set the device to cpu, or choose other hosts for the "
            "stage's group."
        )
    return "cuda" if known and not without else "cpu"


def _names(hosts: Sequence[str]) -> str:
    return " and ".join(host or MAIN_HOST for host in hosts)


def _check_placement(spec: StageSpec, stage: StageConfig, device: Device, config: Config) -> None:
    """Refuse GPU settings of a stage on the CPU, and several ranks for a stage that cannot be divided."""
    if device == "cpu":
        undecided = spec.accelerated and _wanted(stage, config) == "auto"
        why = "it computes on the CPU" + (", because no GPU is visible" if undecided else "")
        if stage.gpus:
            raise StartupError(f"stages.{spec.name}.gpus: {spec.name} cannot use a GPU: {why}.")
        if stage.memory is not None:
            raise StartupError(f"stages.{spec.name}.memory: {spec.name} cannot have a GPU memory budget: {why}.")
    if (stage.tp_size or 1) > 1 and not spec.parallel:
        raise StartupError(f"stages.{spec.name}.tp_size: {spec.name} does not support tensor parallelism.")


def _bytes(memory: float | str | None, gpus: Sequence[Gpu]) -> int | None:
    """A memory budget in bytes, for each of `gpus`."""
    if memory is None or isinstance(memory, str):
        return None if memory is None else parse_size(memory)
    return int(memory * min(gpu.memory for gpu in gpus))
