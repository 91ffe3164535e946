"""Trains the reference's Code2Wav to turn codes into sound. The training data are recordings and the codes of their
frames.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeCode2Wav,
    Qwen3OmniMoeSnakeBeta,
)

from demo_model.training.training_run import TrainingRun
from demo_model.voice import mel

LOOK_AHEAD = 555
"""The number of samples that Code2Wav leaves out at the end of an utterance, because they depend on the next frame."""

_OPENING = 0.1
"""The initial value of the layer scales and of the ConvNeXt gammas. Their defaults, 0.01 and 1e-6, are so small that a
short training would not raise them enough.
"""
_SOFT = 0.03
"""The root mean square of the output of an untrained vocoder."""
_FIRST_WEIGHT, _LAST_WEIGHT = 6.0, 0.5
"""A part of the loss is the distance between the samples of two sounds (see `SoundLoss`). These numbers are the weights
of this part at the first step and at the last step. The distance between the samples helps most at the beginning of the
training. It does not help for noise such as breath and hiss.
"""
_SPECTRA = ((2048, 480), (1024, 240), (512, 120), (256, 60))
_MELS = ((1024, 480), (600, 240))
"""The window and the hop of both mel spectra in the loss, in samples. The first spectrum is the same as in the codec.
Its window of 43 ms is so long that a vowel hides the consonant next to it. The second spectrum has a window of 25 ms.
"""
_QUIET = 1e-4
"""Amplitudes below this share of full scale count as silence. The codec uses the same limit."""


@dataclass(frozen=True)
class EncodedRecording:
    """The samples of a recording [1920 × frames] and its codes [groups, frames]."""

    sound: Tensor
    codes: Tensor


def new_vocoder(config: dict[str, Any], seed: int, code_rows: Tensor | None = None) -> Qwen3OmniMoeCode2Wav:
    """Return an untrained Code2Wav for the checkpoint's `code2wav_config`.

    With the codec's `code_rows` [groups, codes, hidden] as embeddings, similar codes have similar embeddings from the
    first step on.
    """
    torch.manual_seed(seed)
    vocoder = Qwen3OmniMoeCode2Wav(Qwen3OmniMoeCode2WavConfig(**config))
    with torch.no_grad():
        for name, module in vocoder.named_modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
                nn.init.normal_(module.weight, std=_gain(name) / _inputs(module) ** 0.5)
        for name, parameter in vocoder.named_parameters():
            if name.endswith(("layer_scale.scale", "gamma")):
                parameter.fill_(_OPENING)
        if code_rows is None:
            # With this std, a frame's input (the mean of the embeddings of its codes) has a root mean square of one.
            vocoder.code_embedding.weight.normal_(std=config["num_quantizers"] ** 0.5)
        else:
            vocoder.code_embedding.weight.copy_(code_rows.flatten(0, 1) * config["num_quantizers"])
        vocoder.decoder[-1].conv.weight.mul_(_SOFT)
    return vocoder


def _gain(name: str) -> float:
    """The initial gain of a module. It is one, or less if the output of the module is added to a residual stream. So
    the size of all signals stays at about one.
    """
    return 0.3 if "conv2" in name else 1.0


def _inputs(module: nn.Module) -> int:
    """The number of input values from which `module` computes one output value."""
    if isinstance(module, nn.ConvTranspose1d):
        return module.in_channels * module.kernel_size[0] // module.stride[0]
    assert isinstance(module.weight, Tensor)
    return module.weight[0].numel()


def train(
    directory: Path,
    vocoder: Qwen3OmniMoeCode2Wav,
    utterances: list[EncodedRecording],
    *,
    steps: int,
    rate: float = 1.5e-3,
    batch: int = 2,
    frames: int = 20,
    seed: int = 0,
) -> None:
    """Train on pieces of utterances, each `frames` frames long. Two of five pieces start at the beginning of an
    utterance, because the server always decodes an utterance from its beginning.
    """
    loss = SoundLoss()
    fuse_snakes(vocoder)
    run = TrainingRun(directory, vocoder, steps, rate, seed=seed, warmup=40, save_every=100)
    for step in run:
        codes, sound = pieces(utterances, batch, frames, run.generator(step))
        heard = vocoder(codes)[:, 0]
        weight = _FIRST_WEIGHT * (_LAST_WEIGHT / _FIRST_WEIGHT) ** (step / steps)
        run.update(loss(heard, sound[:, : heard.shape[1]], weight))


def fuse_snakes(vocoder: Qwen3OmniMoeCode2Wav) -> None:
    """Compile the activation. Without compilation, it makes about six passes over the samples.

    With the compiled activation, a training step takes a quarter less time.
    """
    fused = torch.compile(Qwen3OmniMoeSnakeBeta.forward, dynamic=True)
    for module in vocoder.modules():
        if isinstance(module, Qwen3OmniMoeSnakeBeta):
            module.forward = functools.partial(fused, module)


def pieces(
    utterances: list[EncodedRecording], count: int, frames: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose random pieces: codes [count, groups, frames] and sound [count, 1920 × frames].

    The pieces are shorter than `frames` if one of the chosen utterances is shorter.
    """
    chosen = [utterances[int(i)] for i in torch.randint(len(utterances), (count,), generator=generator)]
    frames = min(frames, *(utterance.codes.shape[1] for utterance in chosen))
    codes, sounds = [], []
    for utterance in chosen:
        late = torch.rand((), generator=generator) < 0.6
        start = int(torch.randint(utterance.codes.shape[1] - frames + 1, (), generator=generator)) if late else 0
        codes.append(utterance.codes[:, start : start + frames])
        sounds.append(utterance.sound[start * mel.FRAME : (start + frames) * mel.FRAME])
    return torch.stack(codes), torch.stack(sounds)


class SoundLoss:
    """The distance between two sounds [batch, samples]: the distance of their spectra, which ignore phases, and the
    distance of their samples.

    The distance of the samples makes the vocoder learn the exact waveform. The vocoder can learn the waveform, because
    the pulses of the voices are in phase (see `world.pitch_alignment`).
    """

    def __call__(self, heard: Tensor, wanted: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        """The loss and its parts: spectra of four sizes ("stft"), mel spectra of two sizes ("mel"), and "samples".

        "samples" has the given `weight` in the sum.
        """
        stft = torch.stack([self._spectra(heard, wanted, size, hop) for size, hop in _SPECTRA]).mean()
        hops = heard.shape[1] // (mel.FRAME // mel.STACK) * (mel.FRAME // mel.STACK)
        ours, theirs = heard[:, :hops], wanted[:, :hops]
        mels = torch.stack([F.l1_loss(mel.log_mel(ours, *each), mel.log_mel(theirs, *each)) for each in _MELS]).sum()
        samples = (heard - wanted).abs().mean() / wanted.abs().mean()
        return {
            "loss": stft + mels + weight * samples,
            "stft": stft.detach(),
            "mel": mels.detach(),
            "samples": samples.detach(),
        }

    def _spectra(self, heard: Tensor, wanted: Tensor, size: int, hop: int) -> Tensor:
        window = torch.hann_window(size)
        scale = 2 / window.sum()
        ours, theirs = (
            torch.stft(sound, size, hop, window=window, return_complex=True).abs() * scale for sound in (heard, wanted)
        )
        shape = (ours - theirs).norm(dim=(1, 2)) / theirs.norm(dim=(1, 2)).clamp(min=1e-3)
        logs = F.l1_loss((ours + _QUIET).log(), (theirs + _QUIET).log())
        return shape.mean() + logs


@torch.no_grad()
def resynthesise(vocoder: Qwen3OmniMoeCode2Wav, codes: Tensor) -> Tensor:
    """The sound [1920 × frames − 555] of `codes` [groups, frames]."""
    return vocoder(codes[None])[0, 0]
