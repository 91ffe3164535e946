"""Computes the memory that decoded media need in all stages, from the sizes of the media alone.

The tensors of a request, in the order in which they exist:

- The inputs of the encoders. The stage `preprocessing` sends patches to the stage `image_encoder`, and mel features to
  the stage `audio_encoder`.
- The embedding rows. The encoders send them through the stage `mm_aggregate` to the thinker. The thinker keeps these
  rows until the request ends, because it may have to compute the prompt again.
- If the answer is spoken, one hidden state of the thinker for each embedding row. The talker keeps these states.

While a tensor is sent from one process to another, both processes have the tensor in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

from stages.checkpoint.audio_lengths import FULL_CHUNK_ROWS, audio_rows
from stages.checkpoint.model_config import ModelConfig
from stages.messages import AudioItem, VisionItem
from stages.preprocessing.features import CHUNK_FRAMES
from stages.preprocessing.media import FRAMES_AT_ONCE
from stages.preprocessing.survey import MediumSurvey

# Number of mel frames that rounding and padding may add to a sound. This is the number of frames of one row.
_MORE_MEL_FRAMES = 8

_FLOAT32 = 4  # preprocessing and the encoders send float32, even if a tower computes in another type


class DecodedMedia(Struct, frozen=True):
    """The sizes of a request's decoded media.

    Attributes:
        visual_rows: Number of embedding rows of pictures and clips.
        mel_frames: Number of mel frames of all sounds.
        audio_rows: Number of embedding rows of all sounds.
        pixels: Maximum number of pixels, before resizing, that are in memory at the same time while the media are
            decoded.
    """

    visual_rows: int = 0
    mel_frames: int = 0
    audio_rows: int = 0
    pixels: int = 0


class DecodedBytes(Struct, frozen=True):
    """The memory of a request's decoded media.

    Attributes:
        pixels: Bytes of the pixels that are in memory while the media are decoded.
        inputs: Bytes of the encoders' inputs.
        rows: Bytes of the embedding rows.
        heard: Bytes of the thinker's hidden states that the talker keeps.
    """

    pixels: int = 0
    inputs: int = 0
    rows: int = 0
    heard: int = 0

    @property
    def passing(self) -> int:
        """Bytes that are free again when the answer begins."""
        return self.pixels + 2 * self.inputs + self.rows

    @property
    def lasting(self) -> int:
        """Bytes that a stage may need until the request ends."""
        return self.rows + self.heard

    def beyond(self, other: DecodedBytes) -> DecodedBytes:
        """The part of this memory that exceeds `other`. No field of the result is negative."""
        return DecodedBytes(
            pixels=max(self.pixels - other.pixels, 0),
            inputs=max(self.inputs - other.inputs, 0),
            rows=max(self.rows - other.rows, 0),
            heard=max(self.heard - other.heard, 0),
        )

    def plus(self, other: DecodedBytes) -> DecodedBytes:
        """The sum of this memory and `other`."""
        return DecodedBytes(
            self.pixels + other.pixels, self.inputs + other.inputs, self.rows + other.rows, self.heard + other.heard
        )


class ByteSizes(Struct, frozen=True):
    """Sizes in bytes of the units in which decoded media are counted. The sizes belong to one checkpoint.

    Attributes:
        row_patches: Patches of one visual row.
        visual_row: A visual row with its deepstack rows.
        mel_frame: A mel frame.
        audio_row: A row of a sound.
        state: A hidden state of the thinker.
    """

    row_patches: int
    visual_row: int
    mel_frame: int
    audio_row: int
    state: int

    @classmethod
    def of(cls, config: ModelConfig) -> ByteSizes:
        thinker = config.thinker_config
        vision, audio = thinker.vision_config, thinker.audio_config
        layers = 1 + len(vision.deepstack_visual_indexes)
        return cls(
            row_patches=vision.spatial_merge_size**2 * vision.patch_elements * _FLOAT32,
            visual_row=layers * vision.out_hidden_size * _FLOAT32,
            mel_frame=audio.num_mel_bins * _FLOAT32,
            audio_row=audio.output_dim * _FLOAT32,
            state=thinker.text_config.hidden_size * _FLOAT32,
        )

    def bytes_of(self, media: DecodedMedia, *, spoken: bool) -> DecodedBytes:
        """The memory of decoded media.

        Args:
            spoken: Whether the answer is spoken.
        """
        return DecodedBytes(
            pixels=3 * media.pixels,
            inputs=media.visual_rows * self.row_patches + media.mel_frames * self.mel_frame,
            rows=media.visual_rows * self.visual_row + media.audio_rows * self.audio_row,
            heard=(media.visual_rows + media.audio_rows) * self.state if spoken else 0,
        )


def size_in_headers(surveys: Sequence[MediumSurvey], mel_rate: float, most_rows: int) -> DecodedMedia:
    """The sizes of media according to their headers. Headers may claim any size. So the result is limited: it has at
    most as many rows, and at most as many mel frames, as fit into one prompt.

    Args:
        mel_rate: Number of mel frames for each second of sound.
        most_rows: Maximum number of tokens of a prompt.
    """
    seconds = [survey.sound_seconds for survey in surveys if survey.sound_seconds]
    most_frames = most_rows * CHUNK_FRAMES // FULL_CHUNK_ROWS
    frames = [min(math.ceil(sound * mel_rate) + _MORE_MEL_FRAMES, most_frames) for sound in seconds]
    return DecodedMedia(
        visual_rows=min(sum(survey.least_rows for survey in surveys if survey.kind != "audio"), most_rows),
        mel_frames=min(sum(frames), most_frames),
        audio_rows=min(sum(map(audio_rows, frames)), most_rows),
        pixels=max((item.width * item.height * min(item.taken, FRAMES_AT_ONCE) for item in surveys), default=0),
    )


def size_of(visuals: Iterable[VisionItem], sounds: Iterable[AudioItem], merge: int) -> DecodedMedia:
    """The sizes of media that have been decoded.

    Args:
        visuals: Pictures and clips.
        merge: Number of patches along each side of the square that becomes one row.
    """
    frames = [sound.mel.shape[1] for sound in sounds]
    return DecodedMedia(
        visual_rows=sum(math.prod(item.grid) // merge**2 for item in visuals),
        mel_frames=sum(frames),
        audio_rows=sum(map(audio_rows, frames)),
    )
