"""The settings of each stage. Importing this module must stay cheap, because the main process imports it."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from omni_pipeline.contract.stage_options import CacheOptions, StageOptions

Positive = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


class PreprocessingOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits on media and prompts. A request that exceeds a limit is refused, and the error names the request's field.

    Attributes:
        max_image_pixels: Maximum number of pixels of one decoded picture.
        max_resized_pixels: Maximum number of pixels of a picture, or of one frame of a clip, after it is resized for
            image_encoder. The encoder's work for a picture grows with the square of this number. null means the larger
            one of the two upper bounds that the checkpoint's processor has for pictures and for frames, 12845056 for
            released checkpoints. A request may ask for any size up to this limit (`min_pixels`, `max_pixels`). Pictures
            and frames of a request that asks for no size are scaled down to this limit. If you raise the limit above
            12845056, set `max_batch_tokens` of image_encoder to at least 1/1024 of it, so that the memory plan counts
            such pictures.
        max_audio_seconds: Maximum length of one sound. The maximum is lower for a sound with more samples per second
            than eight channels at 96 kHz.
        max_video_seconds: Maximum length of one clip.
        max_video_pixels: Maximum number of pixels of one decoded frame.
        max_video_total_pixels: Maximum number of pixels of all stored frames of a clip together. This number determines
            the cost of decoding the clip.
        max_video_frames: Maximum number of frames sampled from one clip, whatever the request's `video_fps` and
            `video_max_frames` say.
        reading_seconds: Maximum time to decode the media of one request and to prepare them for the encoders; also the
            maximum time to tokenise a long text. Time in which the request waits for a reader does not count.
        reading_cpu_seconds: Maximum CPU time to read one media item. The maximum grows by a second for each 4 MB of the
            item's file, and by a second for each 16 million pixels or samples.
        readers: Number of processes that decode media, at least two. One of these processes takes only work that is
            expected to be short. null means one process for each core that the worker may use, but at least 2 and at
            most 8. A further process is for long texts.
        max_prompt_tokens: Maximum number of tokens of the whole prompt; null leaves the limit to the model and the
            thinker's KV cache.
    """

    max_image_pixels: Positive = 64 * 1024 * 1024
    max_resized_pixels: Positive | None = None
    max_audio_seconds: Positive = 3600
    max_video_seconds: Positive = 3600
    max_video_pixels: Positive = 16 * 1024 * 1024
    max_video_total_pixels: Positive = 64 * 1024 * 1024 * 1024
    max_video_frames: Positive = 2048
    reading_seconds: Seconds = 300.0
    readers: Annotated[int, Meta(ge=2, le=64)] | None = None
    reading_cpu_seconds: Seconds = 10.0
    max_prompt_tokens: Positive | None = None


class EncoderOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings for the batching and the cache of an encoder.

    Attributes:
        cache_bytes: Memory for embeddings of earlier media; 0 turns the cache off.
        max_batch_tokens: Maximum number of embedding rows computed at once, over all requests. A clip with more rows is
            cut between its frames, and a sound with more rows is cut every eight seconds. The towers' attention does
            not cross these borders. A picture is never cut. Between two pieces, the encoder works for other requests.
        dtype: Data type of weights and activations; null means float32 on a CPU and the checkpoint's type on a GPU.
    """

    cache_bytes: Bytes = 256 * 1024 * 1024
    max_batch_tokens: Positive = 8192
    dtype: str | None = None


class AggregateOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage mm_aggregate has no options."""


class EngineOptions(CacheOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of a language model's engine.

    Attributes:
        max_running_requests: Maximum number of answers generated at the same time; further requests wait.
        default_max_tokens: Maximum number of tokens generated for a request without a limit.
        dtype: Data type of weights and activations; null means float32 on a CPU and the checkpoint's type on a GPU.
            float32 on a GPU is for comparisons: it is slow, and quantised weights are refused.
        engine: Further SGLang server arguments by their Python name, such as ``{"chunked_prefill_size": 2048}``.
    """

    max_running_requests: Positive = 64
    default_max_tokens: Positive
    dtype: str | None = None
    engine: dict[str, Any] = {}


class ThinkerOptions(EngineOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the thinker's engine.

    Attributes:
        default_max_tokens: Maximum number of tokens of an answer to a request without a limit.
    """

    default_max_tokens: Positive = 2048


class DecodeOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage decode has no options."""


class TalkerOptions(EngineOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the talker's engine.

    Attributes:
        default_max_tokens: Maximum number of talker tokens for a request without a limit (a codec frame is 80 ms).
        just_in_time: Whether an utterance, and the thinker's text for it, waits while its listener has ample speech to
            hear and another listener has not.
    """

    default_max_tokens: Positive = 4096
    just_in_time: bool = True


class CodePredictorOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the code predictor.

    Attributes:
        max_batch: Maximum number of frames computed in one step, each for a different request.
        dtype: Data type of weights and activations; null means float32 on a CPU and the checkpoint's type on a GPU.
            Norms, rotary angles and attention scores are always float32.
        record: Whether to record the computation of whole frames and replay it: as CUDA graphs on a GPU, as TorchScript
            on a CPU. There are recordings for each batch size that is a power of two, and for the largest batch. On a
            CPU, only batches of up to 8 are recorded.
    """

    max_batch: Positive = 32
    dtype: str | None = None
    record: bool = True


class Code2WavOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the vocoder.

    Attributes:
        max_streams: Maximum number of utterances decoded at the same time. Each utterance holds a slot of decoder
            state; further utterances wait.
        chunk_frames: Number of frames in the first chunk, in the second chunk, and so on; the last entry applies to all
            later chunks. A codec frame is 80 ms. A player starts with the first chunk, so each chunk must arrive before
            the chunks before it have been played. With the default sizes, each chunk arrives in time as long as
            generating a frame takes at most 0.57 of the frame's length. If each chunk were twice as long as the chunk
            before, the limit would be 0.35. Longer chunks take less time for each frame, but listeners then need more
            speech in advance.
        max_batch: Maximum number of utterances decoded together in one step. null means all utterances that are ready
            on a GPU, and one utterance on a CPU. On a CPU a batch is hardly faster. If utterances are decoded one at a
            time, the speech is bit-identical, whatever other requests there are.
        just_in_time: Whether the order of chunks follows what each listener has left to hear. A first chunk then waits
            until the next one is expected in time.
        dtype: Data type of weights and activations; null means float32 on a CPU and the checkpoint's type on a GPU.
    """

    max_streams: Positive = 32
    max_batch: Positive | None = None
    chunk_frames: tuple[Positive, ...] = (1, 1, 2, 3, 4, 6, 8)
    just_in_time: bool = True
    dtype: str | None = None
