"""The number of GPUs that a host needs, before anything is known about the host."""

from __future__ import annotations

from typing import Any

import pytest

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.deployment.gpu_demand import gpus_needed, may_do_without

B = {"hosts": {"b": {}}, "cluster": {"listen": "10.0.0.1"}}


def config(tree: dict[str, Any]) -> Config:
    return convert(B | tree, Config, "")


@pytest.mark.parametrize(
    ("tree", "needed"),
    [
        ({"groups": {"voice": {"hosts": ["b"]}}}, 1),
        ({"groups": {"voice": {"hosts": ["b"]}, "vocoder": {"hosts": ["b"]}}}, 1),
        ({"groups": {"voice": {"hosts": ["main"]}}}, 0),
        ({"groups": {"voice": {"hosts": ["b"]}}, "device": "cpu"}, 0),
        ({"groups": {"voice": {"replicas": 2, "gpus": [[0], [1]], "hosts": ["b"]}}}, 2),
        ({"groups": {"voice": {"replicas": 2, "gpus": [[3], [1]], "hosts": ["main", "b"]}}}, 2),
        ({"groups": {"thinkers": {"stages": ["thinker"], "hosts": ["b"]}}, "stages": {"thinker": {"tp_size": 4}}}, 4),
        ({"groups": {"vocoder": {"hosts": ["b"]}}, "stages": {"code2wav": {"gpus": [2]}}}, 3),
        ({"groups": {"vocoder": {"hosts": ["b"]}}, "stages": {"code2wav": {"device": "cpu"}}}, 0),
        ({"groups": {"vocoder": {"hosts": ["b"]}}, "text_only": True}, 0),
        ({"groups": {"vocoder": {"replicas": 1, "max_replicas": 2, "gpus": [[0], [1]], "hosts": ["b"]}}}, 2),
    ],
)
def test_gpus_of_a_host(tree: dict[str, Any], needed: int) -> None:
    assert gpus_needed(config(tree), "b") == needed


@pytest.mark.parametrize(
    ("tree", "may"),
    [
        ({"groups": {"voice": {"hosts": ["b"]}}}, True),
        ({"groups": {"voice": {"hosts": ["b"]}}, "device": "cuda"}, False),
        ({"groups": {"voice": {"hosts": ["main"]}}, "device": "cuda"}, True),
    ],
)
def test_a_host_may_do_without_gpus(tree: dict[str, Any], may: bool) -> None:
    assert may_do_without(config(tree), "b") is may
