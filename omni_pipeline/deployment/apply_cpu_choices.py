"""Chooses the number of threads, the niceness and the data type of stages on a CPU, if the operator has not set
them.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from omni_pipeline.contract.cpu_fit import CpuChoice, OnCpu
from omni_pipeline.contract.plan import StagePlan, WorkerPlan
from omni_pipeline.contract.stage_options import StageOptions
from omni_pipeline.cpu_detection import Cpu
from omni_pipeline.deployment.checkpoint import Checkpoint
from omni_pipeline.deployment.resolve import Deployment


def with_cpu_choices(deployment: Deployment, checkpoint: Checkpoint, cpus: Mapping[str, Cpu]) -> Deployment:
    """The deployment with a number of threads and a niceness for every worker, and with the data types that the graph
    chooses for stages on the CPU.

    Args:
        cpus: The CPU of each host, by the host's name. A host that is not listed has one core.
    """
    return structs.replace(
        deployment, workers=tuple(_chosen(worker, deployment, checkpoint, cpus) for worker in deployment.workers)
    )


def _chosen(worker: WorkerPlan, deployment: Deployment, checkpoint: Checkpoint, cpus: Mapping[str, Cpu]) -> WorkerPlan:
    choices = {plan.name: _choice(plan, worker.host, deployment, checkpoint, cpus) for plan in worker.stages}
    return structs.replace(
        worker,
        stages=tuple(_typed(plan, choices[plan.name]) for plan in worker.stages),
        threads=worker.threads or max(choice.threads for choice in choices.values()),
        niceness=min(choice.niceness for choice in choices.values()) if worker.niceness is None else worker.niceness,
    )


def _choice(
    plan: StagePlan, host: str, deployment: Deployment, checkpoint: Checkpoint, cpus: Mapping[str, Cpu]
) -> CpuChoice:
    tell = deployment.graph.stage(plan.name).on_cpu
    if plan.device != "cpu" or tell is None:
        return CpuChoice()
    served = [name for worker in deployment.workers_on(host) for name in worker.stage_names]
    # All replicas of a stage compute in the same type, so that their answers are equal.
    own = [
        cpus[worker.host] for worker in deployment.workers if plan.name in worker.stage_names and worker.host in cpus
    ]
    cpu = structs.replace(cpus.get(host, Cpu()), bfloat16=bool(own) and all(each.bfloat16 for each in own))
    return tell(OnCpu(plan.name, checkpoint.config, served, cpu))


def _typed(plan: StagePlan, choice: CpuChoice) -> StagePlan:
    options: StageOptions = plan.options
    if choice.dtype is None or options.dtype is not None:
        return plan
    return structs.replace(plan, options=structs.replace(options, dtype=choice.dtype))
