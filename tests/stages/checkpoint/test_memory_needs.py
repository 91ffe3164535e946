"""The memory that the stages declare equals what their modules use, as torch counts it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check.running.measure import peak_bytes
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as reference

from omni_pipeline import cpu_detection
from omni_pipeline.contract.stage_memory import Needs, Request, Situation
from stages import options
from stages.checkpoint import memory_needs
from stages.code2wav import cpu_units
from stages.code2wav.history import Streams
from stages.code2wav.streaming_vocoder import StreamingVocoder
from stages.code_predictor.choice import CodeChoice
from stages.code_predictor.network import ResidualNetwork
from stages.messages import Sampling
from stages.sglang_engine import environment

environment.prepare()  # this call must come before any import of SGLang
from stages.sglang_engine.sampler import SamplingState, draw  # noqa: E402

GIB = 1024**3
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def config(data: Path) -> dict[str, Any]:
    """The configuration of the 30B model, with the same widths but with fewer layers and codes. The number of layers
    and codes does not change the activations.
    """
    large: dict[str, Any] = json.loads((data / "qwen3_omni_30b/config.json").read_text())
    large["thinker_config"]["vision_config"] |= {"depth": 1, "deepstack_visual_indexes": [0]}
    large["thinker_config"]["audio_config"] |= {"encoder_layers": 1, "num_hidden_layers": 1}
    large["talker_config"]["code_predictor_config"] |= {"num_hidden_layers": 1}
    large["code2wav_config"] |= {"num_hidden_layers": 1, "codebook_size": 8}
    return large


def situation(config: Mapping[str, Any], chosen: Any, dtype: torch.dtype = torch.bfloat16, **more: Any) -> Situation:
    fields = {
        "device": "cuda",
        "ranks": 1,
        "device_memory": 80 * GIB,
        "stages": frozenset({"thinker", "talker_ar"}),
        "request": Request(),
    }
    return Situation(config=config, options=chosen, item_size=dtype.itemsize, **(fields | more))


def peak(work: Callable[[], object]) -> int:
    """Peak of allocated bytes while `work` runs, minus the bytes that were allocated before."""
    with torch.inference_mode():
        work()  # the first run makes the allocations that happen only once
        return peak_bytes(work, "cpu")


def copies_of_convolutions() -> float:
    """Factor by which copies for convolutions in bfloat16 increase the peak on this CPU. A GPU does not make them."""
    if cpu_detection.detect().bfloat16:
        return 1.0
    # Without AVX-512, oneDNN has no convolutions in bfloat16, and torch's own convolutions make larger copies.
    return 1.06 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 1.15


def built(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    return kind._from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("dtype", TYPES)
def test_peak_of_the_vision_tower(config: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 20
    whole = Qwen3OmniMoeConfig(**config)
    tower = built(reference.Qwen3OmniMoeVisionEncoder, whole.thinker_config.vision_config, dtype)
    patches, grid = torch.zeros(side * side, 1536), torch.tensor([[1, side, side]])
    taken = peak(lambda: tower(patches.to(dtype).clone(), grid_thw=grid))
    monkeypatch.setattr(memory_needs, "LARGEST_PICTURE_ROWS", 0)
    chosen = options.EncoderOptions(max_batch_tokens=side * side // 4)
    assert taken <= memory_needs.vision(situation(config, chosen, dtype)).activations <= 1.2 * taken


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("at_once", [2, 8])
def test_peak_of_the_audio_tower(
    config: dict[str, Any], dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = 8
    whole = Qwen3OmniMoeConfig(**config)
    tower = built(reference.Qwen3OmniMoeAudioEncoder, whole.thinker_config.audio_config, dtype)
    tower.conv_chunksize = at_once
    mel, lengths = torch.zeros(128, 100 * chunks), torch.tensor([100 * chunks])
    taken = peak(lambda: tower(mel.to(dtype).clone(), feature_lens=lengths))
    monkeypatch.setattr(memory_needs, "CONVOLVED_CHUNKS", at_once)
    chosen = options.EncoderOptions(max_batch_tokens=13 * chunks)
    copies = 1.0 if dtype == torch.float32 else copies_of_convolutions()
    assert taken <= copies * memory_needs.audio(situation(config, chosen, dtype)).activations <= copies * 1.5 * taken


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("voices", "frames"), [(1, 8), (4, 2)])
def test_peak_and_state_of_the_vocoder(
    config: dict[str, Any], dtype: torch.dtype, voices: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_units, "can_compute", lambda weight: False)  # a GPU computes all layers in torch
    whole = Qwen3OmniMoeConfig(**config)
    model = built(reference.Qwen3OmniMoeCode2Wav, whole.code2wav_config, dtype)
    vocoder = StreamingVocoder(model, voices)
    codes = torch.zeros(voices, frames, 16, dtype=torch.int64)
    streams = Streams.of(range(voices), [1] * voices, torch.device("cpu"))
    taken = peak(lambda: vocoder.decode(codes, streams))
    chosen = options.Code2WavOptions(max_streams=voices, chunk_frames=(1, frames))
    needs = memory_needs.vocoder(situation(config, chosen, dtype))
    assert taken <= needs.activations <= 1.5 * taken
    assert needs.state == kept(vocoder)


def kept(part: Any) -> int:
    """Bytes of the state of a streaming layer and of its sublayers."""
    if isinstance(part, torch.nn.Module):
        return 0
    if isinstance(part, list):
        return sum(map(kept, part))
    fields = getattr(part, "__dict__", {})
    own = sum(value.nbytes for name, value in fields.items() if name == "_kept")
    return own + sum(kept(value) for name, value in fields.items() if name.startswith("_") and name != "_kept")


@pytest.mark.parametrize("dtype", TYPES)
def test_peak_of_the_predictor(config: dict[str, Any], dtype: torch.dtype) -> None:
    rows = 8
    predictor = Qwen3OmniMoeConfig(**config).talker_config.code_predictor_config
    model = built(reference.Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration, predictor, dtype)
    network = ResidualNetwork(model, torch.zeros(3072, 1024, dtype=dtype), rows)
    hidden, codes = torch.zeros(rows, 1024, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    taken = peak(lambda: network.frames(hidden, codes, CodeChoice(None, None, None)))
    needs = memory_needs.predictor(situation(config, options.CodePredictorOptions(max_batch=rows), dtype))
    assert taken <= needs.activations <= 16 * 1024**2, "too little to be worth a closer look"


def thinker(config: dict[str, Any], **more: Any) -> Needs:
    return memory_needs.thinker(situation(config, options.ThinkerOptions(), **more))


def test_bytes_of_a_cached_token(config: dict[str, Any]) -> None:
    """The thinker has 48 layers, each with 4 heads of 128 numbers for keys and the same for values. The talker has 20
    layers with 2 heads.
    """
    cache = thinker(config).cache
    assert cache is not None
    assert (cache.token_bytes, cache.beside_bytes) == (48 * 2 * 4 * 128 * 2, 2048 * 2)
    spoken = memory_needs.talker(situation(config, options.TalkerOptions())).cache
    assert spoken is not None
    assert (spoken.token_bytes, spoken.beside_bytes) == (20 * 2 * 2 * 128 * 2, 1024 * 2)


def test_nothing_is_kept_for_a_talker_that_is_not_there(config: dict[str, Any]) -> None:
    cache = thinker(config, stages=frozenset({"thinker"})).cache
    assert cache is not None
    assert cache.beside_bytes == 0


@pytest.mark.parametrize(("ranks", "heads"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_ranks_share_the_heads_as_far_as_there_are_any(config: dict[str, Any], ranks: int, heads: int) -> None:
    cache = thinker(config, ranks=ranks).cache
    assert cache is not None
    assert cache.token_bytes == 48 * 2 * heads * 128 * 2


def test_a_smaller_prefill_step_needs_less(config: dict[str, Any]) -> None:
    small = options.ThinkerOptions(engine={"chunked_prefill_size": 1024})
    assert memory_needs.thinker(situation(config, small)).activations < thinker(config).activations


def test_a_cpu_captures_no_graphs(config: dict[str, Any]) -> None:
    assert thinker(config, device="cpu").graphs == 0
    assert thinker(config).graphs > 0


@pytest.mark.parametrize("given", [{"top_k": 50, "top_p": 0.8, "min_p": 0.1}, {"top_p": 0.8}])
def test_peak_of_sampling(given: dict[str, Any]) -> None:
    """The test measures the peak of `draw`, which makes float32 logits in addition to the engine's logits."""
    rows, vocabulary = 4, 16_000  # with a larger vocabulary, a CPU draws without sorting
    states = [
        SamplingState(
            Sampling(temperature=0.9, **given),
            prompt_ids=torch.arange(9),
            output_ids=[1],
            eos_ids=[2],
            logprobs=None,
            suppressed=None,
        )
        for _ in range(rows)
    ]
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))
    taken = peak(lambda: draw(logits, states))
    beside = 3 * logits.nbytes  # three tensors: the engine's logits, a copy of them, and the adjusted copy
    assert taken + beside <= memory_needs.SAMPLING_BYTES * rows * vocabulary <= 2 * (taken + beside)
