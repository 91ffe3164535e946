"""Runs the reference's image, video and audio processors. Each request is one batch, as in the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy
import torch
from msgspec import Struct
from PIL import Image
from transformers import Qwen3OmniMoeProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessorKwargs

from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.audio_lengths import audio_rows
from stages.messages import AudioItem, AudioWork, Modality, PictureSize, VideoOptions, VisionItem
from stages.preprocessing.hashing import audio_key, vision_key

# The arguments that the reference's processor passes to its parts by default.
DEFAULTS = Qwen3OmniMoeProcessorKwargs._defaults

# Maximum number of mel frames in one of the chunks into which the audio tower cuts a sound.
CHUNK_FRAMES = 2 * DEFAULTS["audio_kwargs"]["n_window"]


class FrameSize(Struct, frozen=True):
    """Limits on the number of pixels of one resized frame or picture."""

    least: int
    most: int

    def within(self, limit: int) -> FrameSize:
        """A copy of these limits, in which each limit that is larger than `limit` is lowered to `limit`."""
        return FrameSize(min(self.least, limit), min(self.most, limit))


class Features:
    """The processors of one checkpoint.

    Args:
        max_resized_pixels: See `PreprocessingOptions`.
    """

    def __init__(self, processor: Qwen3OmniMoeProcessor, max_resized_pixels: int | None = None) -> None:
        self._images = processor.image_processor
        self._videos = processor.video_processor
        self._sounds = processor.feature_extractor
        self._sound_options = {key: value for key, value in DEFAULTS["audio_kwargs"].items() if key != "n_window"}
        self.rate: int = self._sounds.sampling_rate
        self.mel_rate: float = self.rate / self._sounds.hop_length
        self.frames_per_row: int = self._videos.temporal_patch_size
        self.min_frames: int = self._videos.min_frames
        self.merge: int = self._videos.merge_size
        self._factor: int = self._images.patch_size * self.merge  # width in pixels of the square that becomes a row
        pictures, frames = _bounds(self._images.size), _bounds(DEFAULTS["videos_kwargs"]["size"])
        self.max_resized_pixels: int = max_resized_pixels or max(pictures.most, frames.most)
        # the limits that apply if a request sets no limits
        self._picture_size, self._frame_size = (size.within(self.max_resized_pixels) for size in (pictures, frames))

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
        """Limits on the size of a picture. A limit that the request sets takes precedence over the processor's
        limits.
        """
        least, most = self._picture_size.least, self._picture_size.most
        if asked is None:
            return self._picture_size
        most = most if asked.max_pixels is None else asked.max_pixels
        least = min(least, most) if asked.min_pixels is None else asked.min_pixels
        return FrameSize(least, max(least, most))

    def frame_size(self, options: VideoOptions, frames: int) -> FrameSize:
        """Bounds on the size of each frame of a clip. `frames` is the number of frames that are sampled from the clip.

        `total_pixels` is divided among the frames in the same way as in other tools for Qwen models. The frames are
        processed in pairs (grid steps), and a pair counts as one frame. The upper limit is never below the lower limit.
        """
        least = self._frame_size.least if options.min_pixels is None else options.min_pixels
        most = self._frame_size.most if options.max_pixels is None else options.max_pixels
        if options.min_pixels is None:
            least = min(least, most)
        if options.total_pixels is not None:
            lowest = min(int(least * 1.05), self.max_resized_pixels)
            most = max(min(most, options.total_pixels * self.frames_per_row // frames), lowest)
        return FrameSize(least, most)

    def merged_grid(self, item: VisionItem) -> tuple[int, int, int]:
        """The grid of an item's embedding rows."""
        time, height, width = item.grid
        return time, height // self.merge, width // self.merge

    def visual_rows(self, item: VisionItem) -> int:
        """Number of embedding rows that `item` makes."""
        return math.prod(self.merged_grid(item))

    def clip_rows(self, frames: int, width: int, height: int, size: FrameSize) -> int:
        """Number of embedding rows that a clip will make. `frames` is the number of frames that are sampled from the
        clip.
        """
        return -(-frames // self.frames_per_row) * self._rows(width, height, size)

    def picture_rows(self, width: int, height: int, asked: PictureSize | None = None) -> int:
        """Number of embedding rows that a picture of this size will make."""
        return self._rows(width, height, self.picture_size(asked))

    def pixels_beyond_limit(self, kind: Modality, width: int, height: int, size: FrameSize) -> int:
        """Checks the size that a picture or a frame would have after resizing. Returns 0 if the size is allowed.
        Otherwise, returns the number of pixels, which is larger than `max_resized_pixels`.

        If a request sets no limits, the default limits apply. The size that the default limits give is always allowed,
        even if it exceeds `max_resized_pixels`. This can happen for a very narrow picture.
        """
        usual = self._picture_size if kind == "image" else self._frame_size
        pixels, usual_pixels = (math.prod(self._resized(width, height, bounds)) for bounds in (size, usual))
        return pixels if pixels > max(self.max_resized_pixels, usual_pixels) else 0

    def _rows(self, width: int, height: int, size: FrameSize) -> int:
        return math.prod(self._resized(width, height, size)) // self._factor**2

    def _resized(self, width: int, height: int, size: FrameSize) -> tuple[int, int]:
        """Height and width of a picture or frame after it is resized."""
        return smart_resize(height, width, factor=self._factor, min_pixels=size.least, max_pixels=size.most)

    def clip(self, chunks: Iterable[numpy.ndarray], size: FrameSize) -> VisionItem:
        """The `VisionItem` of a clip.

        Args:
            chunks: The frames in pieces of uint8 [frames, height, width, 3]. Every piece except the last has an even
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
                cap_pixels_per_frame=False,  # the default does the same but prints a warning
                return_tensors="pt",
            )
            patches.append(output["pixel_values_videos"])
            own_steps, height, width = output["video_grid_thw"][0].tolist()
            steps += own_steps
        return _vision_item(torch.cat(patches), (steps, height, width))

    def sound_rows(self, samples: int) -> int:
        """Number of embedding rows of a sound that is the only sound of its request. `samples` is the length of the
        sound in samples at `rate`. If the request also has longer sounds, the sound may get one more row.
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
        """The sound, made long enough for the reference. A sound of at most half an analysis window (the window is 25
        ms) is extended by silence to a whole window.

        The reference fails on such a short sound, because it cannot mirror the edges of the sound.
        """
        window: int = self._sounds.n_fft
        return wave if len(wave) > window // 2 else numpy.pad(wave, (0, window - len(wave)))


def _bounds(size: Mapping[str, int]) -> FrameSize:
    """The bounds in `size`, which is a setting of one of the reference's processors."""
    return FrameSize(size["shortest_edge"], size["longest_edge"])


def _vision_item(patches: torch.Tensor, grid: tuple[int, int, int]) -> VisionItem:
    return VisionItem(vision_key(patches, grid), grid, Tensor.of(patches))
