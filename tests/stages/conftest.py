"""Provides the reference model, and the stages under test on its checkpoint."""

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
    "stages.code_predictor.network:ResidualNetwork._attend",  # adding the float32 mask turns the scores into float32
    # The reference multiplies its table of places by float32 weights.
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
    """Whether the tests' engines treat memory as on a GPU; a module with this fixture runs both ways."""
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
    """Builds a stage's context: `stage_context("image_encoder", cache_bytes=0)`."""
    options_of = {"image_encoder": EncoderOptions, "audio_encoder": EncoderOptions, "mm_aggregate": AggregateOptions}

    def context(name: str, **options: Any) -> StageContext:
        if name in ("image_encoder", "audio_encoder"):
            options = {"dtype": DTYPE, **options}
        chosen = options_of.get(name, PreprocessingOptions)(**options)
        return StageContext(name, str(tiny_checkpoint), DEVICE, chosen, frozenset({name}), scratch="")

    return context


@pytest.fixture(scope="session")
def reference(checkpoints: Callable[[str], Path]) -> Callable[[str], Any]:
    """The whole reference model of a checkpoint, by the checkpoint's name."""
    return cache(lambda name: Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoints(name)).eval())


@pytest.fixture(scope="session")
def voice_context(checkpoints: Callable[[str], Path]) -> Any:
    """Builds the context of a stage that makes sound: `voice_context("tiny", "code2wav", max_streams=1)`."""
    options_of = {"code_predictor": CodePredictorOptions, "code2wav": Code2WavOptions}

    def context(checkpoint: str, name: str, **options: Any) -> StageContext:
        if name == "code2wav":  # batches can go wrong, but a CPU makes no batches by default
            options = {"max_batch": 32, **options}
        chosen = options_of[name](**{"dtype": DTYPE, **options})
        return StageContext(name, str(checkpoints(checkpoint)), DEVICE, chosen, frozenset({name}), scratch="")

    return context


@pytest.fixture
def cuda() -> Iterator[CudaRules]:
    """A device ``cuda`` that computes nothing, and a record of the operations on it."""
    with CudaRules(MIXES) as rules:
        yield rules


@pytest.fixture(scope="session")
def on_cuda(tiny_checkpoint: Path) -> Callable[..., StageContext]:
    """Builds the context of a stage that computes in bfloat16 on ``cuda``."""

    def context(name: str, options: Any) -> StageContext:
        return StageContext(name, str(tiny_checkpoint), "cuda", options, frozenset({name}), scratch="")

    return context


@pytest.fixture(scope="session")
def published(data: Path) -> Qwen3OmniMoeConfig:
    """The configuration of the 30B model."""
    return Qwen3OmniMoeConfig.from_pretrained(data / "qwen3_omni_30b")
