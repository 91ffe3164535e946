"""Checks that a checkpoint has weights for each stage, and that each stage can compute with its weights on its device
and with its number of ranks.
"""

from __future__ import annotations

from msgspec import structs

from omni_pipeline import gpus
from omni_pipeline.contract.stage_fit import Share, TellMisfit
from omni_pipeline.deployment.checkpoint import Checkpoint
from omni_pipeline.deployment.resolve import Deployment, StagePlan
from omni_pipeline.errors import StartupError

_MOST_RANKS = 16


def check_stages(deployment: Deployment, checkpoint: Checkpoint) -> None:
    """Raise StartupError if a stage has no weights, or cannot compute with its weights in this deployment. If other
    numbers of ranks would work, the message lists these numbers.

    Args:
        checkpoint: The checkpoint. The checkpoint's list of tensors is empty if the caller has already checked the
            names of the tensors.
    """
    _check_presence(deployment, checkpoint)
    for worker in deployment.workers:
        for plan in worker.stages:
            misfit = deployment.graph.stage(plan.name).misfit
            if misfit is not None:
                _check(plan, misfit, _share(deployment, checkpoint, plan))


def _check_presence(deployment: Deployment, checkpoint: Checkpoint) -> None:
    if not checkpoint.tensors:
        return
    lacking: dict[str, list[str]] = {}
    for spec in deployment.graph.stages:
        missing = [prefix for prefix in spec.weights if not any(name.startswith(prefix) for name in checkpoint.tensors)]
        if missing:
            lacking[spec.name] = missing
    if not lacking:
        return
    listed = "; ".join(f"{name} ({', '.join(f'{prefix}*' for prefix in missing)})" for name, missing in lacking.items())
    advice = "Download or copy it again."
    if deployment.graph.text_stages and deployment.graph.text_stages.isdisjoint(lacking):
        advice = "Download or copy it again or, to serve text only, pass --text-only."
    raise StartupError(f"The checkpoint {checkpoint.path} is not complete: it has no weights for {listed}. {advice}")


def _check(plan: StagePlan, misfit: TellMisfit, share: Share) -> None:
    reason = misfit(share)
    if reason is None:
        return
    # if the tensors are wrong, the stage cannot compute with any number of ranks
    bare = structs.replace(share, tensors=())
    counts = range(1, _MOST_RANKS + 1) if misfit(bare) is not None else ()
    others = [ranks for ranks in counts if misfit(structs.replace(bare, ranks=ranks)) is None]
    if not others:
        raise StartupError(f"stages.{plan.name}: {reason}.")
    raise StartupError(
        f"stages.{plan.name}.tp_size: {plan.tp_size} ranks cannot share the model evenly: {reason}. "
        f"Up to {_MOST_RANKS}, these numbers of ranks can share it evenly: {', '.join(map(str, others))}."
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
