"""Reads the media of one request: turns bytes into encoder inputs, and counts the prompt rows of each item.

`MediaReader.survey` finds the sizes from headers, and `MediaReader.read` decodes. For a recording to transcribe,
`MediaReader.measure` finds the size, and `MediaReader.cut` decodes. All four methods parse untrusted bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy
from msgspec import Struct

from omni_pipeline.errors import bad_request
from stages.checkpoint.audio_lengths import audio_rows
from stages.messages import AudioWork, Media, VideoOptions, VisionItem
from stages.options import PreprocessingOptions
from stages.preprocessing.budget import BYTES_PER_SECOND, allow_time_for
from stages.preprocessing.cpu_time import limited_cpu_time
from stages.preprocessing.decode_audio import decode_audio, decode_sound_track
from stages.preprocessing.decode_image import decode_image
from stages.preprocessing.decode_picture_clip import decode_picture_clip, probe_picture_clip
from stages.preprocessing.decode_video import DecodedClip, decode_frames, probe_clip, sampled_frames
from stages.preprocessing.features import CHUNK_FRAMES, Features, FrameSize
from stages.preprocessing.headers import picture_size, sound_length
from stages.preprocessing.layout import MediumRows
from stages.preprocessing.sound_cuts import piece_ends
from stages.preprocessing.survey import MediumSurvey
from stages.preprocessing.token_limit import TokenLimit

# Maximum number of decoded full-size frames in memory at a time; an even number, see `Features.clip`.
FRAMES_AT_ONCE = 8

# Number of pixels of scaled frames that become one prompt row: 2×2 patches of 16×16 pixels, in each of two frames.
PIXELS_OF_ROW = 2048


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


class _ClipPlan(Struct, frozen=True):
    """The frames that are taken from a clip, and the limits on their size."""

    clip: DecodedClip
    indices: list[int]
    size: FrameSize


class MediaReader:
    """Decodes and processes media within the configured limits.

    Use this class only in a separate process, because a media item that uses too much CPU time ends the process.
    """

    def __init__(self, features: Features, options: PreprocessingOptions, limit: TokenLimit) -> None:
        self._features = features
        self._options = options
        self._limit = limit

    def survey(
        self,
        media: Sequence[Media],
        video: VideoOptions,
        text_tokens: int,
        begin: Callable[[int], None] = lambda index: None,
    ) -> list[MediumSurvey]:
        """Find the sizes of a prompt's media from their headers. Nothing is decoded. The arguments are as for `read`.

        Raises:
            OmniError: 400 in two cases: a clip cannot be used, or the lowest estimate of the number of rows is already
                too large.
        """
        surveys: list[MediumSurvey] = []
        tokens = text_tokens
        for index, medium in enumerate(media):
            begin(index)
            with self._limited_cpu_time(medium):
                match medium.kind:
                    case "image":
                        surveys.append(self._survey_picture(medium))
                    case "audio":
                        surveys.append(self._survey_sound(medium))
                    case "video":
                        surveys.append(self._survey_clip(medium, medium.video or video, tokens))
            tokens += surveys[-1].least_rows
            self._limit.check(tokens)
        return surveys

    def read(
        self,
        media: Sequence[Media],
        video: VideoOptions,
        text_tokens: int,
        begin: Callable[[int], None] = lambda index: None,
        surveys: Sequence[MediumSurvey] = (),
    ) -> ReadMedia:
        """Read the media of a prompt.

        Args:
            media: The media items in the order in which they occur in the prompt.
            video: Options for clips without their own options.
            begin: Called with the index of each media item before the item is read.
            text_tokens: Number of prompt tokens besides the media. As soon as the token limit is exceeded, no further
                item is read. A clip that would exceed the token limit is not decoded. If the request enlarges a picture
                so much that the picture would be too large, the picture is refused before it is enlarged.
            surveys: The result of `survey` for these media. If this result is given, clips need not be examined again.

        Raises:
            OmniError: 400 with the `param` of the media item that caused the error.
        """
        pictures: list[VisionItem] = []
        clips: list[VisionItem] = []
        waves: list[numpy.ndarray] = []
        tokens = text_tokens
        for index, medium in enumerate(media):
            begin(index)
            sound = None
            with self._limited_cpu_time(medium):
                match medium.kind:
                    case "image":
                        pictures.append(self._picture(medium, tokens))
                        tokens += self._features.visual_rows(pictures[-1])
                    case "audio":
                        sound = self._wave(medium)
                    case "video":
                        known = surveys[index].clip if surveys else None
                        clip, sound = self._clip(medium, medium.video or video, tokens, known)
                        clips.append(clip)
                        tokens += self._features.visual_rows(clip)
            if sound is not None:
                waves.append(sound)
                tokens += self._features.sound_rows(len(sound))
            self._limit.check(tokens)
        sounds = self._features.sounds(waves)
        return ReadMedia(pictures, clips, sounds, self._rows(media, video, pictures, clips, sounds))

    def measure(self, sound: Media) -> MediumSurvey:
        """Find the length of a recording from its headers. A recording that is too long for one prompt is not refused,
        because it will be cut.
        """
        with self._limited_cpu_time(sound):
            return self._survey_sound(sound)

    def cut(self, sound: Media, piece_seconds: float) -> tuple[numpy.ndarray, list[int]]:
        """Decode a recording. Returns the sound, float32 [samples], and the ends of the pieces that `piece_ends` finds
        in the sound.

        Raises:
            OmniError: 400 with the `param` of `sound`.
        """
        with self._limited_cpu_time(sound):
            wave = self._wave(sound)
            return wave, piece_ends(wave, self._features.rate, piece_seconds)

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
        rows = []
        for medium in media:
            match medium.kind:
                case "audio":
                    rows.append(MediumRows("audio", audio=next(next_sound)))
                case "image":
                    rows.append(MediumRows("image", self._features.merged_grid(next(next_picture))))
                case "video":
                    options = medium.video or video
                    audio = next(next_sound) if options.use_audio else 0
                    grid = self._features.merged_grid(next(next_clip))
                    seconds_per_step = self._features.frames_per_row / options.fps
                    rows.append(MediumRows("video", grid, audio, seconds_per_step))
        return rows

    def _limited_cpu_time(self, medium: Media) -> AbstractContextManager[None]:
        return limited_cpu_time(self._options.reading_cpu_seconds + medium.nbytes / BYTES_PER_SECOND)

    def _picture(self, medium: Media, tokens: int) -> VisionItem:
        image = decode_image(medium.data.buffer(), max_pixels=self._options.max_image_pixels, param=medium.param)
        if medium.size is not None:  # resizing may make the picture much larger than it is
            self._check_resized(medium, *image.size, self._features.picture_size(medium.size))
            rows = self._features.picture_rows(*image.size, medium.size)
            self._limit.check(tokens + rows)
            allow_time_for(rows * PIXELS_OF_ROW)
        return self._features.picture(image, medium.size)

    def _wave(self, medium: Media) -> numpy.ndarray:
        if medium.decoded:
            return medium.data.numpy()
        seconds = self._options.max_audio_seconds
        return decode_audio(medium.data.buffer(), rate=self._features.rate, max_seconds=seconds, param=medium.param)

    def _survey_picture(self, medium: Media) -> MediumSurvey:
        size = picture_size(medium.data.buffer(), self._options.max_image_pixels)
        if size is None:
            return MediumSurvey("image")
        self._check_resized(medium, *size, self._features.picture_size(medium.size))
        rows = self._features.picture_rows(*size, medium.size)
        return MediumSurvey("image", *size, frames=1, taken=1, rows=rows, least_rows=rows)

    def _survey_sound(self, medium: Media) -> MediumSurvey:
        if medium.decoded:
            rows = self._features.sound_rows(medium.data.shape[0])
            seconds = medium.data.shape[0] / self._features.rate
            return MediumSurvey("audio", sound_seconds=seconds, rows=rows, least_rows=rows)
        length = sound_length(medium.data.buffer(), self._options.max_audio_seconds)
        rows, least = (self._rows_of_sound(seconds) for seconds in (length.seconds, length.least_seconds))
        return MediumSurvey("audio", sound_seconds=length.seconds, rows=rows, least_rows=least)

    def _survey_clip(self, medium: Media, options: VideoOptions, tokens: int) -> MediumSurvey:
        plan = self._plan(medium, options, tokens, None)
        clip, taken = plan.clip, len(plan.indices)
        rows = self._features.clip_rows(taken, clip.width, clip.height, plan.size)
        seconds = clip.seconds if options.use_audio else 0.0
        return MediumSurvey(
            "video",
            *(clip.largest or (clip.width, clip.height)),
            frames=clip.frames,
            taken=taken,
            sound_seconds=seconds,
            rows=rows + self._rows_of_sound(seconds),
            least_rows=rows,
            clip=clip,
        )

    def _rows_of_sound(self, seconds: float) -> int:
        return self._features.sound_rows(int(seconds * self._features.rate))

    def _plan(self, medium: Media, options: VideoOptions, tokens: int, known: DecodedClip | None) -> _ClipPlan:
        """The frames to take from a clip, within the limits."""
        clip = known or self._probe(medium, options)
        indices = self._taken_frames(medium, clip, options)
        if len(indices) > self._options.max_video_frames:
            way_out = "send fewer pictures" if medium.frames else "ask for fewer with 'video_max_frames' or 'video_fps'"
            raise bad_request(
                f"{len(indices)} frames would be taken from the video, but only "
                f"{self._options.max_video_frames} are allowed; {way_out}.",
                param=medium.param,
                code="video_too_many_frames",
            )
        size = self._features.frame_size(options, len(indices))
        self._check_resized(medium, clip.width, clip.height, size)
        rows = self._features.clip_rows(len(indices), clip.width, clip.height, size)
        self._limit.check(tokens + rows)
        allow_time_for(rows * PIXELS_OF_ROW)
        return _ClipPlan(clip, indices, size)

    def _check_resized(self, medium: Media, width: int, height: int, size: FrameSize) -> None:
        """Raises OmniError 400 if a picture or a frame of a clip would be too large after resizing."""
        pixels = self._features.pixels_beyond_limit(medium.kind, width, height, size)
        if not pixels:
            return
        limit = self._features.max_resized_pixels
        if medium.kind == "image":
            what, fields = "The picture", "'min_pixels' or 'max_pixels'"
        else:
            what, fields = (
                "A frame of the video",
                "'min_pixels' or 'max_pixels' (as fields of the request: 'video_min_pixels' or 'video_max_pixels')",
            )
        raise bad_request(
            f"{what} would have {pixels} pixels after resizing, but only {limit} are allowed; lower {fields}.",
            param=medium.param,
            code=f"{medium.kind}_too_large",
        )

    def _probe(self, medium: Media, options: VideoOptions) -> DecodedClip:
        limits = self._options
        max_seconds, max_pixels = limits.max_video_seconds, limits.max_video_pixels
        if not medium.frames:
            return probe_clip(
                medium.data.buffer(),
                max_seconds=max_seconds,
                max_pixels=max_pixels,
                max_total_pixels=limits.max_video_total_pixels,
                param=medium.param,
            )
        return probe_picture_clip(
            [frame.buffer() for frame in medium.frames],
            options.fps,
            max_seconds=max_seconds,
            max_pixels=max_pixels,
            max_total_pixels=limits.max_video_total_pixels,
            param=medium.param,
        )

    def _taken_frames(self, medium: Media, clip: DecodedClip, options: VideoOptions) -> list[int]:
        """The indices of the frames that are taken. From a clip of pictures, all pictures are taken, because the client
        has chosen them.
        """
        if medium.frames:
            return list(range(clip.frames))
        return sampled_frames(
            clip,
            fps=options.fps,
            min_frames=self._features.min_frames,
            max_frames=options.max_frames,
            multiple=self._features.frames_per_row,
        )

    def _clip(
        self, medium: Media, options: VideoOptions, tokens: int, known: DecodedClip | None
    ) -> tuple[VisionItem, numpy.ndarray | None]:
        """A clip's frames, and its sound if the sound is used.

        If the clip has no sound track, or the track is empty, the sound is silence of the clip's length.
        """
        data, param, limit = medium.data.buffer(), medium.param, self._options.max_video_seconds
        plan = self._plan(medium, options, tokens, known)
        item = self._features.clip(self._frames(medium, plan), plan.size)
        if not options.use_audio:
            return item, None
        sound = None
        if plan.clip.has_sound:
            rate = self._features.rate
            sound = decode_sound_track(data, rate=rate, max_seconds=limit, param=param, code="invalid_video")
        return item, self._features.silence(plan.clip.seconds) if sound is None else sound

    def _frames(self, medium: Media, plan: _ClipPlan) -> Iterator[numpy.ndarray]:
        """The frames that are taken from a clip, in pieces as `Features.clip` needs them."""
        max_pixels, max_total_pixels = self._options.max_video_pixels, self._options.max_video_total_pixels
        if medium.frames:
            return decode_picture_clip(
                [frame.buffer() for frame in medium.frames],
                at_once=FRAMES_AT_ONCE,
                max_pixels=max_pixels,
                max_total_pixels=max_total_pixels,
                param=medium.param,
            )
        return decode_frames(
            medium.data.buffer(),
            plan.indices,
            at_once=FRAMES_AT_ONCE,
            total=plan.clip.frames,
            max_pixels=max_pixels,
            max_total_pixels=max_total_pixels,
            param=medium.param,
        )
