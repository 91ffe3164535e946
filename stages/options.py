"""The settings of each stage. Importing this module must stay cheap, because the main process imports it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from omni_pipeline.contract.stage_options import CacheOptions, StageOptions

Positive = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]

# The spoken languages that Qwen3-Omni understands, according to its authors.
LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ms": "Malay",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "yue": "Cantonese",
    "zh": "Chinese",
}

# The prompt for speech recognition in Chinese that the authors of Qwen3-Omni recommend. All other languages share one
# prompt.
TRANSCRIBE_PROMPTS = {"zh": "请将这段中文语音转换为纯文本。"}


class PreprocessingOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits on media and prompts. A request that exceeds a limit is refused, and the error names the request's field.

    Attributes:
        max_image_pixels: Maximum number of pixels of one decoded picture.
        max_resized_pixels: Maximum number of pixels of one picture, or of one frame of a clip, after resizing. The
            server resizes pictures and frames for image_encoder. The encoder's work for a picture grows with the square
            of the picture's number of pixels. null means 12845056 pixels for released checkpoints. (The checkpoint's
            processor has one maximum for pictures and another maximum for frames. null means the larger maximum.) With
            `min_pixels` and `max_pixels`, a request can set another size, up to this limit. If a request sets no size,
            its pictures and frames are scaled down to the processor's maximum, or to this limit if this limit is lower.
            If you raise the limit above 12845056, also set `max_batch_tokens` of image_encoder to at least 1/1024 of
            the limit. The memory plan then includes the memory for the largest pictures.
        max_audio_seconds: Maximum length of one sound, in seconds. The maximum is lower if the sound has more samples
            per second than a sound with eight channels at 96 kHz.
        max_video_seconds: Maximum length of one clip, in seconds.
        max_video_pixels: Maximum number of pixels of one decoded frame.
        max_video_total_pixels: Maximum total number of pixels in a clip's file, counted over all its frames. The cost
            of decoding the clip depends on this number.
        max_video_frames: Maximum number of frames that are sampled from one clip. A request cannot raise this limit
            with `video_fps` or `video_max_frames`.
        reading_seconds: Maximum time, in seconds, to decode the media of one request and to prepare the media for the
            encoders. This is also the maximum time to tokenise a long text. The time before a reader process begins the
            work does not count.
        reading_cpu_seconds: Maximum CPU time, in seconds, to read one media item. The maximum increases by one second
            for each 4 MB of the item's file. It also increases by one second for each 16 million pixels or samples.
        readers: Number of processes that decode media, at least two. One of these processes only does work that is
            expected to be short. null means one process for each core that the worker is allowed to use, but at least 2
            and at most 8 processes. One additional process tokenises long texts.
        max_prompt_tokens: Maximum number of tokens of the whole prompt. null means that only the model's context and
            the thinker's KV cache limit the prompt.
        reasoning_parser: SGLang's parser that separates the reasoning from the content of an answer. `auto` chooses
            `qwen3` for a model without speech whose chat template can write reasoning, and no parser for other models.
            `qwen3-thinking` and `deepseek-r1` expect reasoning in every answer, even without an opening marker.
        tool_call_parser: SGLang's parser that reads tool calls in an answer. `auto` chooses the parser according to the
            model's chat template, and turns tools off if the template does not support tools. `none` turns tools off.
        transcript_piece_seconds: Maximum length, in seconds, of the pieces of a recording that is transcribed or
            translated. A longer recording is cut where it is quietest. Each piece except the last has at least half of
            this length.
        transcript_languages: Languages that a request for a transcript may name. Each entry is a language code with the
            English name of the language. The default contains the eighteen languages that Qwen3-Omni's authors list.
        transcribe_prompt: Prompt for a recording whose language the request does not name. The authors of the model
            recommend the default values of this option and of the other four prompt options.
        transcribe_language_prompt: Prompt for a recording whose language the request names. ``{language}`` is replaced
            by the name of the language.
        transcribe_prompts: Prompts for recordings in particular languages. The keys are language codes. Each prompt
            replaces `transcribe_language_prompt` for its language. By default, there is one such prompt, for ``zh``.
        translate_prompt: Prompt for the translation of a recording whose language the request does not name.
            ``{target}`` is replaced by the name of the translation's language.
        translate_language_prompt: Prompt for the translation of a recording whose language the request names.
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
    tool_call_parser: Literal["auto", "none", "hermes", "qwen", "qwen25"] = "auto"
    transcript_piece_seconds: Annotated[float, Meta(ge=1)] = 30.0
    transcript_languages: dict[str, str] = field(default_factory=LANGUAGES.copy)
    transcribe_prompt: str = "Transcribe the audio into text."
    transcribe_language_prompt: str = "Transcribe the {language} audio into text."
    transcribe_prompts: dict[str, str] = field(default_factory=TRANSCRIBE_PROMPTS.copy)
    translate_prompt: str = "Listen to the provided speech and produce a translation in {target} text."
    translate_language_prompt: str = (
        "Listen to the provided {language} speech and produce a translation in {target} text."
    )
    reasoning_parser: Literal["auto", "none", "qwen3", "qwen3-thinking", "deepseek-r1"] = "auto"


class EncoderOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings for the batching and the cache of an encoder.

    Attributes:
        cache_bytes: Memory for embeddings of earlier media; 0 turns the cache off.
        max_batch_tokens: Maximum number of embedding rows that are computed at once, for all requests together. A clip
            with more rows is cut into pieces between two frames. A sound with more rows is cut every eight seconds. The
            encoders' attention does not cross these points, so the results stay the same. A picture is never cut.
            Between two pieces, the encoder can work on other requests.
        max_batch: Maximum number of requests whose media are encoded together in one step. null means one request on a
            CPU. On a GPU, null means all requests that fit into `max_batch_tokens`. On a CPU, larger batches are
            hardly faster, and all requests of a batch wait until the whole batch is encoded.
        dtype: Data type of weights and activations; null means float32 on a CPU and the checkpoint's type on a GPU.
    """

    cache_bytes: Bytes = 256 * 1024 * 1024
    max_batch_tokens: Positive = 8192
    max_batch: Positive | None = None
    dtype: str | None = None


class AggregateOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage mm_aggregate has no options."""


class EngineOptions(CacheOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of a language model's engine.

    Attributes:
        max_running_requests: Maximum number of answers that are generated at the same time; further requests wait.
        default_max_tokens: Maximum number of tokens that are generated for a request without its own limit.
        dtype: Data type of weights and activations; null means the checkpoint's type on a GPU. On a CPU, null means
            bfloat16 if three conditions are true: the checkpoint has unquantised bfloat16 weights, the stage's hidden
            size is at least 1024, and the CPU multiplies bfloat16 in hardware. Otherwise, null means float32 on a CPU.
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
        default_max_tokens: Maximum number of tokens of an answer to a request without its own limit.
    """

    default_max_tokens: Positive = 2048


class DecodeOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage decode has no options."""


class TalkerOptions(EngineOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the talker's engine.

    Attributes:
        default_max_tokens: Maximum number of talker tokens for a request without its own limit. Each codec frame of
            80 ms is one token.
        just_in_time: Whether an utterance may wait for more urgent utterances. If true, an utterance waits while its
            own listener has enough speech to continue playing and another listener does not have enough. The thinker's
            text for the utterance waits too.
    """

    default_max_tokens: Positive = 4096
    just_in_time: bool = True


class CodePredictorOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the code predictor.

    Attributes:
        max_batch: Maximum number of frames that are computed in one step. Each frame belongs to a different request.
        dtype: Data type of weights and activations; null means the checkpoint's type on a GPU. On a CPU, null means
            bfloat16 if three conditions are true: the checkpoint has unquantised bfloat16 weights, the stage's hidden
            size is at least 1024, and the CPU multiplies bfloat16 in hardware. Otherwise, null means float32 on a CPU.
            Norms, rotary angles and attention scores are always float32.
        record: Whether the stage computes a whole frame in one call, which is faster. On a GPU, each call replays a
            CUDA graph. The graphs are recorded for batch sizes that are powers of two, and for the largest batch size
            (`max_batch`). On a CPU with one thread and the data type float32, each call runs compiled machine code. On
            a CPU with several threads or another data type, each call replays a TorchScript recording. TorchScript
            recordings are made only for batches of up to 8 frames.
    """

    max_batch: Positive = 32
    dtype: str | None = None
    record: bool = True


class Code2WavOptions(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the vocoder.

    Attributes:
        max_streams: Maximum number of utterances that are decoded at the same time. Each of these utterances occupies a
            slot, which stores the utterance's decoder state. Further utterances wait.
        chunk_frames: Sizes of the chunks in which an utterance is decoded and sent, in codec frames of 80 ms. The first
            entry is the size of the first chunk, the second entry is the size of the second chunk, and so on. The last
            entry is also the size of all later chunks. A player starts to play when the first chunk arrives. So each
            later chunk must arrive before the player has played all earlier chunks. With the default sizes, each chunk
            arrives in time if the server generates a frame in at most 0.57 of the frame's length (46 ms). If each chunk
            were twice as long as the chunk before it, this limit would be 0.35 (28 ms). Longer chunks need less
            decoding time for each frame. But the player then needs more unplayed speech while the next chunk is made.
        max_batch: Maximum number of utterances that are decoded together in one step. null means one utterance on a
            CPU. On a GPU, null means all utterances that are ready. On a CPU, larger batches are hardly faster. If
            utterances are decoded one at a time, the speech is bit-identical no matter which other requests run.
        just_in_time: If true, the vocoder first decodes for the listener with the least unplayed speech. In addition,
            the first chunk of an utterance waits until the second chunk is expected to arrive in time. If false, chunks
            are decoded in the order in which they become complete.
        dtype: Data type of weights and activations; null means float32 on a CPU and the checkpoint's type on a GPU.
    """

    max_streams: Positive = 32
    max_batch: Positive | None = None
    chunk_frames: tuple[Positive, ...] = (1, 1, 2, 3, 4, 6, 8)
    just_in_time: bool = True
    dtype: str | None = None
