"""Computes the GPU memory that each stage needs besides its weights. The model is not loaded: the inputs are the sizes
in its config, the stage's options and devices, and the size of an example request.

For the encoders, `code_predictor` and `code2wav`, this module computes the peak of the memory use: the largest total
size of the tensors that exist at the same time. A test compares this peak with the peak that torch's profiler counts
(tests/stages/checkpoint/test_memory_needs.py). The memory that SGLang and CUDA need is derived from their source code,
and has not been measured on a GPU.
"""

from __future__ import annotations

from omni_pipeline.contract.stage_memory import Cache, Needs, Situation
from omni_pipeline.errors import StartupError
from omni_pipeline.sizes import MIB
from stages.checkpoint.audio_lengths import CONVOLVED_CHUNKS, FULL_CHUNK_ROWS
from stages.checkpoint.model_config import DecoderConfig, ModelConfig, TalkerConfig, VocoderConfig, read
from stages.checkpoint.tensor_shapes import DILATIONS, KERNEL
from stages.messages import ASSISTANT_ROWS
from stages.options import Code2WavOptions, CodePredictorOptions, EncoderOptions, TalkerOptions, ThinkerOptions

LARGEST_PICTURE_ROWS = 12845056 // 32**2
"""Embedding rows of the largest picture that the processor makes (`max_pixels`). A picture cannot be cut into pieces,
because attention covers the whole picture.
"""

FRAMES_PER_TOKEN = 4
"""Approximate number of codec frames (80 ms each) for a spoken text token. About three text tokens are spoken in a
second.
"""

SAMPLING_BYTES = 60
"""Bytes that the sampling of a token needs for each id of the vocabulary: several copies of the row of logits exist at
the same time.
"""

CPU_KV_TOKENS = 65536
"""Tokens in the KV cache on a CPU, where SGLang's default would allocate 40 % of the machine's memory."""

# Number of tokens that SGLang computes in a prefill step (sglang 0.5.23, arg_groups/memory_hook.py). Each pair is a
# limit in GiB and a number of tokens. The first pair whose limit is larger than the GPU's memory applies. If there is
# no such pair, `_LARGEST_CHUNK` applies.
_CHUNKS = ((20, 2048), (60, 4096), (160, 8192))
_LARGEST_CHUNK = 16384

# Upper bound for the workspaces of SGLang's attention backends (its SGLANG_FLASHINFER_WORKSPACE_SIZE is 384 MiB) and of
# cuBLAS.
_ENGINE_WORKSPACE = 512 * MIB
# SGLang's own estimate of the memory for captured decode steps, per sequence in the largest batch.
_GRAPH_BYTES_PER_SEQUENCE = 2 * MIB
# Bytes of the predictor's graphs: about twenty graphs with about a thousand kernels each, and the memory that all of
# them share.
_PREDICTOR_GRAPHS = 256 * MIB
# Bytes that a sequence with penalties needs for each id of the vocabulary. Four bytes count how often the id was
# generated. One byte stores whether the id is in the prompt.
_PENALTY_BYTES = 5


def vision(situation: Situation) -> Needs:
    """The memory that image_encoder needs. Its memory use is highest when the attention rotates queries and keys in
    float32.
    """
    options: EncoderOptions = situation.options
    config = read(situation.config).thinker_config.vision_config
    item, width = situation.item_size, config.hidden_size
    outputs = (1 + len(config.deepstack_visual_indexes)) * config.out_hidden_size // config.spatial_merge_size**2
    patch = width * (3 * item + 9 * 4) + (config.patch_elements + outputs) * item
    rows = max(options.max_batch_tokens, LARGEST_PICTURE_ROWS)
    return Needs(activations=rows * config.spatial_merge_size**2 * patch)


def audio(situation: Situation) -> Needs:
    """The memory that audio_encoder needs. Its memory use is highest in the first convolutions. If there are many rows,
    it is highest in the feed-forward part of a layer.
    """
    options: EncoderOptions = situation.options
    config = read(situation.config).thinker_config.audio_config
    item, frames = situation.item_size, 2 * config.n_window
    first = config.downsample_hidden_size * (config.num_mel_bins // 2) * (frames // 2) * item
    chunks = -(-options.max_batch_tokens // FULL_CHUNK_ROWS)
    convolved = min(chunks, CONVOLVED_CHUNKS) * first * 3
    # The outputs of all chunks are kept until the last chunk is convolved. An output is [channels, mel / 8, rows].
    waiting = chunks * config.downsample_hidden_size * (config.num_mel_bins // 8) * FULL_CHUNK_ROWS * item
    layer = options.max_batch_tokens * (6 * config.d_model + 2 * config.encoder_ffn_dim) * item
    return Needs(activations=max(convolved + 2 * waiting, layer) + chunks * config.num_mel_bins * frames * 4)


def thinker(situation: Situation) -> Needs:
    """The memory that the thinker needs for SGLang's decoder and its KV cache. If answers are spoken, the thinker also
    needs one row of hidden states for each cached token. These rows are for the talker.
    """
    options: ThinkerOptions = situation.options
    model = read(situation.config)
    text = model.thinker_config.text_config
    deepstack = len(model.thinker_config.vision_config.deepstack_visual_indexes)
    request = situation.request
    speaks = "talker_ar" in situation.stages
    return _engine(
        situation,
        text,
        extra_width=(deepstack + 1) * text.hidden_size,
        cache=Cache(
            token_bytes=_kv_bytes(text, situation),
            beside_bytes=text.hidden_size * situation.item_size if speaks else 0,
            request_tokens=request.prompt_tokens + request.answer_tokens,
            default_tokens=CPU_KV_TOKENS if situation.device == "cpu" else None,
        ),
        vocabulary=text.vocab_size,
        requests=options.max_running_requests,
    )


def talker(situation: Situation) -> Needs:
    """The memory that talker_ar needs for SGLang's decoder, its KV cache, and the rows of prompts and frames. Later
    requests may reuse the prompts of earlier requests. The function adds no memory for these prompts, because they
    are kept only in the part of the KV cache that no utterance uses.
    """
    options: TalkerOptions = situation.options
    config = _speaking(read(situation.config))[0].text_config
    request = situation.request
    prompt = request.prompt_tokens + ASSISTANT_ROWS
    return _engine(
        situation,
        config,
        extra_width=config.hidden_size,
        cache=Cache(
            token_bytes=_kv_bytes(config, situation),
            beside_bytes=config.hidden_size * situation.item_size,
            request_tokens=prompt + FRAMES_PER_TOKEN * request.answer_tokens,
            most_tokens=options.max_running_requests * (prompt + options.default_max_tokens),
            default_tokens=CPU_KV_TOKENS if situation.device == "cpu" else None,
        ),
        vocabulary=config.vocab_size,
        requests=options.max_running_requests,
    )


def predictor(situation: Situation) -> Needs:
    """The memory that code_predictor needs for a small static cache, and for graphs that compute whole frames."""
    options: CodePredictorOptions = situation.options
    talker_config, _ = _speaking(read(situation.config))
    config = talker_config.code_predictor_config
    rows, item = options.max_batch, situation.item_size
    cache = 2 * config.num_hidden_layers * config.key_width * talker_config.num_code_groups * rows * item
    row = 8 * config.hidden_size * item + 2 * config.intermediate_size * item + SAMPLING_BYTES * config.vocab_size
    captured = situation.device == "cuda" and options.record
    return Needs(
        activations=4 * rows * (row + talker_config.num_code_groups * config.hidden_size * item),
        state=cache,
        graphs=_PREDICTOR_GRAPHS if captured else 0,
        requests=rows,
    )


def vocoder(situation: Situation) -> Needs:
    """The memory that code2wav needs for the state of all slots, and for the activations of the last layers. These
    layers have one step for each sample.
    """
    options: Code2WavOptions = situation.options
    _, config = _speaking(read(situation.config))
    item = situation.item_size
    batch = options.max_batch or (1 if situation.device == "cpu" else options.max_streams)
    frames = max(options.chunk_frames)
    # The last blocks have the most values per frame: each block has half as many channels as the block before it, but
    # at least three times as many steps. In a residual unit, these tensors exist at the same time: the unit's input,
    # the outputs of its two layers, and a copy of each layer's input. Each copy begins with the layer's history.
    steps, width, largest = 1, config.decoder_dim, config.decoder_dim
    for ratio in config.upsampling_ratios:
        steps *= ratio
        largest = max(largest, 2 * 4 * config.hidden_size * steps // 4)
    for rate in config.upsample_rates:
        steps, width = steps * rate, width // 2
        largest = max(largest, steps * width)
    return Needs(
        activations=14 * batch * frames * largest * item,
        state=options.max_streams * _stream_state(config) * item,
        requests=options.max_streams,
    )


def _engine(
    situation: Situation, decoder: DecoderConfig, *, extra_width: int, cache: Cache, vocabulary: int, requests: int
) -> Needs:
    """Memory needs of a language-model stage (thinker or talker).

    Args:
        extra_width: Number of additional input values of each prefilled token. The values of the residual stream are
            not counted.
    """
    engine = situation.options.engine
    item = situation.item_size
    chunk = int(engine.get("chunked_prefill_size") or _chunk(situation.device_memory))
    hidden, heads = decoder.hidden_size, decoder.query_width + 2 * decoder.key_width
    # Attention needs memory for the joined projections, their normalised copies, and the results of the rotation. The
    # experts need memory for two intermediate results for each expert of a token. The experts' output needs no further
    # memory, because SGLang's fused kernel writes the output over the first intermediate result.
    attention = (4 * heads + hidden) * item // situation.ranks + 2 * decoder.head_width * (4 + item)
    expert = decoder.moe_intermediate_size // situation.ranks
    experts = decoder.num_experts_per_tok * (max(2 * expert, hidden) + expert) * item + decoder.experts * 4
    experts += 3 * decoder.shared_expert_intermediate_size * item // situation.ranks
    token = (4 * hidden + extra_width) * item + max(attention, experts)
    context = int(engine.get("context_length") or decoder.max_position_embeddings)
    return Needs(
        activations=chunk * token + requests * vocabulary * SAMPLING_BYTES,
        state=_ENGINE_WORKSPACE * (situation.device == "cuda") + requests * (context * 4 + vocabulary * _PENALTY_BYTES),
        graphs=0
        if situation.device == "cpu" or engine.get("disable_cuda_graph")
        else requests * _GRAPH_BYTES_PER_SEQUENCE,
        requests=requests,
        cache=cache,
    )


def _kv_bytes(decoder: DecoderConfig, situation: Situation) -> int:
    """Bytes of one token's keys and values on each rank. A rank has at least one KV head. If there are fewer KV heads
    than ranks, several ranks have the same head.
    """
    heads = -(-decoder.num_key_value_heads // situation.ranks)
    item = 1 if str(situation.options.engine.get("kv_cache_dtype", "auto")).startswith("fp8") else situation.item_size
    return 2 * decoder.num_hidden_layers * heads * decoder.head_width * item


def _chunk(device_memory: int) -> int:
    gib = device_memory / 1024**3
    return next((chunk for limit, chunk in _CHUNKS if gib < limit), _LARGEST_CHUNK)


def _stream_state(vocoder: VocoderConfig) -> int:
    """Number of values that code2wav keeps for each utterance: a window of keys and values, and the histories of
    convolutions.
    """
    window = 2 * vocoder.num_hidden_layers * vocoder.key_width * (vocoder.sliding_window - 1)
    reach = KERNEL - 1
    convolutions = (len(vocoder.upsampling_ratios) + 1) * vocoder.hidden_size * reach
    width = vocoder.decoder_dim
    for _ in vocoder.upsample_rates:
        convolutions += width + sum(DILATIONS) * reach * width // 2
        width //= 2
    return window + convolutions + reach * width


def _speaking(model: ModelConfig) -> tuple[TalkerConfig, VocoderConfig]:
    if model.talker_config is None or model.code2wav_config is None:
        raise StartupError("This checkpoint has no talker: it answers in text only. Pass --text-only.")
    return model.talker_config, model.code2wav_config
