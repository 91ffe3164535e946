"""Reads the media of one request: turns bytes into encoder inputs, and counts the prompt rows of each item."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
from msgspec import Struct
from PIL import Image

from omni_pipeline.errors import bad_request
from stages.checkpoint.audio_lengths import audio_rows
from stages.messages import AudioWork, Media, VideoOptions, VisionItem
from stages.options import PreprocessingOptions
from stages.preprocessing.decode_audio import decode_audio, decode_sound_track
from stages.preprocessing.decode_image import decode_image
from stages.preprocessing.decode_video import decode_frames, probe_clip, sampled_frames
from stages.preprocessing.features import CHUNK_FRAMES, Features
from stages.preprocessing.layout import MediumRows
from stages.preprocessing.token_limit import TokenLimit

# Maximum number of decoded full-size frames in memory at a time; an even number, see `Features.clip`.
FRAMES_AT_ONCE = 8


class ReadMedia(Struct, tag="read"):
    """The media of a request.

    Attributes:
        pictures, clips: The items for the vision tower, both lists in prompt order.
        sounds: The items for the audio tower in prompt order, including the sounds of clips whose sound is used.
        rows: The prompt rows of each media item, all in prompt order.
    """

    pictures: list[VisionItem]
    clips: list[VisionItem]
    sounds: AudioWork
    rows: list[MediumRows]


class MediaReader:
    """Decodes and processes media within the configured limits."""

    def __init__(self, features: Features, options: PreprocessingOptions, limit: TokenLimit) -> None:
        self._features = features
        self._options = options
        self._limit = limit

    def read(
        self,
        media: Sequence[Media],
        video: VideoOptions,
        text_tokens: int,
        begin: Callable[[int], None] = lambda index: None,
    ) -> ReadMedia:
        """Read the media of a prompt, given in prompt order.

        Args:
            begin: Called with the index of each media item before it is read.
            text_tokens: Number of prompt tokens besides the media. Once the token limit is exceeded, nothing more is
                read, and a clip that would exceed it is not even decoded.

        Raises:
            OmniError: 400 with the `param` of the media item at fault.
        """
        pictures: list[VisionItem] = []
        clips: list[VisionItem] = []
        waves: list[numpy.ndarray] = []
        tokens = text_tokens
        for index, medium in enumerate(media):
            begin(index)
            sound = None
            match medium.kind:
                case "image":
                    pictures.append(self._features.picture(self._picture(medium)))
                    tokens += self._features.visual_rows(pictures[-1])
                case "audio":
                    sound = self._wave(medium)
                case "video":
                    clip, sound = self._clip(medium, video, tokens)
                    clips.append(clip)
                    tokens += self._features.visual_rows(clip)
            if sound is not None:
                waves.append(sound)
                tokens += self._features.sound_rows(sound)
            self._limit.check(tokens)
        sounds = self._features.sounds(waves)
        return ReadMedia(pictures, clips, sounds, self._rows(media, video, pictures, clips, sounds))

    def _rows(
        self,
        media: Sequence[Media],
        video: VideoOptions,
        pictures: Sequence[VisionItem],
        clips: Sequence[VisionItem],
        sounds: AudioWork,
    ) -> list[MediumRows]:
        next_picture, next_clip = iter(pictures), iter(clips)
        next_sound = (audio_rows(item.mel.shape[1], CHUNK_FRAMES) for item in sounds.items)
        seconds_per_step = self._features.frames_per_row / video.fps
        rows = []
        for medium in media:
            match medium.kind:
                case "audio":
                    rows.append(MediumRows("audio", audio=next(next_sound)))
                case "image":
                    rows.append(MediumRows("image", self._features.merged_grid(next(next_picture))))
                case "video":
                    audio = next(next_sound) if video.use_audio else 0
                    grid = self._features.merged_grid(next(next_clip))
                    rows.append(MediumRows("video", grid, audio, seconds_per_step))
        return rows

    def _picture(self, medium: Media) -> Image.Image:
        return decode_image(medium.data.buffer(), max_pixels=self._options.max_image_pixels, param=medium.param)

    def _wave(self, medium: Media) -> numpy.ndarray:
        seconds = self._options.max_audio_seconds
        return decode_audio(medium.data.buffer(), rate=self._features.rate, max_seconds=seconds, param=medium.param)

    def _clip(self, medium: Media, options: VideoOptions, tokens: int) -> tuple[VisionItem, numpy.ndarray | None]:
        """A clip's frames, and its sound if the sound is used; without a sound track, silence of the clip's length."""
        data, param, limit = medium.data.buffer(), medium.param, self._options.max_video_seconds
        max_pixels = self._options.max_video_pixels
        clip = probe_clip(
            data,
            max_seconds=limit,
            max_pixels=max_pixels,
            max_total_pixels=self._options.max_video_total_pixels,
            param=param,
        )
        indices = sampled_frames(
            clip,
            fps=options.fps,
            min_frames=self._features.min_frames,
            max_frames=options.max_frames,
            multiple=self._features.frames_per_row,
        )
        if len(indices) > self._options.max_video_frames:
            raise bad_request(
                f"{len(indices)} frames would be taken of the video, and {self._options.max_video_frames} are allowed; "
                "ask for fewer with 'video_max_frames' or 'video_fps'.",
                param=param,
                code="video_too_many_frames",
            )
        size = self._features.frame_size(options, len(indices))
        self._limit.check(tokens + self._features.clip_rows(len(indices), clip.width, clip.height, size))
        frames = decode_frames(
            data, indices, at_once=FRAMES_AT_ONCE, total=clip.frames, max_pixels=max_pixels, param=param
        )
        item = self._features.clip(frames, size)
        if not options.use_audio:
            return item, None
        if not clip.has_sound:
            return item, self._features.silence(clip.seconds)
        rate = self._features.rate
        return item, decode_sound_track(data, rate=rate, max_seconds=limit, param=param, code="invalid_video")
