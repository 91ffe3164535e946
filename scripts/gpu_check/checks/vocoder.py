"""Checks the vocoder: the sound of the chunks equals the sound of the whole utterance, and the memory is as planned.

Also times the first run and later runs of each batch shape.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from gpu_check.running.finding import Finding
from gpu_check.running.measure import peak_bytes, times
from gpu_check.running.random_parts import RandomModel
from gpu_check.running.setup import Setup
from stages.checkpoint import memory_needs
from stages.code2wav import stage
from stages.code2wav.history import Streams
from stages.code2wav.streaming_vocoder import StreamingVocoder
from stages.options import Code2WavOptions

BATCHES = (1, 2, 4, 8, 16, 32)
# Maximum error of the chunks, as a multiple of the error of the whole utterance. Both errors are differences from the
# sound that is computed in float32. The chunks may have the larger error, because they are computed by other kernels,
# which round differently.
_WORSE = 1.5
_FLOOR = 1e-4
_AUDIBLE = 1e-3


def run(setup: Setup) -> Iterator[Finding]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    slots = 2 if setup.small else 32
    options = Code2WavOptions(max_streams=slots)
    model = RandomModel(setup.directory, setup.device, small=setup.small)
    reference: Any = stage.load_part(
        Qwen3OmniMoeCode2Wav, model.config.code2wav_config, model.path, "code2wav.", model.dtype, setup.device
    )
    _let_it_sound(reference)
    vocoder = StreamingVocoder(reference, slots)
    sizes = options.chunk_frames[:3] if setup.small else options.chunk_frames
    yield _equality(setup, reference, vocoder, sizes)
    frames = max(sizes)
    work = SoundChunk(vocoder, slots, frames, fresh=False)
    work()
    taken, needs = peak_bytes(work, setup.device), memory_needs.vocoder(model.situation(options))
    planned = needs.activations * frames // max(options.chunk_frames)
    planned = planned if setup.device == "cuda" else planned * slots  # on a CPU, the utterances are decoded one by one
    yield Finding("vocoder: peak as planned", taken <= planned * 1.05, {"taken": taken, "planned": planned})
    yield _pairs(setup, vocoder, slots, sorted(set(sizes)))


def _let_it_sound(model: Any) -> None:
    """Replace the weights of all convolutions by random weights that keep the amplitude of a signal about constant from
    layer to layer. With the random weights that transformers draws, the signal would vanish.
    """
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            inputs = layer.in_channels // layer.groups
            reach = layer.kernel_size[0] if isinstance(layer, torch.nn.Conv1d) else 2
            layer.weight.normal_(0.0, 0.6 * (inputs * reach) ** -0.5)


class SoundChunk:
    """Decodes one chunk of `batch` utterances, with `frames` new frames of each utterance."""

    def __init__(self, vocoder: StreamingVocoder, batch: int, frames: int, *, fresh: bool) -> None:
        self._vocoder = vocoder
        self._codes = _codes(vocoder, batch, frames)
        self._streams = Streams.of(range(batch), [0 if fresh else 100] * batch, vocoder.device)

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        return self._vocoder.decode(self._codes, self._streams)


def _codes(vocoder: StreamingVocoder, batch: int, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * 1000 + frames)
    return torch.randint(0, vocoder.codes, (batch, frames, vocoder.codebooks), generator=generator).to(vocoder.device)


@torch.inference_mode()
def _equality(setup: Setup, reference: Any, vocoder: StreamingVocoder, sizes: tuple[int, ...]) -> Finding:
    voices = min(3, vocoder.slots)
    codes = _codes(vocoder, voices, sum(sizes) * 2)
    pieces, done = [], 0
    for size in (*sizes, *sizes):
        streams = Streams.of(range(voices), [done] * voices, vocoder.device)
        pieces.append(vocoder.decode(codes[:, done : done + size], streams))
        done += size
    chunked = torch.cat(pieces, 1)
    whole = reference(codes.transpose(1, 2))[:, 0].float()
    truth = copy.deepcopy(reference).float()(codes.transpose(1, 2))[:, 0]
    if chunked.shape != whole.shape:
        return Finding("vocoder: chunks equal the whole", False, {"chunks": chunked.shape[1], "whole": whole.shape[1]})
    loudest = float(truth.abs().max())
    wrong, own = float((chunked - truth).abs().max()), float((whole - truth).abs().max())
    figures = {
        "voices": voices, "samples": whole.shape[1], "loudest": loudest,
        "chunks_off_float32": wrong, "whole_off_float32": own, "chunks_off_whole": float((chunked - whole).abs().max()),
    }  # fmt: skip
    right = bool(torch.isfinite(chunked).all()) and wrong <= _WORSE * own + _FLOOR * loudest
    return Finding("vocoder: chunks equal the whole", right and loudest > _AUDIBLE, figures)


def _pairs(setup: Setup, vocoder: StreamingVocoder, slots: int, sizes: list[int]) -> Finding:
    """Milliseconds of the first run and of repeated runs, for each shape of a batch of chunks. The later chunks of an
    utterance have several lengths. The first chunks of all utterances have the same length.
    """
    figures: dict[str, Any] = {}
    for batch in (batch for batch in BATCHES if batch <= slots):
        for frames in sizes:
            if setup.in_time:
                taken = times(SoundChunk(vocoder, batch, frames, fresh=False), setup.device, setup.runs(7))
                figures[f"{batch}x{frames}_first_steady_ms"] = list(taken)
        if setup.in_time:
            taken = times(SoundChunk(vocoder, batch, sizes[0], fresh=True), setup.device, setup.runs(7))
            figures[f"{batch}x{sizes[0]}_fresh_first_steady_ms"] = list(taken)
    return Finding("vocoder: ms of each shape", bool(figures), figures)
