"""The bodies of the messages between the stages of Qwen3-Omni, one struct for each kind.

Shapes: n = prompt tokens, m = media rows of the prompt, v = visual rows among them, h = hidden size of the thinker.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct, field

from omni_pipeline.wire.tensor import Tensor

Modality: TypeAlias = Literal["image", "audio", "video"]

ASSISTANT_ROWS = 9
"""Number of rows of the talker's prompt that open the assistant's turn, after the r rows of the user's turns: three
for `<|im_start|>assistant\\n`, four control rows, one begin row, and one with the first text token."""


# --- gateway → preprocessing ------------------------------------------------------------------------------------------


class Text(Struct, tag="text"):
    """A run of text inside a turn."""

    text: str


class MediaRef(Struct, tag="media"):
    """The place of `ChatRequest.media[index]` inside a turn."""

    index: int


class Turn(Struct):
    """One message of the conversation."""

    role: str
    content: list[Text | MediaRef]


class VideoOptions(Struct):
    """Options for sampling frames from clips, with the defaults of the reference processor.

    Attributes:
        fps: Number of frames that are taken from each second of video.
        max_frames: Maximum number of frames taken from one clip.
        min_pixels, max_pixels: Bounds on the pixels of one resized frame; None keeps the processor's own bounds.
        total_pixels: Bound on the pixels of all frames of a clip together.
        use_audio: Whether the model also receives the sound track, interleaved with the frames.
    """

    fps: float = 2.0
    max_frames: int = 768
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    use_audio: bool = False


class PictureSize(Struct):
    """Bounds on the pixels of a resized picture; None leaves the processor's own."""

    min_pixels: int | None = None
    max_pixels: int | None = None


class Media(Struct):
    """One undecoded picture, sound or clip.

    Attributes:
        kind: The kind that the client names; the container format is detected from the content.
        data: The file's bytes, uint8 [size]; empty for a clip that consists of pictures.
        param: The request field that holds the item, for error messages.
        size: Bounds on the size of a picture.
        video: Options for a clip; None leaves the options of the request.
        frames: The bytes of each picture of a clip that consists of pictures, in order; else empty.
    """

    kind: Modality
    data: Tensor
    param: str
    size: PictureSize | None = None
    video: VideoOptions | None = None
    frames: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + sum(frame.nbytes for frame in self.frames)


class Sampling(Struct):
    """Parameters with which a language-model stage picks tokens. By default, sampling is greedy, as in the reference's
    thinker.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus mass; 1 is off.
        top_k: Number of candidates; 0 is off.
        min_p: Least probability relative to the best candidate; 0 is off.
        repetition_penalty: As in the reference, over prompt and output; 1 is off.
        presence_penalty, frequency_penalty: As in the OpenAI API, over the output alone; 0 is off.
        logit_bias: Numbers that are added to the logits of the given token ids, as in the OpenAI API.
        seed: Makes sampling repeatable, alone or in a batch; None draws a random seed.
        max_tokens: Maximum number of tokens to generate; None is the server's default.
        min_tokens: Minimum number of tokens before an end-of-turn token.
        ignore_eos: Whether to generate `max_tokens` tokens even if an end-of-turn token or one of the `stop_token_ids`
            is generated earlier.
        stop_token_ids: Ids that end the text, besides the end-of-turn token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = []


class TextOutput(Struct):
    """Options for turning generated ids into text.

    Attributes:
        stop: Strings that end the text; they are not part of the answer.
        logprobs: Whether each token's log-probability is wanted.
        top_logprobs: Number of alternatives reported with each token.
        skip_special_tokens: Whether special tokens are left out of the text.
        return_token_ids: Whether the generated ids are wanted too.
        stream: Whether the client wants each piece of text as soon as possible. If not, all text after the first piece
            is sent as one piece at the end, because a message for each token would be work for three processes.
    """

    stop: list[str] = []
    logprobs: bool = False
    top_logprobs: int = 0
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    stream: bool = True


class SpeechOptions(Struct):
    """Options for speaking an answer.

    Attributes:
        speaker: Name of a voice of the checkpoint, lower case.
        talker: Parameters for codebook-0 codes. Their `max_tokens` is the reference's `talker_max_new_tokens`: an
            utterance has at most `max_tokens` - 1 frames.
        predictor: Parameters for residual codes; their `max_tokens` and penalties have no effect.
        streamed: Whether the client gets the speech while it is generated, and so can play it at once.
    """

    speaker: str
    talker: Sampling
    predictor: Sampling
    streamed: bool = True


class ChatRequest(Struct):
    """A validated request, as the gateway hands it to the pipeline.

    Attributes:
        video: Options for clips that have none of their own.
        speech: None when only text is wanted.
        thinking: The variable `enable_thinking` of the chat template; None leaves the variable undefined.
    """

    turns: list[Turn]
    media: list[Media] = []
    video: VideoOptions = field(default_factory=VideoOptions)
    thinker: Sampling = field(default_factory=Sampling)
    text: TextOutput = field(default_factory=TextOutput)
    speech: SpeechOptions | None = None
    thinking: bool | None = None


# --- preprocessing → image_encoder, audio_encoder, mm_aggregate -------------------------------------------------------


class VisionItem(Struct):
    """One picture or clip, ready for the vision tower.

    Attributes:
        key: Content hash; equal keys mean equal embeddings.
        grid: Patches (time, height, width), before merging.
        patches: float32 [time·height·width, channels·2·16·16].
    """

    key: bytes
    grid: tuple[int, int, int]
    patches: Tensor


class VisionWork(Struct):
    """The pictures and clips of one request: first all pictures in prompt order, then all clips in prompt order."""

    items: list[VisionItem]


class AudioItem(Struct):
    """One sound, ready for the audio tower.

    Attributes:
        key: Content hash; equal keys mean equal embeddings.
        mel: float32 [mel bins, frames], only the valid frames.
    """

    key: bytes
    mel: Tensor


class AudioWork(Struct):
    """The sounds of one request in prompt order.

    `pad_frames` is the length to which the reference pads every 100-frame chunk of this request's sounds: 100, or less
    if all sounds of the request are shorter than a second. The length changes the embeddings of sounds that are shorter
    than a second, and therefore their keys.
    """

    items: list[AudioItem]
    pad_frames: int


class MediaSpan(Struct):
    """The places of one media item's embedding rows in the prompt.

    Attributes:
        kind: The kind of media, which determines the encoder; images and videos both go to the vision tower.
        key: Content hash, as in the encoder's work item.
        rows: int64 [rows], ascending prompt indices (a clip's rows may be interleaved with the rows of its sound).
    """

    kind: Modality
    key: bytes
    rows: Tensor


class SpokenPrompt(Struct):
    """The rows of a prompt of n tokens that the talker receives, and the options for speaking the answer.

    Attributes:
        user_rows: int64 [r], ascending prompt indices of the user turns' rows.
        positions: float32 [3, r + 9], M-RoPE positions of the user rows and of the nine assistant rows after them, or
            None if the positions are 0 … r+8.
        position_delta: Position minus index, for the codec tokens after the assistant rows.
        speech: The client's options.
    """

    user_rows: Tensor
    positions: Tensor | None
    position_delta: float
    speech: SpeechOptions


class Prompt(Struct):
    """The tokenised conversation, without its media.

    Attributes:
        ids: int64 [n]; media rows hold their placeholder id.
        positions: float32 [3, n] M-RoPE positions (time, height, width), or None if all three positions are 0 … n-1.
        position_delta: Added to the index of a token after the prompt to get its position; may be fractional.
        vision: Spans of images and videos in the order of `VisionWork.items`.
        audio: Spans in the order of `AudioWork.items`.
        thinker, text: Options that later stages use.
        spoken: The talker's part; None when only text is wanted.
    """

    ids: Tensor
    positions: Tensor | None
    position_delta: float
    vision: list[MediaSpan]
    audio: list[MediaSpan]
    thinker: Sampling
    text: TextOutput
    spoken: SpokenPrompt | None = None


# --- image_encoder, audio_encoder → mm_aggregate ----------------------------------------------------------------------


class VisionRows(Struct):
    """Visual embeddings of one request, in the order of its `VisionWork`.

    Attributes:
        embeds: One tensor [rows, h] for each item.
        deepstack: One tensor [injection layers, rows, h] for each item.
    """

    embeds: list[Tensor]
    deepstack: list[Tensor]


class AudioRows(Struct):
    """Audio embeddings of one request, in the order of its `AudioWork`: one tensor [rows, h] for each item."""

    embeds: list[Tensor]


# --- mm_aggregate → thinker -------------------------------------------------------------------------------------------


class ThinkerRequest(Struct):
    """Everything the thinker needs for one answer.

    Attributes:
        ids: int64 [n] as in `Prompt`.
        cache_ids: int64 [n]: `ids`, with media rows replaced by numbers that are derived from the content hashes. So
            prompts share entries of the prefix cache exactly as far as the prompts are equal. In a prompt without
            media, `cache_ids` equals `ids`.
        positions, position_delta: As in `Prompt`.
        media_rows: int64 [m], ascending indices of the rows that come from an encoder.
        media_embeds: [m, h], the embeddings for `media_rows`.
        visual_rows: int64 [v], ascending indices of the rows that take deepstack embeddings.
        deepstack: [injection layers, v, h], the deepstack embeddings for `visual_rows`.
        media_tokens: Number of rows by modality, for usage.
        spoken: The talker's part; None when only text is wanted.
    """

    ids: Tensor
    cache_ids: Tensor
    positions: Tensor | None
    position_delta: float
    media_rows: Tensor | None
    media_embeds: Tensor | None
    visual_rows: Tensor | None
    deepstack: Tensor | None
    media_tokens: dict[Modality, int]
    thinker: Sampling
    text: TextOutput
    spoken: SpokenPrompt | None = None


# --- thinker → decode, and back ---------------------------------------------------------------------------------------


class DecodeStart(Struct, tag="decode_start"):
    """Informs decode that the prompt has been computed, and carries the data that decode needs before the first token.

    `cached_tokens` of the `prompt_tokens` were found in the prefix cache. If the text is `awaited`, decode reports to
    the thinker the number of tokens that no stop string can remove any more: these tokens can be spoken.
    """

    prompt_tokens: int
    cached_tokens: int
    media_tokens: dict[Modality, int]
    text: TextOutput
    awaited: bool = False


class IdLogprob(Struct, array_like=True):
    """A token id with its natural-log probability (before temperature and filters)."""

    id: int
    logprob: float


class Tokens(Struct, tag="tokens"):
    """Newly generated ids. On request, each id comes with its log-probability and the best alternatives."""

    ids: list[int]
    logprobs: list[float] = []
    alternatives: list[list[IdLogprob]] = []


FinishReason: TypeAlias = Literal["stop", "length"]


class Finished(Struct, tag="finished"):
    """The thinker has generated its last token.

    Attributes:
        reason: ``stop`` for an end-of-turn or stop token, ``length`` for a limit.
        matched: The id that ended the text, or None. The id is not sent as a token, because it is not part of the text.
    """

    reason: FinishReason
    matched: int | None


class StopGenerating(Struct, tag="stop_generating"):
    """Decode has found a stop string. The thinker ends the text, as if the thinker had generated an end-of-turn token.

    `tokens` is the number of the text's tokens before the stop string.
    """

    tokens: int


class Certain(Struct, tag="certain"):
    """Decode's report on an awaited text: no stop string can remove the first `tokens` tokens any more. Decode sends
    the last report after the end of the text.
    """

    tokens: int


# --- decode → collector -----------------------------------------------------------------------------------------------


class TokenText(Struct):
    """One token as the API shows it: its text and UTF-8 bytes (a token may be part of a character)."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Struct):
    """A generated token with its alternatives, most likely first."""

    chosen: TokenText
    top: list[TokenText]


class TextDelta(Struct, tag="text"):
    """New text, possibly empty when only log-probabilities or ids are new. Never splits a UTF-8 character.

    `ids`, sent on request, are all ids generated since the last delta, including the id that ended the text.
    """

    text: str
    logprobs: list[TokenLogprob] = []
    ids: list[int] = []


class TokenUsage(Struct):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    media_tokens: dict[Modality, int]


class TextDone(Struct, tag="text_done"):
    """The text is complete."""

    finish_reason: FinishReason
    usage: TokenUsage


# --- thinker → talker_ar ----------------------------------------------------------------------------------------------


class TalkerPrompt(Struct, tag="talker_prompt"):
    """The part of the conversation that the talker needs: r user rows of n prompt tokens.

    Attributes:
        ids: int64 [r], token ids of the user turns' rows; media rows have their placeholder.
        media_rows: int64 [k], ascending indices into `ids` of the media rows.
        media_hidden: [k, thinker hidden], the states of the thinker's accept layer for these media rows.
        assistant_ids: The last three ids of the prompt, which open the assistant's turn.
        positions: float32 [3, r + 9], M-RoPE positions of the user rows and the nine assistant rows, or None if the
            positions are 0 … r+8.
        position_delta: Position minus index, for the codec tokens after the assistant rows.
        speech: The client's options.
    """

    ids: Tensor
    media_rows: Tensor | None
    media_hidden: Tensor | None
    assistant_ids: list[int]
    positions: Tensor | None
    position_delta: float
    speech: SpeechOptions


# A `TalkerPrompt` is followed by `Tokens` as they are generated, then by `Finished`.


# --- talker_ar ⇄ code_predictor → code2wav ----------------------------------------------------------------------------


class PredictorStart(Struct, tag="predictor_start"):
    """The first message of an utterance to the code predictor: the sampling parameters for its residual codes.

    `streamed` is the client's option, which the code predictor passes on.
    """

    sampling: Sampling
    streamed: bool = True


class VocoderStart(Struct, tag="vocoder_start"):
    """The first message of an utterance to the vocoder. `streamed` is the client's option."""

    streamed: bool = True


class FrameSeed(Struct, tag="frame_seed"):
    """The code predictor's input for one frame: the talker's post-norm state [talker hidden] and codebook-0 code."""

    hidden: Tensor
    code: int


class FrameFeedback(Struct, tag="frame_feedback"):
    """A finished frame, returned to the talker: the sum of its codec embeddings over all codebooks, [talker hidden]."""

    embedding: Tensor


class Frame(Struct, tag="frame"):
    """The codes of one codec frame, int64 [codebooks], codebook 0 first."""

    codes: Tensor


class SpeechFinished(Struct, tag="speech_finished"):
    """The utterance has no further frame: the last message of the talker, which the code predictor passes on.

    `reason` is ``stop`` for the code that ends an utterance, ``length`` for a limit.
    """

    reason: FinishReason


# --- code2wav → collector ---------------------------------------------------------------------------------------------


class AudioDelta(Struct, tag="audio"):
    """The next part of the waveform: float32 [samples], 24 kHz mono, in [-1, 1]."""

    samples: Tensor


class AudioDone(Struct, tag="audio_done"):
    """The utterance has ended; `frames` is its number of codec frames, and `reason` says why it has no more."""

    frames: int
    reason: FinishReason


# --- advice about the order of work: code2wav → talker_ar → thinker ---------------------------------------------------


class Playing(Struct):
    """The times at which the players of some utterances would have started if they had never been silent, by
    `time.monotonic`. So frame i of an utterance, counted from 0, must be heard i · 80 ms later.

    `behind` says whether the vocoder has more frames waiting than it can decode soon.
    """

    since: dict[str, float]
    behind: bool = False


class TextPace(Struct):
    """The answers whose text is far enough ahead of its speech, so that the thinker can leave them aside, and the
    answers whose text is wanted again.
    """

    hold: list[str]
    resume: list[str]
