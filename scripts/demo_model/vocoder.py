"""Codes to sound: trains the reference's Code2Wav on recordings and the codes of their frames."""

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

from . import mel
from .training_run import TrainingRun

LOOK_AHEAD = 555
"""Samples at the end of an utterance that Code2Wav would need a further frame for, and leaves out."""

_OPENING = 0.1
"""Layer scales and ConvNeXt gammas begin here: from their own 0.01 and 1e-6 a short training would not open them."""
_SPECTRA = ((2048, 480), (1024, 240), (512, 120), (256, 60))
_QUIET = 1e-4
"""Amplitudes below this share of full scale are silence, to the loss as to the codec."""


@dataclass(frozen=True)
class Utterance:
    """A recording [1920 × frames] and its codes [groups, frames]."""

    sound: Tensor
    codes: Tensor


def new_vocoder(config: dict[str, Any], seed: int) -> Qwen3OmniMoeCode2Wav:
    """An untrained Code2Wav of the checkpoint's `code2wav_config`, ready to be trained."""
    torch.manual_seed(seed)
    vocoder = Qwen3OmniMoeCode2Wav(Qwen3OmniMoeCode2WavConfig(**config))
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if name.endswith(("layer_scale.scale", "gamma")):
                parameter.fill_(_OPENING)
            elif parameter.dim() > 1 and ("decoder" in name or "upsample" in name):
                nn.init.kaiming_uniform_(parameter, a=5**0.5)
        vocoder.code_embedding.weight.normal_(std=config["num_quantizers"] ** 0.5)  # their mean has size one
    return vocoder


def train(
    directory: Path,
    vocoder: Qwen3OmniMoeCode2Wav,
    utterances: list[Utterance],
    *,
    steps: int,
    rate: float = 1.5e-3,
    batch: int = 2,
    frames: int = 20,
    seed: int = 0,
) -> None:
    """Train on pieces of `frames` frames, half of them from an utterance's beginning, as it is heard."""
    loss = SpectralLoss()
    fuse_snakes(vocoder)
    run = TrainingRun(directory, vocoder, steps, rate, seed=seed, warmup=40, save_every=100)
    for step in run:
        codes, sound = pieces(utterances, batch, frames, run.generator(step))
        heard = vocoder(codes)[:, 0]
        run.update(loss(heard, sound[:, : heard.shape[1]]))


def fuse_snakes(vocoder: Qwen3OmniMoeCode2Wav) -> None:
    """Compile the activation, which is half a dozen passes over long rows of samples: a step takes a quarter less."""
    fused = torch.compile(Qwen3OmniMoeSnakeBeta.forward, dynamic=True)
    for module in vocoder.modules():
        if isinstance(module, Qwen3OmniMoeSnakeBeta):
            module.forward = functools.partial(fused, module)


def pieces(utterances: list[Utterance], count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes [count, groups, frames] and their sound [count, 1920 × frames], of utterances that are long enough."""
    codes, sounds = [], []
    while len(codes) < count:
        utterance = utterances[int(torch.randint(len(utterances), (), generator=generator))]
        room = utterance.codes.shape[1] - frames
        if room < 0:
            continue
        late = torch.rand((), generator=generator) < 0.6
        start = int(torch.randint(room + 1, (), generator=generator)) if late else 0
        codes.append(utterance.codes[:, start : start + frames])
        sounds.append(utterance.sound[start * mel.FRAME : (start + frames) * mel.FRAME])
    return torch.stack(codes), torch.stack(sounds)


class SpectralLoss:
    """How far two sounds [batch, samples] are apart to an ear that does not hear phases."""

    def __call__(self, heard: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """The sum ("loss") and its parts: spectra of four sizes ("stft"), and the codec's own mel spectrum ("mel")."""
        stft = torch.stack([self._spectra(heard, wanted, size, hop) for size, hop in _SPECTRA]).mean()
        hops = heard.shape[1] // (mel.FRAME // mel.STACK) * (mel.FRAME // mel.STACK)
        mels = F.l1_loss(mel.log_mel(heard[:, :hops]), mel.log_mel(wanted[:, :hops]))
        return {"loss": stft + mels, "stft": stft.detach(), "mel": mels.detach()}

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
    """Sound [1920 × frames − 555] of `codes` [groups, frames]."""
    return vocoder(codes[None])[0, 0]
