"""All checks of the engine on one GPU also pass on a CPU, and the checks find wrong answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check.engine import CHECKPOINT
from gpu_check.engine_checks import SECONDS
from gpu_check.engine_checks.driving import EngineAnswer, difference
from gpu_check.engine_checks.thinker import judged
from gpu_check.running.setup import Setup

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check" / "engine.py"


def test_every_check_of_the_engine_passes_on_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu", "--small", "--seconds", "500"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if line["result"] != "ok"] == []
    assert done.returncode == 0, done.stderr
    assert list(dict.fromkeys(line["check"].split(":")[0] for line in lines)) == list(SECONDS)
    for name in SECONDS:
        [finding] = [line for line in lines if line["check"] == f"{name}: retraction"]
        assert finding["figures"]["preemptions"] > 0


def answers(*logits: list[float]) -> dict[str, EngineAnswer]:
    """The answer to one request. Its tokens are the best candidates of these logits."""
    rows = [torch.tensor(row) for row in logits]
    return {"a": EngineAnswer([int(row.argmax()) for row in rows], rows)}


FIRST = ([0.0, 5.0, 1.0], [3.0, 2.9, 0.0])


@pytest.mark.parametrize(
    ("second", "right"),
    [
        (FIRST, True),
        (([0.0, 5.0, 1.1], [3.0, 2.9, 0.0]), True),
        (([0.0, 5.0, 1.0], [2.9, 3.0, 0.0]), True),  # the answers differ from this token on, because of a near tie
        (([5.0, 0.0, 1.0], [3.0, 2.9, 0.0]), False),
        (([0.0, 5.0, 3.0], [3.0, 2.9, 0.0]), False),
        (([0.0, 5.0, 1.0],), False),
    ],
)
def test_runs_may_part_at_near_ties_alone(second: Any, right: bool) -> None:
    assert judged("a", difference(answers(*FIRST), answers(*second), 0.2), 0.2).ok is right


def test_nothing_compared_is_not_right() -> None:
    assert not judged("a", difference({}, {}, 0.2), 0.2).ok


def test_a_prompt_that_is_overwritten_while_it_is_computed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that work in place could overwrite the prompt. If the utterance loses its memory afterwards, the talker
    computes the utterance again from the overwritten rows.
    """
    from stages.sglang_engine import environment

    environment.prepare()
    from gpu_check.engine_checks import talker

    from stages.sglang_engine.models.talker import Qwen3OmniTalker

    plain = Qwen3OmniTalker.fill

    def overwriting(self: Any, extras: Any, *rest: Any) -> torch.Tensor:
        hidden = plain(self, extras, *rest)
        extras.media_embeds.add_(1.0)
        return hidden

    monkeypatch.setattr(Qwen3OmniTalker, "fill", overwriting)
    torch.set_num_threads(1)
    setup = Setup("cpu", True, tmp_path, time.monotonic() + 600)
    found = {finding.check: finding.ok for finding in talker.run(setup, CHECKPOINT)}
    assert not found["talker: retraction"]
    assert found["talker: voices together equal one alone"]
