"""The bodies of the messages between the stages of Qwen3-Omni, one struct for each kind.

A *row* is the vector of numbers that represents one token of a prompt. Each picture, clip or sound occupies several
tokens. Their rows, the media rows, come from the encoders. A *codec frame* is 80 ms of speech as codes, one code
from each codebook. An *utterance* is the speech of one answer. *Deepstack* embeddings are additional rows for pictures
and clips, which are added to the thinker's states after its first layers. The *collector* is the part of the main
process that receives the answers.

Shapes: n = prompt tokens, m = media rows of the prompt, v = visual rows among them, h = hidden size of the thinker.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct, field

from omni_pipeline.wire.tensor import Tensor

Modality: TypeAlias = Literal["image", "audio", "video"]

ASSISTANT_ROWS = 9
"""The talker's prompt consists of r rows for the user's turns, and then of this number of rows, which open the
assistant's turn. These are: three rows for the tokens `<|im_start|>`, `assistant` and newline; four control rows; one
begin row; and one row with the first text token.
"""


# --- gateway → preprocessing ------------------------------------------------------------------------------------------


class Text(Struct, tag="text"):
    """A run of text inside a turn."""

    text: str


class MediaRef(Struct, tag="media"):
    """Marks the position of the item `ChatRequest.media[index]` inside a turn."""

    index: int


class ToolCall(Struct):
    """A call of a function: the function's name, and its arguments as a string that contains a JSON object."""

    name: str
    arguments: str


class Turn(Struct):
    """One message of the conversation.

    Attributes:
        reasoning: The reasoning of an earlier answer, before its content. None if the client has not sent it.
        calls: The tool calls of an earlier answer. They come after its content.
        ids: The ids that the model has generated for this turn; empty if they are not known. If the answer has been cut
            after its generation, `ids` may also contain the ids of the part that was cut off.
    """

    role: str
    content: list[Text | MediaRef]
    calls: list[ToolCall] = []
    reasoning: str | None = None
    ids: list[int] = []


class VideoOptions(Struct):
    """Options for taking frames from clips. The defaults are those of the reference's processor.

    Attributes:
        fps: Number of frames that are taken from each second of video.
        max_frames: Maximum number of frames taken from one clip.
        min_pixels, max_pixels: Limits on the number of pixels of one resized frame; None keeps the limits of the
            checkpoint's processor.
        total_pixels: Limit on the total number of pixels in all frames of a clip.
        use_audio: Whether the model also receives the sound track, interleaved with the frames.
    """

    fps: float = 2.0
    max_frames: int = 768
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    use_audio: bool = False


class PictureSize(Struct):
    """Limits on the number of pixels of a resized picture; None keeps the limits of the checkpoint's processor."""

    min_pixels: int | None = None
    max_pixels: int | None = None


class Media(Struct):
    """One undecoded picture, sound or clip.

    Attributes:
        kind: The kind that the client names; the container format is detected from the content.
        data: The file's bytes, uint8 [size]; empty for a clip that consists of pictures.
        param: The request field that contains the item, for error messages.
        size: Limits on the size of a picture.
        video: Options for a clip; with None, the options of the request apply.
        frames: For a clip that consists of pictures, the bytes of each picture, in order. Empty for other media.
        decoded: Whether `data` is a decoded sound: float32 [samples] at the model's sampling rate. Only the stage
            preprocessing makes such items.
    """

    kind: Modality
    data: Tensor
    param: str
    size: PictureSize | None = None
    video: VideoOptions | None = None
    frames: list[Tensor] = []
    decoded: bool = False

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + sum(frame.nbytes for frame in self.frames)


class Grammar(Struct, frozen=True):
    """A grammar that the whole text must follow.

    Attributes:
        kind: The language in which the grammar is written.
        source: The grammar: a JSON schema as JSON text, a regular expression for the whole text, rules of EBNF, or a
            structural tag as JSON text.
        param: The request field that is named in errors about the grammar.
        lenient: Whether parts of a JSON schema that cannot be enforced are ignored. If not, they are an error.
    """

    kind: Literal["json_schema", "regex", "ebnf", "structural_tag"]
    source: str
    param: str = "response_format"
    lenient: bool = False


class ReasoningForm(Struct):
    """The markers with which a model encloses the reasoning before its answer.

    Attributes:
        opening, closing: The texts before and after the reasoning.
        opening_id, closing_id: The token ids of these texts.
        interrupting: The text with which a tool call begins. A tool call ends reasoning that has no closing marker.
            Empty if the model cannot call tools.
        begun: Whether the answer begins inside the reasoning, because the prompt ends with the opening marker.
    """

    opening: str
    closing: str
    opening_id: int
    closing_id: int
    interrupting: str = ""
    begun: bool = False


class Sampling(Struct):
    """Sampling parameters of a language-model stage. By default, sampling is greedy, as in the reference's thinker.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus mass; 1 is off.
        top_k: Number of candidates; 0 is off.
        min_p: Minimum probability relative to the best candidate; 0 is off.
        repetition_penalty: As in the reference, this penalty counts the tokens of the prompt and the output; 1 is off.
        presence_penalty, frequency_penalty: As in the OpenAI API, these penalties count only the output; 0 is off.
        logit_bias: Numbers that are added to the logits of the given token ids, as in the OpenAI API.
        seed: Makes sampling repeatable, whether the request runs alone or in a batch. None means a random seed.
        max_tokens: Maximum number of tokens to generate; None is the server's default.
        min_tokens: Minimum number of tokens to generate before an end-of-turn token.
        ignore_eos: Whether to generate `max_tokens` tokens in any case. If set, the text does not end at an end-of-turn
            token or at one of the `stop_token_ids`.
        stop_token_ids: Ids that end the text, besides the end-of-turn token.
        grammar: The thinker picks only ids that this grammar allows, and ends the text exactly where the grammar may
            end. None allows every text.
        thinking_budget: Maximum number of tokens between the markers of reasoning. When this number is reached, the
            closing marker is picked next. None means no limit.
        reasoning: The markers of the reasoning; None if the model does not reason. Set by the stage preprocessing.
        sender: A number that stands for the client. While requests of several clients wait for a stage, the clients
            take turns. The number has no effect on the tokens.
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
    grammar: Grammar | None = None
    thinking_budget: int | None = None
    reasoning: ReasoningForm | None = None
    sender: int = 0


class Tool(Struct):
    """A function that the model may call.

    Attributes:
        definition: The JSON text of the object that the chat template shows to the model.
        parameters: The JSON text of the schema of the arguments; empty if there is none.
        strict: Whether the arguments must follow the schema.
    """

    name: str
    definition: str
    parameters: str = ""
    strict: bool = False


class ToolUse(Struct):
    """The tools of a request, and which calls the answer may contain.

    Attributes:
        tools: The tools that the model sees.
        callable: Names of the tools that the model may call.
        required: Whether the answer must consist of calls.
        parallel: Whether the answer may have more than one call.
    """

    tools: list[Tool]
    callable: list[str]
    required: bool = False
    parallel: bool = True


class CallParsing(Struct):
    """How tool calls are found in a text.

    Attributes:
        parser: SGLang's name of the format.
        names: Names of the functions that may be called.
        parallel: Whether the text may have more than one call. If not, the first call ends the text.
    """

    parser: str
    names: list[str]
    parallel: bool = True


class TextOutput(Struct):
    """Options for turning generated ids into text.

    Attributes:
        stop: Strings that end the text; they are not part of the answer.
        logprobs: Whether each token's log-probability is wanted.
        top_logprobs: Number of alternatives reported with each token.
        skip_special_tokens: Whether special tokens are left out of the text.
        return_token_ids: Whether the generated ids are wanted too.
        stream: Whether the client wants each piece of text as soon as possible. If not, the text after the first piece
            is sent as one piece at the end. This saves time, because a message for each token costs time in three
            processes.
        choices: Number of texts that are generated for the prompt. 1 for a spoken answer.
        calls: How tool calls are found in the text; None if the text cannot contain calls. Set by the stage
            preprocessing.
        reasoning: The markers of the reasoning; None if the model does not reason. Set by the stage preprocessing.
        separate_reasoning: Whether the reasoning is sent separately. If not, it is a part of the content.
    """

    stop: list[str] = []
    logprobs: bool = False
    top_logprobs: int = 0
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    stream: bool = True
    choices: int = 1
    calls: CallParsing | None = None
    reasoning: ReasoningForm | None = None
    separate_reasoning: bool = True

    @property
    def judged(self) -> bool:
        """Whether the stage decode decides which tokens are spoken. This is necessary if a part of the text may be
        something other than content, because only content is spoken.
        """
        return bool(self.stop) or self.calls is not None or self.reasoning is not None


class SpeechOptions(Struct):
    """Options for speaking an answer.

    Attributes:
        speaker: Name of a voice of the checkpoint, lower case.
        talker: Parameters for sampling the codes of codebook 0. Their `max_tokens` is the reference's
            `talker_max_new_tokens`: an utterance has at most `max_tokens` - 1 frames.
        predictor: Parameters for sampling the residual codes. Their `max_tokens` and penalties have no effect.
        streamed: Whether the client gets the speech while it is generated, and so can play it at once.
    """

    speaker: str
    talker: Sampling
    predictor: Sampling
    streamed: bool = True


class ChatRequest(Struct, tag="chat_request"):
    """A validated request, in the form in which the gateway sends it to the pipeline.

    Attributes:
        video: Options for clips without their own options.
        speech: None when only text is wanted.
        thinking: The variable `enable_thinking` of the chat template; None leaves the variable undefined.
        tools: None if the model must not call anything.
    """

    turns: list[Turn]
    media: list[Media] = []
    video: VideoOptions = field(default_factory=VideoOptions)
    thinker: Sampling = field(default_factory=Sampling)
    text: TextOutput = field(default_factory=TextOutput)
    speech: SpeechOptions | None = None
    thinking: bool | None = None
    tools: ToolUse | None = None


class SpeechRequest(Struct, tag="speech_request"):
    """A validated request to read a text aloud.

    Attributes:
        text: The text, with at least one character that is not white space.
        instructions: The user's turn that the talker's prompt contains before the text; empty if there is no such turn.
        speech: How to speak the text. `speech.talker.max_tokens` limits the speech of the whole text. If it is None,
            the server's default limit applies to each passage separately.
    """

    text: str
    instructions: str
    speech: SpeechOptions


# --- transcripts: gateway → preprocessing, and back to the collector --------------------------------------------------

# A recording is transcribed piece by piece. The recording is one request. The stage `preprocessing` answers this
# request with the times of the pieces. Each piece is a separate request. The stage `preprocessing` keeps the recording
# until the main process aborts the recording's request.

TranscriptTask: TypeAlias = Literal["transcribe", "translate"]


class Recording(Struct, tag="recording"):
    """A sound to transcribe or to translate in pieces.

    Attributes:
        sound: The undecoded sound.
        task: Whether to transcribe or to translate the speech.
        language: Language of the sound: its code, or its name in English. None if the client has not named it.
        target: Language of the translation: its code, or its name in English. Has no effect for ``transcribe``.
        context: Text that the model reads before the sound; empty if there is no such text.
        at_once: Maximum number of pieces in the pipeline at a time.
        sender: As in `Sampling`.
    """

    sound: Media
    task: TranscriptTask = "transcribe"
    language: str | None = None
    target: str = "en"
    context: str = ""
    at_once: int = 1
    sender: int = 0


class PieceRequest(Struct, tag="piece_request"):
    """A request for the text of one piece of a recording.

    Attributes:
        recording: Id of the request for the whole recording.
        index: Number of the piece. The first piece has the number 0.
        thinker, text: The same as in `ChatRequest`.
    """

    recording: str
    index: int
    thinker: Sampling = field(default_factory=Sampling)
    text: TextOutput = field(default_factory=TextOutput)


class RecordingCut(Struct, tag="recording_cut"):
    """The times of the pieces into which a recording is cut. Together, the pieces are the whole recording.

    Attributes:
        ends: Time in seconds at which each piece ends and the next begins.
        language: English name of the language in which the pieces will be transcribed or translated; None if it is not
            known.
    """

    ends: list[float]
    language: str | None


EntryRequest: TypeAlias = ChatRequest | SpeechRequest | Recording | PieceRequest


def sender_of(request: EntryRequest) -> int:
    """The number of the client that sent a request; see `Sampling.sender`."""
    match request:
        case ChatRequest() | PieceRequest():
            return request.thinker.sender
        case SpeechRequest():
            return request.speech.talker.sender
        case Recording():
            return request.sender


# --- preprocessing → image_encoder, audio_encoder, mm_aggregate -------------------------------------------------------


class VisionItem(Struct):
    """One picture or clip, ready for the vision tower.

    Attributes:
        key: Content hash; equal keys mean equal embeddings.
        grid: Numbers of patches in (time, height, width), before merging.
        patches: float32 [time·height·width, channels·2·16·16].
    """

    key: bytes
    grid: tuple[int, int, int]
    patches: Tensor


class VisionWork(Struct):
    """The pictures and clips of one request: first all pictures in prompt order, then all clips in prompt order.

    Attributes:
        sender: As in `Sampling`.
    """

    items: list[VisionItem]
    sender: int = 0


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

    The reference cuts the sounds of a request into chunks of 100 frames (one second), and pads every chunk to the same
    length. `pad_frames` is this length: 100, or less if all sounds of the request are shorter than a second. The length
    changes the embeddings of sounds that are shorter than a second, so it is part of the keys of these sounds.

    `sender` is the number of the client, as in `Sampling`.
    """

    items: list[AudioItem]
    pad_frames: int
    sender: int = 0


class MediaSpan(Struct):
    """The positions of one media item's embedding rows in the prompt.

    Attributes:
        kind: The kind of media. It determines the encoder: images and videos go to the vision tower, sounds to the
            audio tower.
        key: Content hash, as in the encoder's work item.
        rows: int64 [rows], ascending prompt indices (the rows of a clip may alternate with the rows of its sound).
    """

    kind: Modality
    key: bytes
    rows: Tensor


class SpokenPrompt(Struct):
    """Which rows of a prompt the talker receives, and the options for speaking the answer.

    Attributes:
        user_rows: int64 [r], ascending prompt indices of the user turns' rows.
        positions: float32 [3, r + 9], M-RoPE positions of the user rows and of the nine assistant rows after them. None
            if the positions are 0 … r+8.
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
        ids: int64 [n]; media rows have their placeholder id.
        positions: float32 [3, n] M-RoPE positions (time, height, width). None if all three positions of each token
            equal the token's index.
        position_delta: The difference between position and index of every token after the prompt. It may be fractional.
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
            two prompts share entries of the prefix cache up to the point where they differ, and not beyond it. In a
            prompt without media, `cache_ids` equals `ids`.
        positions, position_delta: As in `Prompt`.
        media_rows: int64 [m], ascending indices of the prompt rows that come from an encoder.
        media_embeds: [m, h], the embeddings for `media_rows`.
        visual_rows: int64 [v], ascending indices of the rows that get deepstack embeddings.
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
    """Informs the stage `decode` that the prompt has been computed, and contains the data that this stage needs before
    the first token.

    `cached_tokens` counts the prompt tokens that were found in the prefix cache. If `awaited` is set, the thinker waits
    for reports from the stage `decode`. The reports state which tokens are spoken. The stage `decode` reports a token
    as soon as it is certain whether the token is spoken.
    """

    prompt_tokens: int
    cached_tokens: int
    media_tokens: dict[Modality, int]
    text: TextOutput
    awaited: bool = False


class IdLogprob(Struct, array_like=True):
    """A token id with the natural logarithm of its probability (before temperature and filters)."""

    id: int
    logprob: float


class Tokens(Struct, tag="tokens"):
    """Newly generated ids of one choice. If the client has asked for log-probabilities, each id comes with its
    log-probability and the best alternatives.
    """

    ids: list[int]
    logprobs: list[float] = []
    alternatives: list[list[IdLogprob]] = []
    choice: int = 0


FinishReason: TypeAlias = Literal["stop", "length"]


class Finished(Struct, tag="finished"):
    """The thinker has generated the last token of one choice. If all other choices have ended before, this message also
    ends the stream.

    Attributes:
        reason: ``stop`` if an end-of-turn token or a stop token ended the text, ``length`` if the text reached a limit.
        matched: The id that ended the text; None if no id ended it. The id is not sent as a token, because it is not
            part of the text.
    """

    reason: FinishReason
    matched: int | None
    choice: int = 0


class StopGenerating(Struct, tag="stop_generating"):
    """The stage decode has found the end of the text: a stop string, or a call if only one call is allowed. The thinker
    then ends the text as if it had generated an end-of-turn token.

    `tokens` and `silent` have the same meaning as in `Certain`. Here, `tokens` is the number of all tokens before the
    end of the text.
    """

    tokens: int
    choice: int = 0
    silent: list[int] = []


class Certain(Struct, tag="certain"):
    """Report of the stage decode to the thinker: which tokens of a text are spoken. The stage decode sends the last
    report after the end of the text.

    Attributes:
        tokens: Number of tokens, counted from the beginning of the text, for which it is certain whether they are
            spoken.
        silent: Among these tokens, the indices of the tokens that are not spoken, because they are not content. Indices
            of earlier reports are not repeated.
    """

    tokens: int
    silent: list[int] = []


# --- decode → collector -----------------------------------------------------------------------------------------------


class TokenText(Struct):
    """One token as the API shows it: its text and UTF-8 bytes (a token may be part of a character)."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Struct):
    """A generated token with its alternatives, most likely first.

    Attributes:
        reasoning: Whether the token belongs to the reasoning before the answer. The markers of reasoning belong to it.
    """

    chosen: TokenText
    top: list[TokenText]
    reasoning: bool = False


class TextDelta(Struct, tag="text"):
    """The next part of one choice. Any of its fields may be empty.

    Attributes:
        text: New content. Never splits a UTF-8 character.
        reasoning: New reasoning, which comes before `text`.
        logprobs: The log-probabilities of the tokens in this part, including the tokens of calls. Empty unless the
            client has asked for them.
        ids: All ids generated since the last delta, including the id that ended the text. Empty unless the client has
            asked for them.
        calls: Complete calls, which come after `text`.
    """

    text: str
    logprobs: list[TokenLogprob] = []
    ids: list[int] = []
    choice: int = 0
    calls: list[ToolCall] = []
    reasoning: str = ""


class TokenUsage(Struct):
    """Token counts of one choice. The counts of the prompt are the same in all choices of a request.

    Attributes:
        reasoning_tokens: Number of completion tokens that belong to the reasoning, including its markers.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    media_tokens: dict[Modality, int]
    reasoning_tokens: int = 0


class TextDone(Struct, tag="text_done"):
    """The text of one choice is complete. The reason is ``tool_calls`` if the text contains calls and has not reached a
    limit. If all other choices have ended before, this message also ends the stream.
    """

    finish_reason: FinishReason | Literal["tool_calls"]
    usage: TokenUsage
    choice: int = 0


# --- thinker → talker_ar ----------------------------------------------------------------------------------------------


class TalkerPrompt(Struct, tag="talker_prompt"):
    """The part of the conversation that the talker needs: the r rows of the user's turns, out of n prompt rows.

    Attributes:
        ids: int64 [r], token ids of the user turns' rows; media rows have their placeholder.
        media_rows: int64 [k], the indices of the media rows in `ids`, ascending.
        media_hidden: [k, thinker hidden], the hidden states of these media rows at the layer whose states the talker
            uses (`accept_hidden_layer`).
        assistant_ids: The last three ids of the prompt, which open the assistant's turn.
        positions: float32 [3, r + 9], M-RoPE positions of the user rows and of the nine assistant rows. None if the
            positions are 0 … r+8.
        position_delta: Position minus index, for the codec tokens after the assistant rows.
        speech: The client's options.
        media_ids: int64 [k], an id in [2**62, 2**63) for each row of `media_hidden`. Rows with the same id are equal,
            even in different prompts. None if there are no media rows.
    """

    ids: Tensor
    media_rows: Tensor | None
    media_hidden: Tensor | None
    assistant_ids: list[int]
    positions: Tensor | None
    position_delta: float
    speech: SpeechOptions
    media_ids: Tensor | None = None


# After a `TalkerPrompt`, the thinker sends each token as soon as it is generated (`Tokens`). `Finished` is last.


# --- preprocessing → talker_ar ----------------------------------------------------------------------------------------


class Passage(Struct, tag="passage"):
    """The token ids of the next passage of a text that is read aloud. A `TalkerPrompt` comes before the first passage.
    Each passage is spoken as a separate answer to this prompt.
    """

    ids: list[int]


# --- talker_ar ⇄ code_predictor → code2wav ----------------------------------------------------------------------------


class PredictorStart(Struct, tag="predictor_start"):
    """The first message of an utterance to the code predictor: the sampling parameters for its residual codes.

    `streamed` is the client's option. The code predictor sends it on to the vocoder.
    """

    sampling: Sampling
    streamed: bool = True


class VocoderStart(Struct, tag="vocoder_start"):
    """The first message of an utterance to the vocoder. `streamed` is the client's option."""

    streamed: bool = True


class FrameSeed(Struct, tag="frame_seed"):
    """The code predictor's input for one frame: the talker's state [talker hidden] after the final norm, and the
    frame's code of codebook 0.
    """

    hidden: Tensor
    code: int


class FrameFeedback(Struct, tag="frame_feedback"):
    """The code predictor's answer to the talker when a frame is finished: the sum of the frame's codec embeddings over
    all codebooks, [talker hidden].
    """

    embedding: Tensor


class Frame(Struct, tag="frame"):
    """The codes of one codec frame, int64 [codebooks], codebook 0 first."""

    codes: Tensor


class SpeechFinished(Struct, tag="speech_finished"):
    """The utterance has no further frame. The talker sends this message last, and the code predictor sends it on to the
    vocoder.

    Attributes:
        reason: ``stop`` if the talker picked the code that ends an utterance, ``length`` if the utterance reached a
            limit.
        text_tokens: Number of text tokens that were read aloud, including those of the user's turn. 0 if the thinker
            wrote the text.
    """

    reason: FinishReason
    text_tokens: int = 0


# --- code2wav → collector ---------------------------------------------------------------------------------------------


class AudioDelta(Struct, tag="audio"):
    """The next part of the waveform: float32 [samples], 24 kHz mono, in [-1, 1]."""

    samples: Tensor


class AudioDone(Struct, tag="audio_done"):
    """The utterance has ended; `frames` is its number of codec frames. `reason` and `text_tokens` are those of
    `SpeechFinished`.
    """

    frames: int
    reason: FinishReason
    text_tokens: int = 0


# --- code2wav → talker_ar → thinker: which requests to compute first --------------------------------------------------


class Playing(Struct):
    """The state of some players. `since` has a time of `time.monotonic` for each utterance. This is the time at which
    the player started, plus the length of all silences that the listener has heard since then. So frame i of the
    utterance, counted from 0, must be played i · 80 ms after this time.

    `behind` is true if more frames wait at the vocoder than the vocoder can decode soon.
    """

    since: dict[str, float]
    behind: bool = False

    def shifted(self, seconds: float) -> Playing:
        """See `contract.stage.TimedAdvice`."""
        return Playing({request_id: since + seconds for request_id, since in self.since.items()}, self.behind)


class TextPace(Struct):
    """Advises the thinker how to divide its time between answers. `hold` lists the answers that the thinker can pause
    now, because their text is far enough ahead of their speech. `resume` lists the paused answers to continue.
    """

    hold: list[str]
    resume: list[str]
