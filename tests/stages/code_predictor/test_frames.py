"""Greedy codec frames equal the reference's frames code for code, in any batch. Sampled codec frames follow the
reference's probabilities.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from omni_pipeline.errors import OmniError
from omni_pipeline.wire.messages import Chunk, End, Start
from omni_pipeline.wire.tensor import Tensor
from stages.code_predictor import CodePredictor
from stages.code_predictor.compiled_frames import CompiledFrames
from stages.messages import (
    FinishReason,
    Frame,
    FrameFeedback,
    FrameSeed,
    PredictorStart,
    Sampling,
    SpeechFinished,
    VocoderStart,
)
from tests.device import EXACTNESS

CHECKPOINTS = ("tiny", "nano")
# If two logits differ by less than this number, the smaller logit may become the larger one when the batch has another
# shape.
NEAR_TIE = EXACTNESS.near_tie
GREEDY = Sampling()
SAMPLED = Sampling(temperature=1.0, top_k=50, top_p=0.8)  # these are the reference's parameters when its talker samples


@dataclass
class Seed:
    """The input for a frame: the talker's hidden state, float32 [hidden], and a code of codebook 0."""

    hidden: torch.Tensor
    code: int


@dataclass
class Heard:
    """The messages that the stage has sent for one utterance."""

    frames: list[list[int]] = field(default_factory=list)
    embeddings: list[torch.Tensor] = field(default_factory=list)
    streamed: bool | None = None
    ended: bool = False
    ending: SpeechFinished | None = None


class Partners:
    """Drives a stage in place of the talker and the vocoder."""

    def __init__(self, stage: CodePredictor) -> None:
        self.stage = stage
        self.heard: dict[str, Heard] = {}

    def start(self, voice: str, sampling: Sampling = GREEDY, *, streamed: bool = True) -> None:
        self.heard[voice] = Heard()
        self.stage.receive(Start(voice, "talker_ar", "code_predictor", PredictorStart(sampling, streamed)))

    def send(self, voice: str, seed: Seed) -> None:
        body = FrameSeed(Tensor.of(seed.hidden), seed.code)
        self.stage.receive(Chunk(voice, "talker_ar", "code_predictor", body))

    def end(self, voice: str, reason: FinishReason = "stop") -> None:
        self.stage.receive(End(voice, "talker_ar", "code_predictor", SpeechFinished(reason)))

    def step(self) -> None:
        for message in self.stage.step():
            heard = self.heard[message.request_id]
            assert not heard.ended
            if isinstance(message.body, VocoderStart):
                assert message.target == "code2wav"
                assert not heard.frames
                heard.streamed = message.body.streamed
            elif isinstance(message, End):
                # Both streams of an utterance are closed: first the stream to the talker, then the stream to the
                # vocoder.
                heard.ended = message.target == "code2wav"
                heard.ending = message.body
                assert heard.ended or message.target == "talker_ar"
            elif isinstance(message.body, Frame):
                assert message.target == "code2wav"
                heard.frames.append(message.body.codes.torch().tolist())
            else:
                assert isinstance(message.body, FrameFeedback)
                assert message.target == "talker_ar"
                heard.embeddings.append(message.body.embedding.torch())

    def say(self, voice: str, seeds: list[Seed], sampling: Sampling = GREEDY) -> Heard:
        """Send one utterance from its start to its end. Returns the results."""
        self.start(voice, sampling)
        for seed in seeds:
            self.send(voice, seed)
            self.step()
        self.end(voice)
        self.step()
        return self.heard[voice]


@pytest.fixture
def partners(voice_context: Any) -> Callable[..., Partners]:
    """A function that returns `Partners` around a stage, for the name of a checkpoint and the stage's options. The
    stage records graphs only on request, because recording takes seconds.
    """

    def build(checkpoint: str, **options: Any) -> Partners:
        return Partners(CodePredictor(voice_context(checkpoint, "code_predictor", **{"record": False, **options})))

    return build


def seeds(model: Any, count: int, seed: int = 0) -> list[Seed]:
    config = model.config.talker_config.code_predictor_config
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, config.hidden_size, generator=generator)
    codes = torch.randint(0, config.vocab_size, (count,), generator=generator)
    return [Seed(*pair) for pair in zip(hidden, codes.tolist(), strict=True)]


@torch.inference_mode()
def generate(model: Any, seed: Seed, **options: Any) -> Any:
    """Runs the reference's own loop that generates one frame."""
    talker = model.talker
    first = talker.get_input_embeddings()(torch.tensor([[seed.code]]))
    return talker.code_predictor.generate(
        inputs_embeds=torch.cat((seed.hidden[None, None], first), dim=1),
        max_new_tokens=talker.config.num_code_groups - 1,
        return_dict_in_generate=True,
        **options,
    )


def assert_frame_equals_the_reference(codes: list[int], embedding: torch.Tensor, model: Any, seed: Seed) -> None:
    """Compare a frame with the reference's frame code for code, up to a near tie of the reference. The frame's
    embedding must equal the sum that the reference computes.
    """
    truth = generate(model, seed, do_sample=False, output_logits=True)
    expected = [seed.code, *truth.sequences[0].tolist()]
    assert len(codes) == len(expected)
    for index, (ours, theirs) in enumerate(zip(codes, expected, strict=True)):
        if ours != theirs:
            best = truth.logits[index - 1][0].topk(2).values
            assert (best[0] - best[1]).item() < NEAR_TIE, f"codebook {index}: {ours} instead of {theirs}"
            break
    talker = model.talker
    tables = [talker.get_input_embeddings(), *talker.code_predictor.get_input_embeddings()]
    with torch.inference_mode():
        rows = [table(torch.tensor([[code]])) for table, code in zip(tables, codes, strict=True)]
        assert torch.equal(embedding, torch.cat(rows, dim=1).sum(1)[0])


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_voice_alone_gets_the_references_frames(
    checkpoint: str, partners: Callable[..., Partners], reference: Any
) -> None:
    model = reference(checkpoint)
    start = seeds(model, 60)
    heard = partners(checkpoint).say("a", start)
    assert heard.ended
    for seed, codes, embedding in zip(start, heard.frames, heard.embeddings, strict=True):
        assert_frame_equals_the_reference(codes, embedding, model, seed)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_voices_that_come_and_go_get_the_references_frames(
    checkpoint: str, partners: Callable[..., Partners], reference: Any
) -> None:
    """The `FrameSeed` messages of nine utterances arrive at random times, so every batch has a different set of rows.
    Three utterances are aborted.
    """
    model = reference(checkpoint)
    dice = random.Random(3)
    said = {f"voice {number}": seeds(model, dice.randint(3, 12), seed=number) for number in range(9)}
    room = partners(checkpoint, max_batch=5, record=True)
    speaking = dict.fromkeys(said, 0)
    waiting: set[str] = set()
    for voice in said:
        room.start(voice)
    while speaking or room.stage.has_work:
        for voice in [voice for voice in speaking if voice not in waiting and dice.random() < 0.6]:
            if speaking[voice] == 2 and voice in ("voice 1", "voice 4", "voice 7"):
                room.send(voice, said[voice][2])
                room.stage.abort(voice)
                del speaking[voice]
            elif speaking[voice] == len(said[voice]):
                room.end(voice)
                del speaking[voice]
            else:
                room.send(voice, said[voice][speaking[voice]])
                speaking[voice] += 1
                waiting.add(voice)
        room.step()
        waiting = {voice for voice in waiting if len(room.heard[voice].frames) < speaking[voice]}
    assert not room.stage.live()
    for voice, heard in room.heard.items():
        aborted = voice in ("voice 1", "voice 4", "voice 7")
        assert heard.ended is not aborted
        assert len(heard.frames) == (2 if aborted else len(said[voice]))
        for seed, codes, embedding in zip(said[voice], heard.frames, heard.embeddings, strict=False):
            assert_frame_equals_the_reference(codes, embedding, model, seed)


def test_beyond_max_batch_the_seeds_that_came_first_go_first(partners: Callable[..., Partners], reference: Any) -> None:
    room = partners("nano", max_batch=2)
    for voice, seed in zip("abcde", seeds(reference("nano"), 5), strict=True):
        room.start(voice)
        room.send(voice, seed)
    order = []
    while room.stage.has_work:
        room.step()
        order.append("".join(voice for voice in "abcde" if room.heard[voice].frames))
    assert order == ["ab", "abcd", "abcde"]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sampled_codes_follow_the_references_probabilities(
    temperature: float, checkpoint: str, partners: Callable[..., Partners], reference: Any
) -> None:
    """A chi-square test compares the first residual codes for 3000 seeds with the reference's distribution."""
    model = reference(checkpoint)
    [start] = seeds(model, 1, seed=9)
    truth = generate(model, start, do_sample=True, temperature=temperature, top_k=50, top_p=0.8, output_scores=True)
    expected = torch.softmax(truth.scores[0][0].double(), dim=-1)
    draws = 3000
    room = partners(checkpoint, max_batch=100)
    for number in range(draws):
        sampling = Sampling(temperature=temperature, top_k=50, top_p=0.8, seed=number)
        room.start(str(number), sampling)
        room.send(str(number), start)
    while room.stage.has_work:
        room.step()
    picked = torch.tensor([heard.frames[0][1] for heard in room.heard.values()])
    counts = torch.bincount(picked, minlength=len(expected)).double()
    assert not counts[expected == 0].any()
    kept = expected * draws >= 5
    observed = torch.cat((counts[kept], counts[~kept].sum()[None]))
    wanted = torch.cat((expected[kept], expected[~kept].sum()[None])) * draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    assert freedom >= (1 if temperature == 1.0 else 10)
    chi_square = ((observed - wanted) ** 2 / wanted).sum().item()
    # The 0.999 quantile, by Wilson and Hilferty's approximation.
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_a_seed_repeats_a_voice_alone_and_in_any_company(partners: Callable[..., Partners], reference: Any) -> None:
    model = reference("tiny")
    start = seeds(model, 6)
    sampling = {str(n): Sampling(temperature=1.0, top_k=50, top_p=0.8, seed=n) for n in range(5)}
    sampling["greedy"] = GREEDY
    sampling["wide"] = Sampling(temperature=1.3, seed=77)
    room = partners("tiny", record=True)
    alone = {voice: room.say(voice, start, params).frames for voice, params in sampling.items()}
    for voice, params in sampling.items():
        room.start(voice, params)
    for seed in start:
        for voice in sampling:
            room.send(voice, seed)
        room.step()
    assert {voice: heard.frames for voice, heard in room.heard.items()} == alone
    assert len({str(frames) for frames in alone.values()}) == len(alone)


def test_what_is_not_recorded_yet_is_recorded_in_spare_time(
    partners: Callable[..., Partners], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An utterance that arrives while graphs remain to be recorded is computed first. When all graphs are recorded, the
    stage has no more work.
    """
    monkeypatch.setattr(CompiledFrames, "suits", staticmethod(lambda network: False))
    room = partners("nano", record=True, max_batch=2)
    assert room.stage.has_work
    room.start("a")
    room.send("a", seeds(reference("nano"), 1)[0])
    room.step()
    assert len(room.heard["a"].frames) == 1
    room.stage.abort("a")
    while room.stage.has_work:
        room.step()
    assert room.stage._graphs is not None
    assert room.stage._graphs.complete


def test_every_frame_and_codebook_has_its_own_draw(partners: Callable[..., Partners], reference: Any) -> None:
    [start] = seeds(reference("tiny"), 1)
    params = Sampling(temperature=1.0, seed=1)
    frames = partners("tiny").say("a", [start] * 8, params).frames
    assert len({tuple(frame) for frame in frames}) == 8


def test_without_a_seed_two_voices_differ(partners: Callable[..., Partners], reference: Any) -> None:
    start = seeds(reference("tiny"), 3)
    room = partners("tiny")
    assert room.say("a", start, SAMPLED).frames != room.say("b", start, SAMPLED).frames


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_end_of_a_voice_is_passed_on_after_its_last_frame_with_its_reason(
    reason: FinishReason, partners: Callable[..., Partners], reference: Any
) -> None:
    room = partners("nano")
    room.start("a")
    room.send("a", seeds(reference("nano"), 1)[0])
    room.end("a", reason)
    room.step()
    assert len(room.heard["a"].frames) == 1
    assert room.heard["a"].ended
    assert room.heard["a"].ending == SpeechFinished(reason)
    assert not room.stage.live()
    assert not room.stage.has_work


def test_a_voice_without_frames_ends_too(partners: Callable[..., Partners]) -> None:
    assert partners("nano").say("a", []) == Heard(streamed=True, ended=True, ending=SpeechFinished("stop"))


def test_an_aborted_voice_is_forgotten_with_its_seed(partners: Callable[..., Partners], reference: Any) -> None:
    room = partners("nano")
    room.start("a")
    room.send("a", seeds(reference("nano"), 1)[0])
    room.stage.abort("a")
    assert not room.stage.has_work
    assert not room.stage.live()


def test_a_second_seed_before_the_feedback_is_out_of_turn(partners: Callable[..., Partners], reference: Any) -> None:
    room = partners("nano")
    room.start("a")
    first, second = seeds(reference("nano"), 2)
    room.send("a", first)
    with pytest.raises(OmniError) as raised:
        room.send("a", second)
    assert raised.value.info.code == "frame_out_of_turn"


@pytest.mark.parametrize(("width", "code"), [(31, 0), (33, 0), (32, -1), (32, 1152)])
def test_a_seed_that_does_not_fit_the_model_fails_its_voice_only(
    width: int, code: int, partners: Callable[..., Partners]
) -> None:
    room = partners("nano")
    room.start("a")
    with pytest.raises(OmniError) as raised:
        room.send("a", Seed(torch.zeros(width), code))
    assert raised.value.info.code == "bad_frame"


@pytest.mark.parametrize("streamed", [True, False])
def test_the_vocoder_learns_whether_somebody_listens(streamed: bool, partners: Callable[..., Partners]) -> None:
    room = partners("nano")
    room.start("a", streamed=streamed)
    room.step()
    assert room.heard["a"].streamed is streamed
