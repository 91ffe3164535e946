"""What can be configured for each stage. Importing this module must stay cheap: the main process does it."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from omni_pipeline.contract.stage_options import CacheOptions, StageOptions

Positive = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


class PreprocessingOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits on what is decoded; a request beyond them is refused with the field's name.

    Attributes:
        max_image_pixels: Pixels of one decoded picture.
        max_audio_seconds: Length of one sound; less where it has more than eight channels at 96 kHz would have.
        max_video_seconds: Length of one clip.
        max_video_pixels: Pixels of one decoded frame.
        max_video_total_pixels: Pixels of all frames of a clip as it is stored, which is what decoding it takes.
        max_video_frames: Frames taken from one clip, whatever the request's `video_fps` and `video_max_frames` say.
        reading_seconds: Time to decode the media of one request and to prepare them for the encoders.
        max_prompt_tokens: Tokens of the whole prompt; None leaves it to the thinker's KV cache.
    """

    max_image_pixels: Positive = 64 * 1024 * 1024
    max_audio_seconds: Positive = 3600
    max_video_seconds: Positive = 3600
    max_video_pixels: Positive = 16 * 1024 * 1024
    max_video_total_pixels: Positive = 64 * 1024 * 1024 * 1024
    max_video_frames: Positive = 2048
    reading_seconds: Seconds = 300.0
    max_prompt_tokens: Positive | None = None


class EncoderOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an encoder batches and remembers.

    Attributes:
        cache_bytes: Memory for embeddings of media seen before; 0 turns the cache off.
        max_batch_tokens: Embedding rows computed at once, over all requests. A longer clip is cut between its frames, a
            longer sound every eight seconds, where the towers look no further; a picture is never cut.
        dtype: Data type of weights and activations; None takes float32 on a CPU and the checkpoint's on a GPU.
    """

    cache_bytes: Bytes = 256 * 1024 * 1024
    max_batch_tokens: Positive = 8192
    dtype: str | None = None


class AggregateOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """mm_aggregate has nothing to configure."""


class EngineOptions(CacheOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A language model's engine.

    Attributes:
        max_running_requests: Answers generated at the same time; more wait their turn.
        default_max_tokens: Tokens generated when a request names no limit.
        dtype: Data type of weights and activations; None takes float32 on a CPU and the checkpoint's on a GPU. float32
            on a GPU is for comparisons: it is slow, and quantised weights are refused.
        engine: Further SGLang server arguments by their Python name, such as ``{"chunked_prefill_size": 2048}``.
    """

    max_running_requests: Positive = 64
    default_max_tokens: Positive
    dtype: str | None = None
    engine: dict[str, Any] = {}


class ThinkerOptions(EngineOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The thinker's engine.

    Attributes:
        default_max_tokens: Tokens of an answer when a request names no limit.
    """

    default_max_tokens: Positive = 2048


class DecodeOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """decode has nothing to configure."""


class TalkerOptions(EngineOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The talker's engine.

    Attributes:
        default_max_tokens: Talker tokens generated when a request names no limit (one codec frame is 80 ms).
    """

    default_max_tokens: Positive = 4096


class CodePredictorOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The code predictor.

    Attributes:
        max_batch: Frames computed in one step, each of another request.
        dtype: Data type of weights and activations; None takes float32 on a CPU and the checkpoint's on a GPU. Norms,
            rotary angles and attention scores are float32 in any case.
        record: Whether whole frames are recorded at the start and repeated, for each power of two of voices: as CUDA
            graphs on a GPU, as TorchScript on a CPU.
    """

    max_batch: Positive = 32
    dtype: str | None = None
    record: bool = True


class Code2WavOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The vocoder.

    Attributes:
        max_streams: Voices decoded at the same time; each holds a slot of decoder state, more wait.
        chunk_frames: Frames in the first chunk, the second, and so on; the last entry holds for all later ones. Codec
            frames are 80 ms long. A player starts with the first chunk, so each chunk must be there when those before
            it have been played: with these sizes that holds while frames take up to 0.57 of their time to make (with
            sizes that double, 0.35).
        max_batch: Voices decoded together in one step. None is all that are ready on a GPU, and one on a CPU, where
            a batch is hardly faster and one at a time makes a voice the same to the last bit in any company.
        dtype: Data type of weights and activations; None takes float32 on a CPU and the checkpoint's on a GPU.
    """

    max_streams: Positive = 32
    max_batch: Positive | None = None
    chunk_frames: tuple[Positive, ...] = (1, 1, 2, 3, 4, 6, 8)
    dtype: str | None = None
