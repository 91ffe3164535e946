"""The stages of Qwen3-Omni, with steps that last as long as the laws say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from omni_pipeline.contract.stage import StageContext
from stages.code2wav.stage import Code2Wav
from stages.code_predictor.stage import CodePredictor
from stages.talker_ar.stage import Talker
from stages.thinker.stage import Thinker
from step_law.gpu import Gpu
from step_law.laws import PREDICTOR, TALKER, THINKER, VOCODER, Law


class _Pace:
    """Base class that makes each step of a stage as long as its law says. The stage holds its GPU during the step. In
    the list of base classes, this class must come before the class of the stage.

    If the tiny model needs more time for a step than the law gives, the step is *late*. Late steps mean that the speed
    of the server depends on the CPU, and not on the law.
    """

    batch: Any
    law: Law

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)  # type: ignore[call-arg]
        self._gpu = Gpu(os.path.dirname(context.scratch), f"{context.options.gpu}{replica_suffix(context)}")
        self._slow = context.options.slow
        self._late = 0

    def step(self) -> Iterable[Any]:
        if not self._computes():
            return list(super().step())  # type: ignore[misc]
        with self._gpu.held():
            until = time.monotonic()
            messages = list(super().step())  # type: ignore[misc]
            until += self._slow * self._seconds()
            rest = until - time.monotonic()
            self._late += rest < 0 and bool(self.batch)
            time.sleep(max(rest, 0.0))
        return messages

    def stats(self) -> dict[str, float]:
        return {**super().stats(), "late_steps": self._late}  # type: ignore[misc]

    def close(self) -> None:
        super().close()  # type: ignore[misc]
        self._gpu.close()

    def _computes(self) -> bool:
        """Whether the next step may compute something. If so, the stage holds the GPU during the step."""
        raise NotImplementedError

    def _seconds(self) -> float:
        """The seconds that the law gives for the step that has just run; 0 if this step only sent messages."""
        return self.law.seconds(len(self.batch)) if self.batch else 0.0


class _EnginePace(_Pace):
    _engine: Any
    _prompt_tokens = 0.0

    def _computes(self) -> bool:
        return bool(self._engine.has_work)

    def _seconds(self) -> float:
        counts = self._engine.stats()
        computed = counts["prompt_tokens"] - counts["prompt_tokens_cached"]
        tokens, self._prompt_tokens = computed - self._prompt_tokens, computed
        return self.law.seconds(len(self.batch), int(tokens)) if self.batch else 0.0


class PacedThinker(_EnginePace, Thinker):
    law = THINKER


class PacedTalker(_EnginePace, Talker):
    law = TALKER


class PacedCodePredictor(_Pace, CodePredictor):
    law = PREDICTOR

    def _computes(self) -> bool:
        return bool(self._ready)


class PacedCode2Wav(_Pace, Code2Wav):
    law = VOCODER

    def _computes(self) -> bool:
        return bool(self._order.next_chunk(time.monotonic()).request_ids)

    def step(self) -> Iterable[Any]:
        self._decoded = self._frames
        return super().step()

    def _seconds(self) -> float:
        return self.law.seconds(self._frames - self._decoded)


def replica_suffix(context: StageContext) -> str:
    """``@`` and the number of the replica, or nothing. A stage does not get the number of its replica, but the name of
    its directory contains it.
    """
    worker = os.path.basename(context.scratch).partition(".")[0]
    _, at, number = worker.partition("@")
    return f"{at}{number}"
