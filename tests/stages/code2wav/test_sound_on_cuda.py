"""The vocoder in bfloat16 on a simulated GPU makes the expected copies and kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from omni_pipeline.wire.messages import Chunk, Start
from omni_pipeline.wire.tensor import Tensor
from stages.code2wav.history import Streams
from stages.code2wav.stage import Code2Wav
from stages.code2wav.streaming_vocoder import StreamingVocoder
from stages.messages import AudioDelta, Frame, VocoderStart
from stages.options import Code2WavOptions
from tests.cuda_rules import CudaRules

# Numbers of kernels for one chunk with the 30B model's sizes: for the first chunk of an utterance, for a later chunk,
# and for a batch with chunks of several utterances.
KERNELS = {"first": 496, "later": 511, "together": 547}


def test_a_chunk_copies_as_often_for_many_voices_as_for_one(cuda: CudaRules, on_cuda: Callable[..., Any]) -> None:
    options = Code2WavOptions(dtype="bfloat16", max_streams=4, chunk_frames=(1, 2), just_in_time=False)
    stage = Code2Wav(on_cuda("code2wav", options))
    codes = torch.zeros(stage._vocoder.codebooks, dtype=torch.int64)
    for voices in (1, 4):
        for voice in range(voices):
            stage.receive(Start(f"v{voice}", "code_predictor", "code2wav", VocoderStart()))
            for _ in range(3):
                stage.receive(Chunk(f"v{voice}", "code_predictor", "code2wav", Frame(Tensor.of(codes))))
        while stage.has_work:
            cuda.forget()
            chunks = list(stage.step())
            assert len(chunks) == voices
            assert all(isinstance(chunk.body, AudioDelta) for chunk in chunks)
            assert cuda.to_host == {"stages.code2wav.stage:Code2Wav._decode": 1}
            assert cuda.to_device == {
                "stages.code2wav.stage:Code2Wav._decode": 1,
                "stages.code2wav.history:Streams.of": 2,  # copies of the utterances' slots and progress
            }
        for voice in range(voices):
            stage.abort(f"v{voice}")


@torch.inference_mode()
def test_kernels_of_a_chunk_at_the_sizes_of_the_30b_model(cuda: CudaRules, published: Qwen3OmniMoeConfig) -> None:
    with torch.device("cuda"):
        model = Qwen3OmniMoeCode2Wav._from_config(published.code2wav_config, dtype=torch.bfloat16)
    vocoder = StreamingVocoder(model.eval().requires_grad_(False), 8)
    found = {}
    for kind, voices, done, frames in (("first", 1, 0, 1), ("later", 1, 1, 4), ("together", 8, 4, 8)):
        streams = Streams.of(list(range(voices)), [done] * voices, vocoder.device)
        codes = torch.zeros(voices, frames, vocoder.codebooks, dtype=torch.int64, device="cuda")
        cuda.forget()
        with cuda.captured():
            samples = vocoder.decode(codes, streams)
        trimmed = 0 if done else vocoder.trimmed
        assert (samples.shape, samples.dtype) == ((voices, frames * vocoder.upsample - trimmed), torch.float32)
        found[kind] = cuda.kernels.total()
    assert found == KERNELS
