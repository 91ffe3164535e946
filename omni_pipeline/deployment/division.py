"""Whether a checkpoint's model can be divided among as many ranks as a deployment has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.errors import StartupError


def check_ranks(deployment: Deployment, model_path: str) -> None:
    """Raise StartupError when the ranks of a stage do not divide its model evenly."""
    plans = [plan for worker in deployment.workers for plan in worker.stages if plan.tp_size > 1]
    config = msgspec.json.decode((Path(model_path) / "config.json").read_bytes()) if plans else {}
    for plan in plans:
        for path in deployment.graph.stage(plan.name).divided:
            value = _value(config, path)
            if isinstance(value, int) and value % plan.tp_size:
                raise StartupError(
                    f"stages.{plan.name}.tp_size: {plan.tp_size} ranks cannot share the model evenly: its "
                    f"{path.rpartition('.')[2]} is {value}. Use a number that divides it."
                )


def _value(config: Any, path: str) -> Any:
    """What is at a dotted path; None where there is nothing."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config
