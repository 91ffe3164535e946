"""Makes random weights for a model whose text and speech depend on the prompt and end by themselves.

With the usual initialisation (every matrix with a standard deviation of 0.02), the output of a random model does not
depend on the prompt. Attention is uniform, one token repeats forever, and the waveform is silence. With such a model, a
server that mixed up two requests would still pass its tests. Here, every matrix keeps the root mean square of its input
(*unit gain*). A few larger gains make attention and routing selective. Finally, the scores of the end tokens are
measured, and set so that answers have a moderate length.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

from .config import Json
from .tokenizer import Vocabulary

Model: TypeAlias = Qwen3OmniMoeForConditionalGeneration

_EMBEDDING_STD = 1.5
_HEAD_GAIN = 4.0
# The root mean square of silu(x) and of gelu(x) for a standard normal x. The gain of the next layer compensates for the
# smaller size.
_SILU_RMS, _GELU_RMS = 0.60, 0.65
_TEXT_TOKENS_PER_ANSWER = 20
_TOKENS_PER_REASONING = 12
_FRAMES_PER_ANSWER = 16
_WAVEFORM_RMS = 0.15

# The number and the lengths of the trial sequences that are used to set the scores of the end tokens.
_TRIALS, _TRIAL_PROMPT, _TRIAL_STEPS = 16, 24, 48

# The tokens before and after reasoning, and the factor by which the score of `<think>` exceeds all other scores at the
# beginning of an answer.
_REASONING = ("<think>", "</think>")
_CERTAINTY = 1.5

_BIAS_CHANNEL = 0
_SILENT_ROW = -40.0


@dataclass(frozen=True)
class Rule:
    """A rule to draw the parameters whose names match `pattern`. They are normally distributed with the mean `mean`.

    The standard deviation is `std`. If there is a `gain`, the standard deviation is instead chosen so that the matrix
    multiplies the root mean square of its input by `gain`.
    """

    pattern: str
    mean: float = 0.0
    std: float = 0.0
    gain: float | None = None

    def matches(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None


# The first matching rule applies. Norms and biases vary a little, so that tests notice a lost or swapped parameter.
_RULES = (
    Rule(r"\.[qk]_norm\.weight$", mean=1.8, std=0.1),  # scores with a standard deviation of 3: attention is selective
    Rule(r"(norm\d?|ln_q|ln_post)\.weight$", mean=1.0, std=0.1),
    Rule(r"\.(alpha|beta)$", std=0.1),
    Rule(r"(layer_scale\.scale|\.gamma)$", mean=0.5, std=0.05),
    Rule(r"(\.bias|pos_embed\.weight)$", std=0.1),
    Rule(r"\.(embed_tokens|model\.codec_embedding)\.weight$", std=_EMBEDDING_STD),
    # The talker adds these embeddings to the first code's embedding, and the vocoder averages them: see
    # `_scale_code_embeddings`.
    Rule(r"\.(codec_embedding\.\d+|code_embedding)\.weight$", std=1.0),
    Rule(r"\.mlp\.gate\.weight$", gain=2.0),  # the router: some experts get clearly higher scores than the others
    Rule(r"\.down_proj(\.weight)?$", gain=1.0 / _SILU_RMS),
    Rule(r"\.(text|hidden)_projection\.linear_fc2\.weight$", gain=_EMBEDDING_STD / _SILU_RMS),
    # Media features get the size of the thinker's embeddings. If they were smaller, they would have hardly any effect
    # beside the text.
    Rule(r"(audio_tower\.proj2|visual\.merger\.mlp\.2)\.weight$", gain=_EMBEDDING_STD / _GELU_RMS),
    # The gain does not change greedy choices. Without the gain, sampling would be almost uniform.
    Rule(r"(codec_head|lm_head(\.\d+)?)\.weight$", gain=_HEAD_GAIN),
    Rule(r"\.weight$", gain=1.0),
    Rule(r"\.(gate_up_proj|down_proj)$", gain=1.0),
)


def random_model(config: Json, vocabulary: Vocabulary, seed: int, *, reasons: bool = False) -> Model:
    """Return the model of a config.json in float32. Its weights depend on the arguments only.

    Args:
        reasons: Whether answers usually begin with reasoning between `<think>` and `</think>`.
    """
    model: Model = Qwen3OmniMoeForConditionalGeneration(Qwen3OmniMoeConfig(**config))
    with torch.no_grad():
        for module_name, module in model.named_modules():
            for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
                _draw(parameter, name, module, seed)
        _silence_unspeakable_rows(model, vocabulary, speakable=_REASONING if reasons else ())
        states = _answer_states(model, vocabulary, seed)
        if reasons:
            _let_reason(model, vocabulary, states)
        _let_text_end(model, vocabulary, states)
        if config["enable_audio_output"]:
            _scale_code_embeddings(model, config["talker_config"]["num_code_groups"])
            _let_speech_end(model, config, vocabulary, seed)
            _set_loudness(model, config, seed)
    return model


def _draw(parameter: Tensor, name: str, module: nn.Module, seed: int) -> None:
    rule = next(rule for rule in _RULES if rule.matches(name))
    std = rule.std if rule.gain is None else rule.gain / math.sqrt(_fan_in(module, parameter))
    parameter.copy_(rule.mean + std * _standard_normal(parameter.shape, name, seed))


def _standard_normal(shape: torch.Size, name: str, seed: int) -> Tensor:
    return torch.from_numpy(_stream(name, seed).standard_normal(tuple(shape), dtype=np.float32))


def _stream(name: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on the arguments only: NumPy's streams are the same on every machine."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def _random_ids(shape: tuple[int, ...], below: int, purpose: str, seed: int) -> Tensor:
    return torch.from_numpy(_stream(purpose, seed).integers(below, size=shape))


def _fan_in(module: nn.Module, weight: Tensor) -> int:
    """The number of input values from which one output value of `weight` is computed."""
    match module:
        case nn.ConvTranspose1d():  # [in, out, kernel]; each output sums kernel / stride taps
            return module.in_channels * module.kernel_size[0] // module.stride[0]
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():  # [out, in / groups, *kernel]
            return weight[0].numel()
        case _:  # [out, in], or [experts, out, in]
            return weight.shape[-1]


def _scale_code_embeddings(model: Model, groups: int) -> None:
    """Scale code embeddings so that sums and means over the code groups have the size of one embedding."""
    for embedding in model.talker.code_predictor.get_input_embeddings():
        embedding.weight.mul_(_EMBEDDING_STD / math.sqrt(groups - 1))
    model.code2wav.code_embedding.weight.mul_(math.sqrt(groups))


def _answer_states(model: Model, vocabulary: Vocabulary, seed: int) -> Tensor:
    """The thinker's last states in the answers of the trials: [trials, 1 + steps, hidden]. The questions and the
    answers consist of random tokens.
    """
    ask = [vocabulary.id(token) for token in ("<|im_start|>", "user", "\n")]
    reply = [vocabulary.id(token) for token in ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n")]
    words = _random_ids((_TRIALS, _TRIAL_PROMPT + _TRIAL_STEPS), len(vocabulary.tokens), "turns", seed)
    asked, replied = (torch.tensor(ids).expand(_TRIALS, -1) for ids in (ask, reply))
    ids = torch.cat([asked, words[:, :_TRIAL_PROMPT], replied, words[:, _TRIAL_PROMPT:]], dim=1)
    return model.thinker.model(input_ids=ids).last_hidden_state[:, -_TRIAL_STEPS - 1 :]


def _let_text_end(model: Model, vocabulary: Vocabulary, states: Tensor) -> None:
    """Set the score of `<|im_end|>` so that this token is chosen from time to time, but hardly ever as the first token,
    because an answer without text has no speech.
    """
    end, others = vocabulary.id("<|im_end|>"), slice(len(vocabulary.tokens))
    _let_end(model.thinker.lm_head.weight, end, others, states, _TEXT_TOKENS_PER_ANSWER)


def _let_reason(model: Model, vocabulary: Vocabulary, states: Tensor) -> None:
    """Set the scores so that answers begin with `<think>`, and that `</think>` is chosen from time to time."""
    head, others = model.thinker.lm_head.weight, slice(len(vocabulary.tokens))
    begin, end = map(vocabulary.id, _REASONING)
    _let_end(head, end, others, states, _TOKENS_PER_REASONING)
    first, common = states[:, 0], states[:, 1:].flatten(0, 1).mean(dim=0)
    row = first.mean(dim=0)
    row -= _along(row, common)
    factors = (first @ head[others].T).amax(dim=1) / (first @ row)
    # Rounded as in `_let_end`.
    head[begin] = (row * factors.max() * _CERTAINTY * 4096).round() / 4096


def _let_speech_end(model: Model, config: Json, vocabulary: Vocabulary, seed: int) -> None:
    """Set the score of the codec's end token so that this token is chosen from time to time. Each trial is a random
    text with random codes. The codes continue after the text has ended.
    """
    talker, predictor = model.talker, model.talker.code_predictor
    codebook, groups = config["code2wav_config"]["codebook_size"], config["talker_config"]["num_code_groups"]
    spoken = _TRIAL_STEPS // 2
    words = _random_ids((_TRIALS, _TRIAL_PROMPT + spoken), len(vocabulary.tokens), "words", seed)
    silence = torch.full((_TRIALS, _TRIAL_STEPS - spoken), config["tts_pad_token_id"])
    text = talker.text_projection(model.thinker.get_input_embeddings()(torch.cat([words, silence], dim=1)))

    codes = _random_ids((_TRIALS, _TRIAL_STEPS, groups), codebook, "codes", seed)
    frames = talker.get_input_embeddings()(codes[..., 0])
    for group, embedding in enumerate(predictor.get_input_embeddings(), start=1):
        frames = frames + embedding(codes[..., group])
    begin = talker.get_input_embeddings().weight[config["talker_config"]["codec_bos_id"]]
    speech = torch.cat([begin.expand(_TRIALS, 1, -1), frames], dim=1)
    text[:, -speech.shape[1] :] += speech

    states = talker.model(inputs_embeds=text).last_hidden_state[:, -speech.shape[1] :]
    end = config["talker_config"]["codec_eos_token_id"]
    _let_end(talker.codec_head.weight, end, slice(codebook), states, _FRAMES_PER_ANSWER)


def _let_end(head: Tensor, end: int, others: slice, states: Tensor, mean_length: int) -> None:
    """Change row `end` of `head`, so that in about one of `mean_length` states its score is higher than the scores of
    all rows in `others`.

    `states` are [trials, 1 + steps, hidden]. The first state of each trial chooses the first token of an answer.
    """
    answers = states[:, 1:].flatten(0, 1)
    row = head[end].clone()
    # One part of the score of a random row is the same in all states. With this part, the end token would be chosen at
    # once or never. So this part is removed.
    common = answers.mean(dim=0)
    row -= _along(row, common)
    beginning = states[:, 0].mean(dim=0)
    beginning -= _along(beginning, common)
    row -= _along(row, beginning) + row.norm() * beginning / beginning.norm()

    # Each factor belongs to one state. If the row is multiplied by this factor, the score of the end token equals the
    # best other score in this state.
    factors = (answers @ head[others].T).amax(dim=1) / (answers @ row)
    factors = factors[factors > 0].sort().values
    row *= factors[len(answers) // mean_length]
    # Rounded, because the last bits of a sum differ between machines and must not reach the file.
    head[end] = (row * 4096).round() / 4096


def _along(vector: Tensor, direction: Tensor) -> Tensor:
    """The part of `vector` that is parallel to `direction`."""
    return (vector @ direction) / (direction @ direction) * direction


def _silence_unspeakable_rows(model: Model, vocabulary: Vocabulary, speakable: Iterable[str]) -> None:
    """Ensure that the text head never chooses a row that stands for no text, neither greedily nor by sampling.

    There are two kinds of these rows. The rows beyond the tokenizer cannot be decoded. The rows of added tokens must
    not be chosen, because a trained model does not generate these tokens without a reason. For example, a generated
    `<|image_pad|>` would be a media row without media. The head has no bias that could lower the scores of these rows.
    So one channel of the residual stream serves as a bias. Every embedding and every media feature sets this channel to
    the same positive value, no layer writes to the channel, and only these rows read it.

    Args:
        speakable: Added tokens that the model may generate, besides the end of its turn.
    """
    thinker = model.thinker
    embed = thinker.get_input_embeddings().weight
    embed[:, _BIAS_CHANNEL] = _EMBEDDING_STD
    for layer in thinker.model.layers:
        layer.self_attn.o_proj.weight[_BIAS_CHANNEL] = 0
        layer.mlp.experts.down_proj[:, _BIAS_CHANNEL] = 0
    for projection in (thinker.audio_tower.proj2, thinker.visual.merger.mlp[2]):
        projection.weight[_BIAS_CHANNEL] = 0
        projection.bias[_BIAS_CHANNEL] = _EMBEDDING_STD
    for merger in thinker.visual.merger_list:  # these outputs are added to rows that already have the value
        merger.mlp[2].weight[_BIAS_CHANNEL] = 0
        merger.mlp[2].bias[_BIAS_CHANNEL] = 0
    thinker.model.norm.weight[_BIAS_CHANNEL] = 1

    head = thinker.lm_head.weight
    silent = torch.zeros(len(head), dtype=torch.bool)
    silent[vocabulary.added_ids.start :] = True
    for token in ("<|im_end|>", *speakable):
        silent[vocabulary.id(token)] = False
    head[:, _BIAS_CHANNEL] = 0
    head[silent] = 0
    head[silent, _BIAS_CHANNEL] = _SILENT_ROW


def _set_loudness(model: Model, config: Json, seed: int) -> None:
    """Scale and centre the vocoder's last convolution, so that random codes give `_WAVEFORM_RMS` without clipping."""
    vocoder = config["code2wav_config"]
    last = model.code2wav.decoder[-1].conv
    last.bias.zero_()
    before_clamp: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: before_clamp.append(output))
    model.code2wav(_random_ids((1, vocoder["num_quantizers"], 64), vocoder["codebook_size"], "sounds", seed))
    hook.remove()
    # Rounded for the same reason as the rows in `_let_end`.
    gain = float(f"{_WAVEFORM_RMS / before_clamp[0].std().item():.2g}")
    last.weight.mul_(gain)
    last.bias.fill_(float(f"{-gain * before_clamp[0].mean().item():.2f}"))
