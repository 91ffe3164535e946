"""Runs the reference's image, video and audio processors, batched exactly as the reference batches one request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy
import torch
from msgspec import Struct
from PIL import Image
from transformers import Qwen3OmniMoeProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessorKwargs

from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.audio_lengths import audio_rows
from stages.messages import AudioItem, AudioWork, PictureSize, VideoOptions, VisionItem
from stages.preprocessing.hashing import audio_key, vision_key

# The arguments that the reference's processor passes to its parts by default.
DEFAULTS = Qwen3OmniMoeProcessorKwargs._defaults

# Maximum number of mel frames in one of the chunks into which the audio tower cuts a sound.
CHUNK_FRAMES = 2 * DEFAULTS["audio_kwargs"]["n_window"]


class FrameSize(Struct, frozen=True):
    """Bounds on the pixels of one resized frame or picture."""

    least: int
    most: int


class Features:
    """The processors of one checkpoint."""

    def __init__(self, processor: Qwen3OmniMoeProcessor) -> None:
        self._images = processor.image_processor
        self._videos = processor.video_processor
        self._sounds = processor.feature_extractor
        self._sound_options = {key: value for key, value in DEFAULTS["audio_kwargs"].items() if key != "n_window"}
        self.rate: int = self._sounds.sampling_rate
        self.mel_rate: float = self.rate / self._sounds.hop_length
        self.frames_per_row: int = self._videos.temporal_patch_size
        self.min_frames: int = self._videos.min_frames
        self.merge: int = self._videos.merge_size

    def picture(self, image: Image.Image, asked: PictureSize | None = None) -> VisionItem:
        """The `VisionItem` of an RGB image. Pictures do not affect each other, so each picture can be processed as soon
        as it is decoded.
        """
        size = self.picture_size(asked)
        bounds = {"shortest_edge": size.least, "longest_edge": size.most}
        output = self._images(images=[image], size=bounds, return_tensors="pt")
        time, height, width = output["image_grid_thw"][0].tolist()
        return _vision_item(output["pixel_values"], (time, height, width))

    def picture_size(self, asked: PictureSize | None) -> FrameSize:
        """Bounds on the size of a picture. The upper one wins over the processor's lower one."""
        least, most = self._images.size["shortest_edge"], self._images.size["longest_edge"]
        if asked is None:
            return FrameSize(least, most)
        most = most if asked.max_pixels is None else asked.max_pixels
        least = min(least, most) if asked.min_pixels is None else asked.min_pixels
        return FrameSize(least, max(least, most))

    def frame_size(self, options: VideoOptions, frames: int) -> FrameSize:
        """Bounds on the size of a frame, in a clip of `frames` sampled frames.

        `total_pixels` is divided among the frames in the same way as in other tools for Qwen models. The two frames of
        a grid step count as one frame, and the upper bound never falls below the lower bound.
        """
        default = DEFAULTS["videos_kwargs"]["size"]
        least = default["shortest_edge"] if options.min_pixels is None else options.min_pixels
        most = default["longest_edge"] if options.max_pixels is None else options.max_pixels
        if options.min_pixels is None:
            least = min(least, most)
        if options.total_pixels is not None:
            most = max(min(most, options.total_pixels * self.frames_per_row // frames), int(least * 1.05))
        return FrameSize(least, most)

    def merged_grid(self, item: VisionItem) -> tuple[int, int, int]:
        """The grid of an item's embedding rows."""
        time, height, width = item.grid
        return time, height // self.merge, width // self.merge

    def visual_rows(self, item: VisionItem) -> int:
        """Number of embedding rows that `item` makes."""
        return math.prod(self.merged_grid(item))

    def clip_rows(self, frames: int, width: int, height: int, size: FrameSize) -> int:
        """Number of embedding rows that a clip of `frames` sampled frames will make."""
        factor = self._videos.patch_size * self.merge
        resized = smart_resize(height, width, factor=factor, min_pixels=size.least, max_pixels=size.most)
        return -(-frames // self.frames_per_row) * (resized[0] // factor) * (resized[1] // factor)

    def picture_rows(self, width: int, height: int, asked: PictureSize | None = None) -> int:
        """Number of embedding rows that a picture of this size will make."""
        size = self.picture_size(asked)
        factor = self._images.patch_size * self.merge
        resized = smart_resize(height, width, factor=factor, min_pixels=size.least, max_pixels=size.most)
        return (resized[0] // factor) * (resized[1] // factor)

    def clip(self, chunks: Iterable[numpy.ndarray], size: FrameSize) -> VisionItem:
        """The `VisionItem` of a clip.

        Args:
            chunks: The frames in pieces of uint8 [frames, height, width, 3]; every piece but the last holds an even
                number of frames. A grid step depends only on its own two frames, so the pieces can be processed one by
                one.
        """
        bounds = {"shortest_edge": size.least, "longest_edge": size.most}
        patches = []
        steps = height = width = 0
        for chunk in chunks:
            output = self._videos(
                videos=[torch.from_numpy(chunk).permute(0, 3, 1, 2)],
                size=bounds,
                cap_pixels_per_frame=False,  # the default does the same, with a warning
                return_tensors="pt",
            )
            patches.append(output["pixel_values_videos"])
            own_steps, height, width = output["video_grid_thw"][0].tolist()
            steps += own_steps
        return _vision_item(torch.cat(patches), (steps, height, width))

    def sound_rows(self, samples: int) -> int:
        """Number of embedding rows of a sound (`samples` at `rate`). In a request with longer sounds, the sound may get
        one row more.
        """
        return audio_rows(samples // self._sounds.hop_length, CHUNK_FRAMES)

    def sounds(self, waves: Sequence[numpy.ndarray]) -> AudioWork:
        """The sounds of a request (float32 [samples] at `rate`), in order.

        The features of all sounds are extracted in one call, because padding affects the ends of the shorter sounds.
        """
        if not waves:
            return AudioWork([], pad_frames=CHUNK_FRAMES)
        output = self._sounds(
            [self._long_enough(wave) for wave in waves],
            return_tensors="pt",
            **self._sound_options,
        )
        lengths = output["attention_mask"].sum(-1).tolist()
        pad_frames = min(max(lengths), CHUNK_FRAMES)
        mels = [mel[:, :length].contiguous() for mel, length in zip(output["input_features"], lengths, strict=True)]
        return AudioWork([AudioItem(audio_key(mel, pad_frames), Tensor.of(mel)) for mel in mels], pad_frames)

    def silence(self, seconds: float) -> numpy.ndarray:
        """Silence: float32 zeros at `rate`."""
        return numpy.zeros(max(1, round(seconds * self.rate)), numpy.float32)

    def _long_enough(self, wave: numpy.ndarray) -> numpy.ndarray:
        """The sound, made long enough for the reference: a sound of at most half an analysis window (25 ms) is filled
        up with silence to a complete window.

        The reference fails on shorter sounds, because it cannot mirror their edges.
        """
        window: int = self._sounds.n_fft
        return wave if len(wave) > window // 2 else numpy.pad(wave, (0, window - len(wave)))


def _vision_item(patches: torch.Tensor, grid: tuple[int, int, int]) -> VisionItem:
    return VisionItem(vision_key(patches, grid), grid, Tensor.of(patches))
