"""Runs each stage on the reference's recorded inputs. There are two implementations of the stages: the reference's own
modules in bfloat16, and the stages under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Chunk, End, Start
from omni_pipeline.wire.tensor import Tensor
from stages.code2wav.stage import Code2Wav
from stages.code_predictor import CodePredictor
from stages.encoders.audio_encoder import AudioEncoder
from stages.encoders.image_encoder import ImageEncoder
from stages.messages import (
    AudioDelta,
    AudioWork,
    Frame,
    FrameSeed,
    PredictorStart,
    Sampling,
    SpeechFinished,
    VideoOptions,
    VisionItem,
    VisionWork,
    VocoderStart,
)
from stages.options import Code2WavOptions, CodePredictorOptions, EncoderOptions
from stages.preprocessing.features import Features
from stages.sglang_engine.engine import Generation, Token
from stages.sglang_engine.fed_engine import FedEngine
from stages.sglang_engine.prompt_rows import PromptRows
from stages.talker_ar.stage import ARCHITECTURE, talker_view
from tests.equality.conversations import Kit
from tests.reference import clip, picture, sound
from tests.rounding.deviations import Codes, Distances, Figures, relative
from tests.rounding.reference import CONTROL_CODES, RoundedReference, Speech

BEST = 20
"""Number of the likeliest ids that are compared for each token."""
CACHE_TOKENS = 16384
_VOICES = 8


@dataclass(frozen=True)
class Rows:
    """Embedding rows [rows, hidden] of one media item, and the item's rows for deeper layers [layers, rows, hidden]."""

    embeds: torch.Tensor
    deepstack: torch.Tensor | None = None


@dataclass(frozen=True)
class Talk:
    """The talker's results for an utterance: states [f + 1, hidden], the picked ids of codebook 0, and the
    log-probabilities of the likeliest ids.
    """

    states: torch.Tensor
    picks: list[int]
    best: list[dict[int, float]]


class Computer(Protocol):
    """The interface of an implementation of the stages."""

    def see(self, item: VisionItem) -> Rows: ...

    def hear(self, work: AudioWork) -> Rows: ...

    def talk(self, speeches: Sequence[Speech]) -> list[Talk]: ...

    def predict(self, state: torch.Tensor, code: int) -> list[int]: ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor: ...


class ReferenceStages:
    """Computes with the reference's own modules."""

    def __init__(self, reference: RoundedReference) -> None:
        self.reference = reference

    @torch.no_grad()
    def see(self, item: VisionItem) -> Rows:
        patches = item.patches.torch().to(self.reference.dtype)
        output = self.reference.model.thinker.get_image_features(patches, torch.tensor([item.grid]))
        layers = [torch.cat(list(layer)).float() for layer in output.deepstack_features]
        return Rows(torch.cat(list(output.pooler_output)).float(), torch.stack(layers) if layers else None)

    @torch.no_grad()
    def hear(self, work: AudioWork) -> Rows:
        mels = [item.mel.torch() for item in work.items]
        padded = torch.nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
        mask = torch.arange(padded.shape[2]) < torch.tensor([mel.shape[1] for mel in mels])[:, None]
        output = self.reference.model.thinker.get_audio_features(padded.to(self.reference.dtype), mask.long())
        return Rows(output.last_hidden_state.float())

    def talk(self, speeches: Sequence[Speech]) -> list[Talk]:
        talks = []
        for speech in speeches:
            states, logits = self.reference.talk(speech)
            best = logits.log_softmax(-1).topk(BEST)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            picks = logits.masked_fill(self._banned(logits), -torch.inf).argmax(-1).tolist()
            talks.append(Talk(states, picks, [dict(zip(*pair, strict=True)) for pair in pairs]))
        return talks

    def predict(self, state: torch.Tensor, code: int) -> list[int]:
        return self.reference.predict(state, code)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.reference.decode(codes)

    def _banned(self, logits: torch.Tensor) -> torch.Tensor:
        return banned(logits.shape[-1], self.reference.model.config.talker_config.codec_eos_token_id)


class StagesUnderTest:
    """Computes with this project's stages, in this process."""

    def __init__(self, checkpoint: Path, device: str, dtype: str, scratch: Path, end: int) -> None:
        self._checkpoint, self._device, self._dtype, self._scratch, self._end = checkpoint, device, dtype, scratch, end
        encoder = EncoderOptions(cache_bytes=0, dtype=dtype)
        self._images = ImageEncoder(self._context("image_encoder", encoder))
        self._sounds = AudioEncoder(self._context("audio_encoder", encoder))
        self._predictor = CodePredictor(
            self._context("code_predictor", CodePredictorOptions(dtype=dtype, record=device != "cpu"))
        )
        self._vocoder = Code2Wav(self._context("code2wav", Code2WavOptions(dtype=dtype)))

    def _context(self, name: str, options: Any) -> StageContext:
        return StageContext(name, str(self._checkpoint), self._device, options, frozenset({name}), scratch="")

    def see(self, item: VisionItem) -> Rows:
        self._images.receive(Start("a", "preprocessing", "image_encoder", VisionWork([item])))
        [message] = self._images.step()
        [deepstack] = message.body.deepstack or [None]
        return Rows(message.body.embeds[0].torch(), None if deepstack is None else deepstack.torch())

    def hear(self, work: AudioWork) -> Rows:
        self._sounds.receive(Start("a", "preprocessing", "audio_encoder", work))
        [message] = self._sounds.step()
        return Rows(torch.cat([rows.torch() for rows in message.body.embeds]))

    def talk(self, speeches: Sequence[Speech]) -> list[Talk]:
        """Run all utterances. A batch has as many utterances as fit. When an utterance ends, a waiting utterance joins
        the batch.
        """
        with self._talker() as engine:
            suppressed = banned(engine.vocabulary, self._end).to(self._device)
            talks = [Talk(torch.empty(0), [], []) for _ in speeches]
            states: list[list[torch.Tensor]] = [[] for _ in speeches]
            for index, speech in enumerate(speeches):
                engine.add(_generation(str(index), speech, suppressed))
            while engine.has_work:
                for event in engine.step():
                    if not isinstance(event, Token):
                        continue
                    index = int(event.request_id)
                    speech, talk, own = speeches[index], talks[index], states[index]
                    assert event.state is not None
                    own.append(event.state.float().cpu())
                    talk.picks.append(event.id)
                    talk.best.append({one.id: one.logprob for one in event.alternatives})
                    if len(own) <= len(speech.codes):
                        row = speech.rows[speech.prompt + len(own) - 1]
                        row = row.to(self._device, getattr(torch, self._dtype))
                        engine.feed(event.request_id, row, torch.zeros_like(row))
            return [Talk(torch.stack(own), talk.picks, talk.best) for own, talk in zip(states, talks, strict=True)]

    @contextmanager
    def _talker(self) -> Iterator[FedEngine]:
        engine = FedEngine(
            model_path=talker_view(str(self._checkpoint), str(self._scratch)),
            architecture=ARCHITECTURE,
            device=self._device,
            dtype=self._dtype,
            eos_ids=[self._end],
            max_total_tokens=CACHE_TOKENS,
            max_running_requests=_VOICES,
            options={"disable_radix_cache": True},
        )
        try:
            yield engine
        finally:
            engine.close()

    def predict(self, state: torch.Tensor, code: int) -> list[int]:
        stage = self._predictor
        stage.receive(Start("a", "talker_ar", "code_predictor", PredictorStart(Sampling())))
        stage.receive(Chunk("a", "talker_ar", "code_predictor", FrameSeed(Tensor.of(state), code)))
        frames = [message.body for message in stage.step() if isinstance(message.body, Frame)]
        stage.abort("a")
        [frame] = frames
        return frame.codes.torch().tolist()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        stage = self._vocoder
        stage.receive(Start("a", "code_predictor", "code2wav", VocoderStart()))
        for frame in codes:
            stage.receive(Chunk("a", "code_predictor", "code2wav", Frame(Tensor.of(frame))))
        stage.receive(End("a", "code_predictor", "code2wav", SpeechFinished("stop")))
        parts: list[torch.Tensor] = []
        while stage.has_work:
            bodies = [message.body for message in stage.step()]
            parts += [body.samples.torch() for body in bodies if isinstance(body, AudioDelta)]
        return torch.cat(parts)


def banned(ids: int, end: int) -> torch.Tensor:
    """bool [ids], the ids that the talker never picks."""
    mask = torch.zeros(ids, dtype=torch.bool)
    mask[-CONTROL_CODES:] = True
    mask[end] = False
    return mask


def _generation(name: str, speech: Speech, suppressed: torch.Tensor) -> Generation:
    count = speech.prompt
    ids = torch.zeros(count, dtype=torch.int64)
    rows = PromptRows(
        ids=ids,
        positions=speech.positions[:, :count],
        delta=float(speech.positions[0, count]) - count,
        media_rows=torch.arange(count),
        media_embeds=speech.rows[:count].clone(),
    )
    sampling = Sampling(max_tokens=len(speech.codes) + 1, ignore_eos=True)
    return Generation(name, ids, rows, sampling, BEST, penalize_prompt=False, suppressed=suppressed)


@dataclass(frozen=True)
class Media:
    """Inputs of the two encoders: pictures and clips, and sounds."""

    seen: list[tuple[str, VisionItem]]
    heard: list[AudioWork]


def media(kit: Kit, features: Features) -> Media:
    """Pictures, clips and sounds of several sizes."""
    pictures = [kit.file("image", "cars.jpg")]
    pictures += [kit.image(*size) for size in ((64, 48), (17, 333, 1), (600, 40, 2), (301, 199, 4))]
    seen = [("pictures", features.picture(picture(part["image"]))) for part in pictures]
    for part in (kit.file("video", "draw.mp4"), kit.video(8, 4), kit.video(6, 2, 6, width=48, height=128)):
        frames = clip(part["video"])[0]
        frames = frames[:: max(1, len(frames) // 8)][:8]
        seen.append(("clips", features.clip([frames], features.frame_size(VideoOptions(), len(frames)))))
    sounds = [kit.file("audio", f"query_to_{name}.wav") for name in ("cars", "draw")]
    sounds += [kit.audio(seconds, seed) for seconds, seed in ((0.3, 0), (2.505, 4), (12.0, 6))]
    return Media(seen, [features.sounds([sound(part["audio"])]) for part in sounds])


def compare_encoders(ours: Computer, truth: Computer, given: Media) -> Figures:
    """Compare the results of both encoders row by row with the reference's results."""
    vision, deepstack, audio = Distances(), Distances(), Distances()
    for group, item in given.seen:
        own, true = ours.see(item), truth.see(item)
        vision.add(group, relative(own.embeds, true.embeds))
        if true.deepstack is not None:
            assert own.deepstack is not None
            for number, layers in enumerate(zip(own.deepstack, true.deepstack, strict=True)):
                deepstack.add(f"layer {number}", relative(*layers))
    for work in given.heard:
        audio.add("sounds", relative(ours.hear(work).embeds, truth.hear(work).embeds))
    figures = {**vision.figures("vision rows"), **audio.figures("audio rows")}
    return {**figures, **(deepstack.figures("deepstack rows") if deepstack.values else {})}


def compare_talker(ours: Computer, speeches: dict[str, Speech], end: int) -> Figures:
    """Compare the talker's states and picks with the reference's, step by step. The keys of `speeches` are names of
    conversations.
    """
    states, logprobs = Distances(), Distances()
    steps = others = 0
    for (name, speech), talk in zip(speeches.items(), ours.talk(list(speeches.values())), strict=True):
        group = "of text" if name.startswith("text") else "of media"
        states.add(group, relative(talk.states, speech.states))
        true = speech.logits.log_softmax(-1)
        for index, best in enumerate(talk.best):
            off = torch.tensor(list(best.values())) - true[index, torch.tensor(list(best))]
            logprobs.add(group, [float(off.square().mean().sqrt())])
        right = speech.logits.masked_fill(banned(speech.logits.shape[-1], end), -torch.inf).argmax(-1).tolist()
        steps += len(right)
        others += sum(own != true for own, true in zip(talk.picks, right, strict=True))
    figures = {**states.figures("talker states"), **logprobs.figures("talker log-probabilities")}
    return {**figures, "talker codes that differ": others / steps}


def compare_predictor(ours: Computer, speeches: dict[str, Speech]) -> Figures:
    """Compare the predictor's frames with the reference's frames. Each frame is computed from the reference talker's
    state and code.
    """
    codes = Codes()
    for speech in speeches.values():
        for state, own in zip(speech.states, speech.codes, strict=False):
            codes.add(ours.predict(state, int(own[0])), own.tolist())
    return {f"predictor {name}": value for name, value in codes.figures().items()}


def compare_vocoder(ours: Computer, speeches: dict[str, Speech]) -> Figures:
    """Let the vocoder decode the reference's codes, and compare the sound with the reference's sound by the energy of
    the error.
    """
    sound = Distances()
    for speech in speeches.values():
        sound.add("voices", relative(ours.decode(speech.codes)[None], speech.waveform[None]))
    return sound.figures("vocoder samples")
