"""Computes the memory that decoded media take in all stages, from their sizes alone.

The tensors of a request, in the order in which they exist:

- the inputs of the encoders: patches from preprocessing to image_encoder, mel features to audio_encoder;
- the embedding rows: from the encoders through mm_aggregate to the thinker, which keeps them until the request ends,
  because it may have to compute the prompt again;
- for a spoken answer, a state of the thinker for each row, which the talker keeps.

While a tensor travels between two processes, both hold it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct

from stages.checkpoint.audio_lengths import audio_rows
from stages.checkpoint.model_config import ModelConfig
from stages.messages import AudioItem, VisionItem

_FLOAT32 = 4  # preprocessing and the encoders send float32, whatever type a tower computes in


class DecodedMedia(Struct, frozen=True):
    """The sizes of a request's decoded media.

    Attributes:
        visual_rows: Number of embedding rows of pictures and clips.
        mel_frames: Number of mel frames of all sounds.
        audio_rows: Number of embedding rows of all sounds.
        pixels: Number of full-size pixels that are in memory at a time while the media are decoded.
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
        heard: Bytes of the states for the talker.
    """

    pixels: int
    inputs: int
    rows: int
    heard: int

    @property
    def passing(self) -> int:
        """Bytes that no stage holds any more when the answer begins."""
        return self.pixels + 2 * self.inputs + self.rows

    @property
    def lasting(self) -> int:
        """Bytes that some stage may hold until the request ends."""
        return self.rows + self.heard


class ByteSizes(Struct, frozen=True):
    """Bytes of one unit of each kind of decoded media, for one checkpoint.

    Attributes:
        row_patches: Patches of one visual row.
        visual_row: A visual row with its deepstack rows.
        mel_frame: A mel frame.
        audio_row: A row of a sound.
        state: A state of the thinker.
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


def size_of(pictures: Iterable[VisionItem], sounds: Iterable[AudioItem], merge: int) -> DecodedMedia:
    """The sizes of media that have been decoded.

    Args:
        pictures: Pictures and clips.
        merge: Side of the square of patches that makes one row.
    """
    frames = [sound.mel.shape[1] for sound in sounds]
    return DecodedMedia(
        visual_rows=sum(math.prod(picture.grid) // merge**2 for picture in pictures),
        mel_frames=sum(frames),
        audio_rows=sum(map(audio_rows, frames)),
    )
