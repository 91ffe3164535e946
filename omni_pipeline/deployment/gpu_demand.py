"""Computes how many GPUs a host needs, from the configuration alone. Ray reserves them before the host joins."""

from __future__ import annotations

from omni_pipeline.config.schema import Config, StageConfig
from omni_pipeline.contract.graph import load_graph
from omni_pipeline.deployment.replication import stage_groups


def gpus_needed(config: Config, host: str) -> int:
    """The number of GPUs that a host needs. If the configuration lists GPUs of the host, the host needs enough GPUs for
    the highest listed index. If the configuration lists no GPUs of the host, the result is the smallest number of GPUs
    on which the host's groups can run.
    """
    graph = load_graph(config.graph)
    narrowed = graph.narrowed(graph.text_stages) if config.text_only and graph.text_stages else graph
    most = 0
    for stage, group in stage_groups(config, graph, narrowed).items():
        settings = config.stages.get(stage, StageConfig())
        wanted = settings.device if settings.device != "auto" else config.device
        if not narrowed.stage(stage).accelerated or wanted == "cpu":
            continue
        for replica in range(group.replicas):
            if group.host(replica) != host:
                continue
            named = group.gpus[replica] if group.gpus else settings.gpus or ()
            most = max(most, max(named, default=-1) + 1, settings.tp_size or 1)
    return most


def may_do_without(config: Config, host: str) -> bool:
    """Whether the stages on a host may compute on the CPU if there is no GPU."""
    graph = load_graph(config.graph)
    for stage, group in stage_groups(config, graph, graph).items():
        settings = config.stages.get(stage, StageConfig())
        wanted = settings.device if settings.device != "auto" else config.device
        if host in group.hosts and wanted == "cuda":
            return False
    return True
