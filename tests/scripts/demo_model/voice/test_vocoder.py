"""The vocoder is trained on the samples that it must make from the same codes."""

import pytest
import torch
from demo_model.voice import mel
from demo_model.voice.vocoder import LOOK_AHEAD, EncodedRecording, SoundLoss, new_vocoder, pieces, resynthesise
from tiny_checkpoint.config import model_config
from tiny_checkpoint.shapes import PRESETS
from tiny_checkpoint.tokenizer import cut_vocabulary


@pytest.fixture(scope="module")
def vocoder():
    config = model_config(PRESETS["nano"], cut_vocabulary(300), "float32")
    return new_vocoder(config["code2wav_config"], seed=0).eval()


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_frames_make_1920_samples_each_but_for_the_look_ahead(vocoder, frames: int) -> None:
    sound = resynthesise(vocoder, torch.zeros(8, frames, dtype=torch.long))

    assert sound.shape == (frames * mel.FRAME - LOOK_AHEAD,)


def test_a_changed_frame_is_heard_at_its_own_samples(vocoder) -> None:
    codes = torch.randint(128, (8, 10), generator=torch.Generator().manual_seed(0))
    changed = codes.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 128

    differs = (resynthesise(vocoder, codes) != resynthesise(vocoder, changed)).nonzero()[0]

    assert 6 * mel.FRAME - LOOK_AHEAD <= int(differs) <= 6 * mel.FRAME


def test_pieces_keep_codes_and_sound_together() -> None:
    frames = torch.arange(30)
    utterance = EncodedRecording(frames.repeat_interleave(mel.FRAME).float(), frames.expand(8, -1))

    codes, sound = pieces([utterance], 6, 5, torch.Generator().manual_seed(0))

    assert codes.shape == (6, 8, 5)
    assert torch.equal(codes[:, 0].repeat_interleave(mel.FRAME, dim=1).float(), sound)
    assert len(codes[:, 0, 0].unique()) > 1


def test_what_is_short_is_learned_whole() -> None:
    short, long = (EncodedRecording(torch.zeros(n * mel.FRAME), torch.zeros(8, n, dtype=torch.long)) for n in (2, 30))

    codes, sound = pieces([short, long], 20, 5, torch.Generator().manual_seed(0))

    assert codes.shape == (20, 8, 2)
    assert sound.shape == (20, 2 * mel.FRAME)


def test_the_loss_hears_pitch_more_than_phase() -> None:
    time = torch.arange(24000) / mel.RATE
    tone, shifted, higher = (
        0.2 * torch.sin(2 * torch.pi * pitch * time + phase)[None]
        for pitch, phase in ((440, 0.0), (440, 1.5), (660, 0.0))
    )

    loss = SoundLoss()

    assert loss(tone, tone)["loss"] == 0
    assert loss(shifted, tone)["stft"] < 0.2 * loss(higher, tone)["stft"]
    assert loss(shifted, tone)["samples"] > 1
