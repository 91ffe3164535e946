"""Features describe the samples of their own frame, and fitting gives the same codebooks each time."""

import math

import torch
from demo_model.voice import mel
from demo_model.voice.codec import SpeechCodec


def test_a_sound_has_a_row_for_each_80_ms_begun() -> None:
    assert mel.features(torch.randn(3 * mel.FRAME)).shape == (3, mel.SIZE)
    assert mel.features(torch.randn(3 * mel.FRAME + 1)).shape == (4, mel.SIZE)


def test_a_frame_hears_its_own_80_ms() -> None:
    sound = torch.zeros(5 * mel.FRAME)
    sound[2 * mel.FRAME : 3 * mel.FRAME] = torch.randn(mel.FRAME) * 0.1

    loudness = mel.features(sound).mean(dim=1)

    assert loudness.argmax() == 2
    torch.testing.assert_close(loudness[[0, 4]], loudness.min().expand(2))


def test_a_tone_is_loudest_in_its_mel_band() -> None:
    time = torch.arange(mel.FRAME * 4) / mel.RATE
    low, high = (mel.log_mel(0.3 * torch.sin(2 * math.pi * pitch * time))[4].argmax() for pitch in (300, 3000))

    assert low < high


def test_the_same_seed_gives_the_same_codebooks() -> None:
    features = torch.randn(2000, 12)

    first, second = (SpeechCodec.fit(features, groups=3, codes=16, seed=7) for _ in range(2))

    assert torch.equal(first.codebooks, second.codebooks)
    assert not torch.equal(first.codebooks, SpeechCodec.fit(features, groups=3, codes=16, seed=8).codebooks)


def test_each_codebook_brings_the_features_nearer() -> None:
    features = torch.randn(2000, 12)
    codec = SpeechCodec.fit(features, groups=4, codes=32, seed=0)
    codes = codec.encode(features)

    errors = []
    for used in range(1, 5):
        fewer = SpeechCodec(codec.centre, codec.codebooks[:used])
        errors.append(float((fewer.decode(codes[:used]) - features).square().mean()))

    assert codes.shape == (4, 2000)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5


def test_no_code_of_a_codebook_is_wasted() -> None:
    clumps = torch.randn(8, 4)[torch.randint(8, (3000,))] * 10 + torch.randn(3000, 4) * 0.1

    codes = SpeechCodec.fit(clumps, groups=1, codes=32, seed=0).encode(clumps)

    assert len(codes.unique()) == 32


def test_a_codec_is_the_same_after_it_was_saved(tmp_path) -> None:
    features = torch.randn(500, 12)
    codec = SpeechCodec.fit(features, groups=2, codes=8, seed=0)

    codec.save(tmp_path / "codec.safetensors")

    assert torch.equal(SpeechCodec.load(tmp_path / "codec.safetensors").encode(features), codec.encode(features))
