"""Provides the reference model, and contexts for the stages under test on the same checkpoint."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor

from omni_pipeline.contract.stage import StageContext
from stages import cuda_habits
from stages.options import (
    AggregateOptions,
    Code2WavOptions,
    CodePredictorOptions,
    EncoderOptions,
    PreprocessingOptions,
)
from tests.cuda_rules import CudaRules
from tests.device import DEVICE, DTYPE

# Functions that mix floating-point types on purpose.
MIXES = (
    # This function adds the float32 mask to the scores. This addition converts the scores to float32.
    "stages.code_predictor.network:ResidualNetwork._attend",
    # The reference multiplies its table of positions by float32 weights.
    "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe:Qwen3OmniMoeVisionEncoder.forward",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hide the reference's own deprecation warnings."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[False, True], ids=["", "cuda habits"])
def habits(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the tests' engines treat memory as CUDA code does (see `stages.cuda_habits`). The tests of a module with
    this fixture run twice, with False and with True.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cuda_habits.VARIABLE, str(int(request.param)))
        yield request.param


@pytest.fixture(scope="session")
def processor(tiny_checkpoint: Path) -> Qwen3OmniMoeProcessor:
    return Qwen3OmniMoeProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def thinker(tiny_checkpoint: Path) -> Any:
    """The reference's thinker, with its encoders."""
    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint).eval().thinker


@pytest.fixture(scope="session")
def stage_context(tiny_checkpoint: Path) -> Any:
    """A function that returns a stage's context, for example `stage_context("image_encoder", cache_bytes=0)`."""
    options_of = {"image_encoder": EncoderOptions, "audio_encoder": EncoderOptions, "mm_aggregate": AggregateOptions}

    def context(name: str, **options: Any) -> StageContext:
        if name in ("image_encoder", "audio_encoder"):
            options = {"dtype": DTYPE, **options}
        chosen = options_of.get(name, PreprocessingOptions)(**options)
        return StageContext(name, str(tiny_checkpoint), DEVICE, chosen, frozenset({name}), scratch="")

    return context


@pytest.fixture(scope="session")
def reference(checkpoints: Callable[[str], Path]) -> Callable[[str], Any]:
    """A function that returns the complete reference model for the name of a checkpoint."""
    return cache(lambda name: Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoints(name)).eval())


@pytest.fixture(scope="session")
def voice_context(checkpoints: Callable[[str], Path]) -> Any:
    """A function that returns the context of a stage that makes sound, for example
    `voice_context("tiny", "code2wav", max_streams=1)`.
    """
    options_of = {"code_predictor": CodePredictorOptions, "code2wav": Code2WavOptions}

    def context(checkpoint: str, name: str, **options: Any) -> StageContext:
        if name == "code2wav":  # batches must be tested, but on a CPU the stage makes no batches by default
            options = {"max_batch": 32, **options}
        chosen = options_of[name](**{"dtype": DTYPE, **options})
        return StageContext(name, str(checkpoints(checkpoint)), DEVICE, chosen, frozenset({name}), scratch="")

    return context


@pytest.fixture
def cuda() -> Iterator[CudaRules]:
    """Rules under which the device ``cuda`` computes nothing. They record the operations on this device."""
    with CudaRules(MIXES) as rules:
        yield rules


@pytest.fixture(scope="session")
def on_cuda(tiny_checkpoint: Path) -> Callable[..., StageContext]:
    """A function that returns the context of a stage on the device ``cuda``, with the given options."""

    def context(name: str, options: Any) -> StageContext:
        return StageContext(name, str(tiny_checkpoint), "cuda", options, frozenset({name}), scratch="")

    return context


@pytest.fixture(scope="session")
def published(data: Path) -> Qwen3OmniMoeConfig:
    """The configuration of the 30B model."""
    return Qwen3OmniMoeConfig.from_pretrained(data / "qwen3_omni_30b")
