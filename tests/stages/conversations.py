"""Converts test conversations to requests for our stages, and to inputs of the reference."""

import io
from collections.abc import Sequence
from typing import Any

import av
import numpy
import torch
from media_files import RATE, image_file, sound_file
from msgspec import Struct, field
from PIL import Image
from transformers import BatchFeature, Qwen3OmniMoeProcessor
from transformers.video_utils import VideoMetadata

from omni_pipeline.wire.messages import Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import ChatRequest, Media, MediaRef, Text, Turn, VideoOptions


class Film(Struct):
    """A clip: the content of its file, and the samples of its sound. The samples are None if the clip has no sound or
    if they are not known.
    """

    file: bytes
    sound: numpy.ndarray | None = None


# A picture, a sound (float32 at 16 kHz), a clip, or text.
Part = str | Image.Image | numpy.ndarray | Film


class Case(Struct):
    """A conversation: its turns as (role, parts)."""

    name: str
    turns: list[tuple[str, list[Part]]]
    video: VideoOptions = field(default_factory=VideoOptions)


def request_of(case: Case) -> ChatRequest:
    """The request that the gateway would send."""
    turns, media = [], []
    for role, parts in case.turns:
        content: list[Text | MediaRef] = []
        for part in parts:
            if isinstance(part, str):
                content.append(Text(part))
                continue
            content.append(MediaRef(len(media)))
            media.append(medium(part, f"media[{len(media)}]"))
        turns.append(Turn(role, content))
    return ChatRequest(turns, media, case.video)


def start_of(case: Case, request_id: str = "r") -> Start[ChatRequest]:
    return Start(request_id, "gateway", "preprocessing", request_of(case))


def medium(part: Part, param: str) -> Media:
    if isinstance(part, Image.Image):
        return Media("image", Tensor.of(image_file(part)), param)
    if isinstance(part, Film):
        return Media("video", Tensor.of(part.file), param)
    assert isinstance(part, numpy.ndarray)
    return Media("audio", Tensor.of(sound_file(part, RATE, "WAV", "FLOAT")), param)


def reference_inputs(case: Case, processor: Qwen3OmniMoeProcessor) -> BatchFeature:
    """The result of `Qwen3OmniMoeProcessor` for the same conversation. The processor itself selects the frames of the
    clips.
    """
    messages: list[dict[str, Any]] = []
    images, sounds, films = [], [], []
    for role, parts in case.turns:
        content = []
        for part in parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            elif isinstance(part, Image.Image):
                content.append({"type": "image"})
                images.append(part.convert("RGB"))
            elif isinstance(part, Film):
                content.append({"type": "video"})
                films.append(part)
                if case.video.use_audio:
                    sounds.append(part.sound)
            else:
                content.append({"type": "audio"})
                sounds.append(part)
        messages.append({"role": role, "content": content})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    options: dict[str, Any] = {}
    if films:
        clips, metadata = zip(*(all_frames(film.file) for film in films), strict=True)
        options = {
            "videos": list(clips),
            "video_metadata": list(metadata),
            "do_sample_frames": True,
            "fps": case.video.fps,
            "max_frames": case.video.max_frames,
            "cap_pixels_per_frame": False,
            "use_audio_in_video": case.video.use_audio,
        }
    return processor(
        text=text, images=images or None, audio=sounds or None, return_tensors="pt", padding=True, **options
    )


def reference_positions(case: Case, inputs: BatchFeature, thinker: Any) -> tuple[torch.Tensor, float]:
    mask = inputs.get("feature_attention_mask")
    positions, deltas = thinker.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        case.video.use_audio,
        None if mask is None else mask.sum(-1),
        inputs.get("video_second_per_grid"),
    )
    return positions[:, 0], float(deltas[0, 0])


def all_frames(file: bytes) -> tuple[torch.Tensor, VideoMetadata]:
    """Every frame of a clip, uint8 [frames, 3, height, width], and the metadata that the reference needs."""
    with av.open(io.BytesIO(file)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        rate = float(stream.average_rate)
    metadata = VideoMetadata(total_num_frames=len(frames), fps=rate, duration=len(frames) / rate)
    return torch.from_numpy(numpy.stack(frames)).permute(0, 3, 1, 2), metadata


def names(cases: Sequence[Case]) -> list[str]:
    return [case.name for case in cases]
