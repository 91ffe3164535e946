"""Synthetic voices say a text the same way each time, and the silence around it has the requested length."""

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from demo_model.world.synthetic_voices import SyntheticVoice, speak, trim


def test_what_was_said_before_does_not_change_a_voice() -> None:
    voice = SyntheticVoice(variant="f3", speed=140, gap=4)
    first = speak("There are two stars.", voice)
    speak("A car moves left.", SyntheticVoice(variant="m1", speed=220, pitch=80))

    again = speak("There are two stars.", voice)

    assert len(again) == pytest.approx(len(first), rel=0.01)
    assert 0.8 < len(first) / 24000 < 3
    assert np.abs(first).max() == pytest.approx(np.abs(again).max(), rel=0.1)


def test_a_slower_voice_takes_longer() -> None:
    quick, slow = (speak("A car moves left.", SyntheticVoice(speed=speed)) for speed in (200, 120))

    assert len(slow) > 1.3 * len(quick)


def test_an_unknown_voice_is_refused() -> None:
    with pytest.raises(ValueError, match="no voice nonesuch"):
        speak("Hello.", SyntheticVoice(accent="nonesuch"))


def test_trimming_leaves_the_silences_that_were_asked_for() -> None:
    sound = np.concatenate([np.zeros(500), np.full(100, 0.5), np.zeros(10), np.full(100, 0.5), np.zeros(900)])

    trimmed, later = trim(sound.astype(np.float32), rate=1000, lead=0.02, tail=0.05)

    assert np.flatnonzero(trimmed)[[0, -1]].tolist() == [20, 20 + 209]
    assert len(trimmed) == 20 + 210 + 50
    assert later == pytest.approx(0.02 - 0.5)
