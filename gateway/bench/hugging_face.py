"""Runs in the process of `--baseline`: answers requests with Hugging Face's `generate`, one at a time, and times each
answer.

    python -m gateway.bench.hugging_face CHECKPOINT

The program reads one `BaselineQuestion` as JSON from each input line, and writes one `BaselineAnswer` as a line of
JSON. No other module of the bench imports torch.
"""

from __future__ import annotations

import os

# This variable must be set before torch is imported. The server's workers set this variable too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
import sys
import time
from typing import Any

import av
import msgspec
import numpy
import soundfile
import soxr
import torch
from PIL import Image
from transformers import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
from transformers.video_utils import VideoMetadata

from gateway.bench.baseline import READY, BaselineAnswer, BaselineQuestion
from gateway.bench.scenarios import Scenario

_SAMPLE_RATE = 16_000  # Sampling rate of the audio tower's input, in Hz.
_NO_TOKEN = -1


class Reference:
    """A checkpoint in Hugging Face's classes. On a GPU, its weights have the stored data type. Without a GPU, its
    weights are float32 on the CPU.
    """

    def __init__(self, checkpoint: str) -> None:
        cuda = torch.cuda.is_available()
        torch.set_num_threads(1)
        self._device = "cuda" if cuda else "cpu"
        self._processor = Qwen3OmniMoeProcessor.from_pretrained(checkpoint)
        self._model: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            checkpoint, dtype="auto" if cuda else torch.float32, device_map=self._device if cuda else None
        ).eval()
        if self._model.has_talker:
            # The talker needs `audio_config` for a prompt with both sound and pictures, but the talker's configuration
            # does not contain `audio_config`.
            self._model.talker.config.audio_config = self._model.config.thinker_config.audio_config

    @torch.no_grad()
    def answer(self, question: BaselineQuestion) -> BaselineAnswer:
        """Answer the question and time it, from the encoded media to the last sample."""
        began = time.perf_counter()
        inputs = self._inputs(question).to(self._device)
        result = self._model.generate(
            **inputs, return_audio=question.scenario.speech, **self._lengths(question.scenario)
        )
        ids, waveform = result if question.scenario.speech else (result, None)
        answer = BaselineAnswer(
            seconds=0.0,
            tokens=ids.shape[1] - inputs["input_ids"].shape[1],
            audio_samples=0 if waveform is None else waveform.cpu().shape[-1],
        )
        answer.seconds = time.perf_counter() - began
        return answer

    def _lengths(self, scenario: Scenario) -> dict[str, Any]:
        """Arguments of `generate` for an answer of exactly the requested length. If `natural` is set, the answer may be
        shorter.

        A natural answer has at least two tokens and one frame, because the reference fails on shorter answers.
        """
        lengths: dict[str, Any] = {"thinker_max_new_tokens": scenario.tokens, "thinker_eos_token_id": _NO_TOKEN}
        if scenario.natural:
            lengths["thinker_eos_token_id"] = self._model.config.im_end_token_id
            lengths["thinker_min_new_tokens"] = min(2, scenario.tokens)
        if scenario.speech:
            lengths["talker_min_new_tokens"] = 2
            if scenario.audio_frames is not None:
                lengths["talker_max_new_tokens"] = scenario.audio_frames + 1  # the last token does not become a frame
                lengths["talker_min_new_tokens"] = 2 if scenario.natural else scenario.audio_frames + 1
            if scenario.voice not in (None, "default"):
                lengths["speaker"] = scenario.voice
        return lengths

    def _inputs(self, question: BaselineQuestion) -> Any:
        by_kind: dict[str, list[bytes]] = {"image": [], "video": [], "audio": []}
        for medium in question.prompt.media:
            by_kind[medium.kind].append(medium.data)
        parts: list[dict[str, str]] = [{"type": medium.kind} for medium in question.prompt.media]
        conversation = [{"role": "user", "content": [*parts, {"type": "text", "text": question.prompt.text}]}]
        clips = [_clip(data) for data in by_kind["video"]]
        video = {}
        if clips:
            video = {
                "videos": [frames for frames, _ in clips],
                "video_metadata": [metadata for _, metadata in clips],
                "do_sample_frames": True,
                "fps": 2.0,
                "cap_pixels_per_frame": False,  # as in the server, the pixels of a frame are not limited
            }
        return self._processor(
            text=self._processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False),
            images=[_picture(data) for data in by_kind["image"]] or None,
            audio=[_sound(data) for data in by_kind["audio"]] or None,
            return_tensors="pt",
            padding=True,
            **video,
        )


def _picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _sound(data: bytes) -> numpy.ndarray:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, _SAMPLE_RATE)


def _clip(data: bytes) -> tuple[numpy.ndarray, VideoMetadata]:
    with av.open(io.BytesIO(data)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
        frames = numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames, VideoMetadata(total_num_frames=len(frames), fps=rate, duration=len(frames) / rate)


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(
        sys.stderr.fileno(), sys.stdout.fileno()
    )  # libraries may print to stdout, which must not mix with the answers
    reference = Reference(sys.argv[1])
    answers.write(READY + b"\n")
    for line in sys.stdin.buffer:
        question = msgspec.json.decode(line, type=BaselineQuestion)
        answers.write(msgspec.json.encode(reference.answer(question)) + b"\n")


if __name__ == "__main__":
    main()
