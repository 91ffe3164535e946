"""Deployments of Qwen3-Omni to simulate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.contract.simulation import StepLaw
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.gpus import parse
from omni_pipeline.simulation.network import Costs
from omni_pipeline.simulation.run import Scenario
from omni_pipeline.simulation.site import site_of
from stages.simulation.laws import PUBLISHED
from stages.simulation.model import QWEN3_OMNI

FREE = Costs(gateway=0.0, hop=0.0, message=0.0, latency=0.0)


def scenario(
    gpus: str,
    settings: Mapping[str, Any] | None = None,
    *,
    laws: Mapping[str, StepLaw] = PUBLISHED.laws,
    costs: Costs = FREE,
) -> Scenario:
    """The deployment that these settings give on these GPUs."""
    made = resolve(convert({"model_path": "-", **(settings or {})}, Config, ""), parse(gpus))
    return Scenario(made.graph, QWEN3_OMNI, site_of(made.workers), laws, costs)


def replicas(number: int) -> dict[str, Any]:
    """Settings for replicas of both speech groups, each on a GPU of its own. GPU 0 is the thinker's."""
    own = [[1 + replica] for replica in range(number)]
    return {"groups": {name: {"replicas": number, "gpus": own} for name in ("voice", "vocoder")}}


def own_gpus() -> dict[str, Any]:
    """Settings that give the thinker, the talker, the code predictor and the vocoder a separate GPU each. The times of
    these stages' steps are published.
    """
    names = ("thinker", "talker_ar", "code_predictor", "code2wav")
    return {"stages": {name: {"gpus": [index]} for index, name in enumerate(names)}}
