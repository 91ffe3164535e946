"""Implements the flag `--baseline` of the bench. Starts a process that runs Hugging Face Transformers, and sends
requests to this process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import ExitStack
from types import TracebackType

import msgspec
from msgspec import Struct

from gateway.bench.scenarios import BenchPrompt, Scenario
from omni_pipeline.errors import StartupError

READY = b"ready"
_TAIL = 2000  # number of characters that an error quotes from the end of the process's output


class BaselineQuestion(Struct, frozen=True):
    """A prompt to answer, and the scenario that determines the length of the answer."""

    scenario: Scenario
    prompt: BenchPrompt


class BaselineAnswer(Struct):
    """The length of an answer, and the time that the reference needed for it. The time begins before the media are
    decoded, and ends with the last sample.
    """

    seconds: float
    tokens: int
    audio_samples: int


class Baseline:
    """Runs Hugging Face Transformers on a checkpoint. As a context manager, starts and ends the baseline's process.

    The server and the baseline's process never work at the same time, so that they do not slow each other down.
    """

    def __init__(self, model_path: str) -> None:
        self._model_path = model_path

    async def __aenter__(self) -> Baseline:
        with ExitStack() as undo:
            self._words = undo.enter_context(tempfile.TemporaryFile())
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "gateway.bench.hugging_face", self._model_path],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._words,
                env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            )
            undo.callback(self._terminate)
            await self._line()
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        await self._process.wait()

    async def answer(self, scenario: Scenario, prompt: BenchPrompt) -> BaselineAnswer:
        """Send one request to the baseline's process and return the answer.

        Raises:
            StartupError: The baseline's process has ended. The error message contains the last output of the process on
                standard error.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(BaselineQuestion(scenario, prompt)) + b"\n")
        return msgspec.json.decode(await self._line(), type=BaselineAnswer)

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            self._words.seek(0)
            tail = self._words.read().decode(errors="replace")[-_TAIL:]
            raise StartupError(f"The Hugging Face baseline ended with exit status {code}:\n{tail}")
        return line

    def _terminate(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
