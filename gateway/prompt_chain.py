"""Makes a chain of hashes from the prompt of a chat request, so that the pipeline can find the replica whose prefix
cache contains the beginning of the prompt.

The chain is only a prediction: it is made before the media are decoded and the text is tokenised. If a prediction is
wrong, the prompt is computed on a replica that is not the best one. The answer stays the same. So the numbers of tokens
are estimates, and only a part of a very large media item is hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import msgspec

from omni_pipeline.contract.prompt_chain import PromptBlock, PromptChain
from omni_pipeline.wire.tensor import Buffer
from stages.messages import ChatRequest, Media, Text, Turn, VideoOptions

INLINE_BYTES = 64 * 1024
"""If a request has more than this number of bytes of text and media, a thread makes the chain. Hashing the bytes on the
event loop would delay other requests. For fewer bytes, hashing takes less than a millisecond.
"""

_BLOCK_BYTES = 256  # bytes of text in one block
_SOUND_BLOCK_BYTES = 32 * 1024  # bytes of samples in one block: a second of 16-bit sound at 16 kHz
_SAMPLED_BYTES = 4 * 1024 * 1024  # maximum number of bytes of a media item that are hashed
_MOST_BLOCKS = 8192  # a prompt with more blocks of text is longer than the context of the model

# Estimates for the number of tokens. When prompts have been answered, their real numbers of tokens are known. The
# pipeline uses these numbers to correct its estimates.
_TEXT_BYTES_PER_TOKEN = 4
_FILE_BYTES_PER_TOKEN = 256
_MOST_FILE_TOKENS = 16_384
_PIXELS_PER_TOKEN = 1024
_SOUND_TOKENS_PER_SECOND = 13

_KEY_BYTES = 16
_WAV_HEADER_BYTES = 44


async def chain_of(
    request: ChatRequest, in_thread: Callable[[Callable[[], PromptChain]], Awaitable[PromptChain]]
) -> PromptChain:
    """The chain of a request's prompt. If there is much to hash, `in_thread` calls the given function in a thread."""
    if _bytes_to_hash(request) > INLINE_BYTES:
        return await in_thread(lambda: prompt_chain(request))
    return prompt_chain(request)


def prompt_chain(request: ChatRequest) -> PromptChain:
    """The chain of a request's prompt: first the tools, then the turns of the conversation.

    A turn, its text and its media are mixed into the chain in the order in which the model reads them. So the chain of
    a conversation begins with the chain of its earlier turns.
    """
    chain = _Chain()
    chain.mix(b"thinking", msgspec.json.encode(request.thinking))
    for tool in request.tools.tools if request.tools is not None else ():
        chain.add_text(b"tool", tool.definition)
    for turn in request.turns:
        _add_turn(chain, turn, request)
    return PromptChain(tuple(chain.blocks))


def _add_turn(chain: _Chain, turn: Turn, request: ChatRequest) -> None:
    chain.mix(b"turn", turn.role.encode())
    # If the token ids of an earlier answer are known, its text is not tokenised again. These ids may differ from the
    # ids that the tokeniser would return for the text.
    if turn.ids:
        chain.mix(b"ids", msgspec.json.encode(turn.ids))
    if turn.reasoning is not None:
        chain.add_text(b"reasoning", turn.reasoning)
    for part in turn.content:
        if isinstance(part, Text):
            chain.add_text(b"text", part.text)
        else:
            _add_media(chain, request.media[part.index], request.video)
    for call in turn.calls:
        chain.add_text(b"call", f"{call.name} {call.arguments}")


def _add_media(chain: _Chain, medium: Media, video: VideoOptions) -> None:
    """Add a media item with the options that change its embeddings in the prompt."""
    data, tokens = medium.data.buffer(), min(medium.nbytes // _FILE_BYTES_PER_TOKEN, _MOST_FILE_TOKENS)
    match medium.kind:
        case "image":
            chain.mix(b"image", msgspec.json.encode(medium.size))
            if medium.size is not None and medium.size.max_pixels is not None:
                tokens = min(tokens, medium.size.max_pixels // _PIXELS_PER_TOKEN)
        case "video":
            chain.mix(b"video", msgspec.json.encode(medium.video or video))
            for frame in medium.frames:
                chain.mix(b"frame", _sample(frame.buffer()))
        case "audio" if data[:4] == b"RIFF" and len(data) > _WAV_HEADER_BYTES:
            _add_wav(chain, data)
            return
        case "audio":
            chain.mix(b"audio", b"")
    chain.add(_sample(data), tokens)


def _add_wav(chain: _Chain, data: memoryview) -> None:
    """Add a WAV file in blocks of about a second.

    In a realtime session, the beginning of a turn is computed while the user still speaks. Later, a longer sound
    arrives, which contains the whole turn. The blocks of the beginning are the same in both sounds. The sizes in the
    headers are different, so the sizes do not become part of the chain.
    """
    chain.mix(b"wav", data[8:40])
    bytes_per_second = int.from_bytes(data[28:32], "little")
    bytes_per_token = max(bytes_per_second // _SOUND_TOKENS_PER_SECOND, _FILE_BYTES_PER_TOKEN)
    samples = data[_WAV_HEADER_BYTES:]
    for begin in range(0, min(len(samples), _SAMPLED_BYTES), _SOUND_BLOCK_BYTES):
        block = samples[begin : begin + _SOUND_BLOCK_BYTES]
        chain.add(block, len(block) // bytes_per_token)
    rest = samples[_SAMPLED_BYTES:]
    if rest:
        chain.add(_sample(rest), len(rest) // bytes_per_token)


class _Chain:
    """A chain of blocks to which parts of a prompt are added."""

    def __init__(self) -> None:
        self.blocks: list[PromptBlock] = []
        self._key = b""

    def mix(self, kind: bytes, content: Buffer) -> None:
        """Make the keys of all later blocks depend on `content`. The content itself does not become a block."""
        digest = hashlib.sha256(self._key + kind + b":")
        digest.update(content)
        self._key = digest.digest()[:_KEY_BYTES]

    def add(self, content: Buffer, tokens: int) -> None:
        """Add a block with this content and this estimated number of tokens."""
        self.mix(b"block", content)
        self.blocks.append(PromptBlock(self._key, max(tokens, 1)))

    def add_text(self, kind: bytes, text: str) -> None:
        """Add a text as blocks. Texts with the same beginning share their first blocks."""
        self.mix(kind, b"")
        room = max(_MOST_BLOCKS - len(self.blocks), 0) * _BLOCK_BYTES
        data = text[:room].encode("utf-8", "surrogatepass")[:room]
        for begin in range(0, len(data), _BLOCK_BYTES):
            block = data[begin : begin + _BLOCK_BYTES]
            self.add(block, -(-len(block) // _TEXT_BYTES_PER_TOKEN))


def _sample(data: memoryview) -> Buffer:
    """The bytes to hash for a file. A small file is hashed as a whole. Of a large file, only the size, the beginning
    and the end are hashed.
    """
    if len(data) <= _SAMPLED_BYTES:
        return data
    half = _SAMPLED_BYTES // 2
    return b"%d:" % len(data) + data[:half] + data[-half:]


def _bytes_to_hash(request: ChatRequest) -> int:
    """The approximate number of bytes of a request's text and media."""
    size = sum(medium.nbytes for medium in request.media)
    if request.tools is not None:
        size += sum(len(tool.definition) for tool in request.tools.tools)
    for turn in request.turns:
        size += len(turn.reasoning or "") + sum(len(call.arguments) for call in turn.calls)
        size += sum(len(part.text) for part in turn.content if isinstance(part, Text))
    return size
