"""The streamed sound equals the sound that the reference decodes from the complete utterance, whatever other utterances
are decoded at the same time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.errors import OmniError
from omni_pipeline.wire.messages import Advice, Chunk, End, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.code2wav.history import Streams
from stages.code2wav.stage import Code2Wav, rehearse
from stages.code2wav.streaming_vocoder import StreamingVocoder
from stages.messages import AudioDone, FinishReason, Frame, SpeechFinished, VocoderStart
from tests.device import EXACTNESS

TOLERANCE = EXACTNESS.samples
CHECKPOINTS = ("tiny", "nano")


class Listener:
    """Drives a stage in place of the code predictor and the collector."""

    def __init__(self, stage: Code2Wav) -> None:
        self.stage = stage
        self.begun: set[str] = set()
        self.chunks: dict[str, list[torch.Tensor]] = {}
        self.done: dict[str, int] = {}
        self.reasons: dict[str, str] = {}

    def begin(self, voice: str, *, streamed: bool = True) -> None:
        if voice not in self.begun:
            self.begun.add(voice)
            self.stage.receive(Start(voice, "code_predictor", "code2wav", VocoderStart(streamed)))

    def send(self, voice: str, frames: Iterable[torch.Tensor]) -> None:
        self.begin(voice)
        for codes in frames:
            self.stage.receive(Chunk(voice, "code_predictor", "code2wav", Frame(Tensor.of(codes))))

    def end(self, voice: str, reason: FinishReason = "stop") -> None:
        self.begin(voice)
        self.stage.receive(End(voice, "code_predictor", "code2wav", SpeechFinished(reason)))

    def run(self, steps: int | None = None) -> None:
        """Step while there is work, or at most `steps` times."""
        while self.stage.has_work and steps != 0:
            for message in self.stage.step():
                if not isinstance(message, Advice):
                    self._hear(message)
            steps = None if steps is None else steps - 1

    def _hear(self, message: Work) -> None:
        voice = message.request_id
        assert message.target == COLLECTOR
        assert voice not in self.done
        if isinstance(message, End):
            assert isinstance(message.body, AudioDone)
            self.done[voice], self.reasons[voice] = message.body.frames, message.body.reason
        else:
            self.chunks.setdefault(voice, []).append(message.body.samples.torch())

    def sound(self, voice: str) -> torch.Tensor:
        return torch.cat(self.chunks[voice])


@pytest.fixture
def listener(voice_context: Any) -> Callable[..., Listener]:
    """A function that returns a `Listener` around a stage, for the name of a checkpoint and the stage's options."""

    def make(checkpoint: str, *, just_in_time: bool = False, **options: Any) -> Listener:
        return Listener(Code2Wav(voice_context(checkpoint, "code2wav", just_in_time=just_in_time, **options)))

    return make


def frames(model: Any, count: int, seed: int = 0) -> torch.Tensor:
    """Random frames, int64 [count, codebooks]."""
    config = model.config.code2wav_config
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.codebook_size, (count, config.num_quantizers), generator=generator)


@torch.inference_mode()
def whole(model: Any, codes: torch.Tensor) -> torch.Tensor:
    """The sound that the reference decodes from all frames at once."""
    return model.code2wav(codes.T[None])[0, 0]


def assert_equal(sound: torch.Tensor, model: Any, codes: torch.Tensor) -> None:
    expected = whole(model, codes)
    assert sound.dtype == torch.float32
    assert len(sound) == len(expected) == 1920 * len(codes) - 555
    assert (sound - expected).abs().max().item() <= TOLERANCE


SCHEDULES = [(1,), (2,), (1, 2, 4, 8), (3, 1, 7), (16,), (1000,)]


@pytest.mark.parametrize("just_in_time", [True, False], ids=["just in time", "by arrival"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 37])
def test_any_division_into_chunks_gives_the_whole_decode(
    checkpoint: str,
    schedule: tuple[int, ...],
    count: int,
    just_in_time: bool,
    listener: Callable[..., Listener],
    reference: Any,
) -> None:
    model = reference(checkpoint)
    codes = frames(model, count)
    ears = listener(checkpoint, chunk_frames=schedule, just_in_time=just_in_time)
    ears.send("a", codes)
    ears.end("a")
    ears.run()
    assert_equal(ears.sound("a"), model, codes)
    assert ears.done == {"a": count}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_beyond_the_references_chunks_of_300_frames_nothing_is_lost(
    checkpoint: str, listener: Callable[..., Listener], reference: Any
) -> None:
    model = reference(checkpoint)
    codes = frames(model, 352)
    ears = listener(checkpoint, chunk_frames=(1, 2, 4, 8, 25))
    for frame in codes:
        ears.send("long", [frame])
        ears.run()
    ears.end("long")
    ears.run()
    assert_equal(ears.sound("long"), model, codes)


@pytest.mark.parametrize("just_in_time", [True, False], ids=["just in time", "by arrival"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_voices_that_begin_and_end_at_different_times_do_not_hear_each_other(
    checkpoint: str, just_in_time: bool, listener: Callable[..., Listener], reference: Any
) -> None:
    """Ten utterances share four slots. Their frames arrive in random portions, and every third utterance is aborted
    before its end. Every second utterance is streamed.
    """
    model = reference(checkpoint)
    dice = random.Random(5)
    said = {f"voice {number}": frames(model, dice.randint(1, 45), seed=number) for number in range(10)}
    aborted = {f"voice {number}": dice.randint(0, 20) for number in (2, 5, 8)}
    ears = listener(checkpoint, max_streams=4, just_in_time=just_in_time)
    for number, voice in enumerate(said):
        ears.begin(voice, streamed=number % 2 == 0)
    sent = dict.fromkeys(said, 0)
    speaking = list(said)
    while speaking:
        voice = dice.choice(speaking)
        portion = said[voice][sent[voice] : sent[voice] + dice.randint(1, 9)]
        ears.send(voice, portion)
        sent[voice] += len(portion)
        if sent[voice] > aborted.get(voice, 1000):
            ears.stage.abort(voice)
            speaking.remove(voice)
        elif sent[voice] == len(said[voice]):
            ears.end(voice)
            speaking.remove(voice)
        ears.run(steps=dice.randint(0, 2))
    ears.run()
    assert not ears.stage.live()
    completed = [voice for voice in said if sent[voice] == len(said[voice]) and voice in ears.done]
    assert len(completed) >= 7
    for voice in completed:
        assert ears.done[voice] == len(said[voice])
        assert_equal(ears.sound(voice), model, said[voice])


def test_voices_in_step_are_decoded_in_one_batch(listener: Callable[..., Listener], reference: Any) -> None:
    model = reference("tiny")
    ears = listener("tiny", chunk_frames=(4,))
    said = {f"voice {number}": frames(model, 8, seed=number) for number in range(8)}
    for voice, codes in said.items():
        ears.send(voice, codes)
        ears.end(voice)
    steps = 0
    while ears.stage.has_work:
        ears.run(steps=1)
        steps += 1
    assert steps == 2
    for voice, codes in said.items():
        assert_equal(ears.sound(voice), model, codes)


def test_a_slot_holds_nothing_of_the_voice_before(listener: Callable[..., Listener], reference: Any) -> None:
    model = reference("tiny")
    codes = frames(model, 20, seed=1)
    alone, after = listener("tiny", max_streams=1), listener("tiny", max_streams=1)
    after.send("before", frames(model, 30, seed=2))
    after.run()
    after.stage.abort("before")
    for ears in (alone, after):
        ears.send("a", codes)
        ears.end("a")
        ears.run()
    assert torch.equal(alone.sound("a"), after.sound("a"))


def test_a_rehearsal_measures_chunks_and_leaves_no_trace(
    listener: Callable[..., Listener], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first chunk of a process is not measured, because it includes the loading of kernels."""
    sizes: list[int] = []
    decode = StreamingVocoder.decode

    def slow_at_first(vocoder: StreamingVocoder, codes: torch.Tensor, streams: Streams) -> torch.Tensor:
        sizes.append(codes.shape[1])
        time.sleep(0.0 if sizes.count(sizes[-1]) > 1 else 0.5)
        return decode(vocoder, codes, streams)

    model = reference("tiny")
    with monkeypatch.context() as patched:
        patched.setattr(StreamingVocoder, "decode", slow_at_first)
        ears = listener("tiny", just_in_time=True, chunk_frames=(2, 1, 2, 8))
        assert sizes == [1, 1, 2, 2, 8, 8]
        cost = rehearse(ears.stage._vocoder, (1, 8))
    assert 0 < cost.seconds(1) <= cost.seconds(8) < 0.4
    codes = frames(model, 20, seed=1)
    ears.send("a", codes)
    ears.end("a")
    ears.run()
    assert_equal(ears.sound("a"), model, codes)


def test_more_voices_than_slots_wait_for_one_to_end(listener: Callable[..., Listener], reference: Any) -> None:
    model = reference("tiny")
    ears = listener("tiny", max_streams=2, chunk_frames=(2,))
    said = {voice: frames(model, 6, seed=seed) for seed, voice in enumerate("abcd")}
    for voice, codes in said.items():
        ears.send(voice, codes)
    ears.run()
    assert ears.chunks.keys() == {"a", "b"}
    assert not ears.stage.has_work
    ears.end("a")
    ears.run()
    assert ears.chunks.keys() == {"a", "b", "c"}
    for voice in "bcd":
        ears.end(voice)
    ears.run()
    assert ears.done == dict.fromkeys("abcd", 6)
    for voice, codes in said.items():
        assert_equal(ears.sound(voice), model, codes)


def test_chunks_grow_by_the_schedule_and_the_last_takes_what_is_left(
    listener: Callable[..., Listener], reference: Any
) -> None:
    ears = listener("tiny", chunk_frames=(1, 2, 4))
    ears.send("a", frames(reference("tiny"), 13))
    ears.end("a")
    ears.run()
    sizes = [len(chunk) for chunk in ears.chunks["a"]]
    assert sizes == [1920 - 555, 2 * 1920, 4 * 1920, 4 * 1920, 2 * 1920]


def test_an_unfinished_chunk_waits_without_work(listener: Callable[..., Listener], reference: Any) -> None:
    ears = listener("tiny", chunk_frames=(3,))
    codes = frames(reference("tiny"), 3)
    ears.send("a", codes[:2])
    assert not ears.stage.has_work
    ears.send("a", codes[2:])
    assert ears.stage.has_work


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_end_says_why_there_are_no_more_frames(
    count: int, reason: FinishReason, listener: Callable[..., Listener], reference: Any
) -> None:
    ears = listener("tiny", chunk_frames=(3,))
    ears.send("a", frames(reference("tiny"), count))
    ears.end("a", reason)
    ears.run()
    assert (ears.done, ears.reasons) == ({"a": count}, {"a": reason})


def test_a_voice_without_frames_ends_without_sound(listener: Callable[..., Listener]) -> None:
    ears = listener("tiny")
    ears.end("silent")
    ears.run()
    assert ears.done == {"silent": 0}
    assert not ears.chunks


def test_an_aborted_voice_says_nothing_more(listener: Callable[..., Listener], reference: Any) -> None:
    ears = listener("tiny")
    ears.send("a", frames(reference("tiny"), 9))
    ears.run(steps=1)
    ears.stage.abort("a")
    heard = len(ears.chunks["a"])
    ears.run()
    assert len(ears.chunks["a"]) == heard
    assert not ears.stage.live()


@pytest.mark.parametrize("codes", [[0] * 15, [0] * 17, [0] * 15 + [256], [-1] + [0] * 15])
def test_codes_that_do_not_fit_fail_their_voice_only(codes: list[int], listener: Callable[..., Listener]) -> None:
    ears = listener("tiny")
    with pytest.raises(OmniError) as raised:
        ears.send("a", [torch.tensor(codes)])
    assert raised.value.info.code == "bad_frame"


def test_the_waveform_stays_within_full_scale(listener: Callable[..., Listener], reference: Any) -> None:
    ears = listener("nano")
    ears.send("a", frames(reference("nano"), 60))
    ears.end("a")
    ears.run()
    assert ears.sound("a").abs().max() <= 1.0
