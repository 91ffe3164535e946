"""Checks that each stage can compute with a checkpoint's weights on its device and with its number of ranks."""

from __future__ import annotations

from msgspec import structs

from omni_pipeline import gpus
from omni_pipeline.contract.stage_fit import Share, TellMisfit
from omni_pipeline.deployment.checkpoint import Checkpoint
from omni_pipeline.deployment.resolve import Deployment, StagePlan
from omni_pipeline.errors import StartupError

_MOST_RANKS = 16


def check_stages(deployment: Deployment, checkpoint: Checkpoint) -> None:
    """Raise StartupError if a stage cannot compute with its weights in this deployment. The message names the numbers
    of ranks that would work, if any.
    """
    for worker in deployment.workers:
        for plan in worker.stages:
            misfit = deployment.graph.stage(plan.name).misfit
            if misfit is not None:
                _check(plan, misfit, _share(deployment, checkpoint, plan))


def _check(plan: StagePlan, misfit: TellMisfit, share: Share) -> None:
    reason = misfit(share)
    if reason is None:
        return
    bare = structs.replace(share, tensors=())  # if the tensors are wrong, no other number of ranks helps
    counts = range(1, _MOST_RANKS + 1) if misfit(bare) is not None else ()
    others = [ranks for ranks in counts if misfit(structs.replace(bare, ranks=ranks)) is None]
    if not others:
        raise StartupError(f"stages.{plan.name}: {reason}.")
    raise StartupError(
        f"stages.{plan.name}.tp_size: {plan.tp_size} ranks cannot share the model evenly: {reason}. "
        f"Up to {_MOST_RANKS}, these numbers of ranks can: {', '.join(map(str, others))}."
    )


def _share(deployment: Deployment, checkpoint: Checkpoint, plan: StagePlan) -> Share:
    known = [gpus.known_capability(deployment.gpus[index]) for index in plan.gpus]
    return Share(
        config=checkpoint.config,
        tensors=checkpoint.tensors.keys(),
        device=plan.device,
        ranks=plan.tp_size,
        capability=min((capability for capability in known if capability is not None), default=None),
    )
