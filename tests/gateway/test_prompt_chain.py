"""Prompts with the same beginning have chains with the same beginning. Every difference changes all later keys."""

from __future__ import annotations

import asyncio
import base64
import itertools
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gateway import prompt_chain as module
from gateway.answers.audio_formats import wav
from gateway.prompt_chain import INLINE_BYTES, chain_of, prompt_chain
from omni_pipeline.contract.prompt_chain import UNKNOWN_PROMPT, PromptChain
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    ChatRequest,
    Media,
    MediaRef,
    PictureSize,
    Text,
    Tool,
    ToolCall,
    ToolUse,
    Turn,
    VideoOptions,
)
from tests.gateway.realtime.talking import talking
from tests.gateway.scripted import ScriptedPipeline, serving

PICTURE = b"\x89PNG" + bytes(5000)


def keys(chain: PromptChain) -> list[bytes]:
    return [block.key for block in chain.blocks]


def shared(one: PromptChain, other: PromptChain) -> int:
    """Number of blocks with equal keys at the beginning of two chains."""
    return next(
        (index for index, (a, b) in enumerate(zip(keys(one), keys(other), strict=False)) if a != b),
        min(len(one.blocks), len(other.blocks)),
    )


def user(text: str) -> Turn:
    return Turn("user", [Text(text)])


def chat(*turns: Turn, **fields: Any) -> ChatRequest:
    return ChatRequest(list(turns), **fields)


def media(data: bytes = PICTURE, kind: Any = "image", **fields: Any) -> ChatRequest:
    """A request with one media item."""
    options = {name: fields.pop(name) for name in ("video",) if name in fields and kind != "video"}
    item = Media(kind, Tensor.of(data), "messages[0]", **fields)
    return chat(Turn("user", [MediaRef(0), Text("What is this?")]), media=[item], **options)


# --- equal and different prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: chat(user("Hello. " * 100)),
        lambda: media(),
        lambda: media(kind="video", video=VideoOptions(fps=1.0)),
        lambda: chat(user("x"), tools=ToolUse([Tool("f", '{"name": "f"}')], ["f"])),
    ],
)
def test_equal_prompts_have_equal_keys(make: Callable[[], ChatRequest]) -> None:
    assert prompt_chain(make()) == prompt_chain(make())
    assert len(set(keys(prompt_chain(make())))) == len(prompt_chain(make()).blocks)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(user("a")), chat(user("b"))),
        (chat(user("a")), chat(Turn("system", [Text("a")]))),
        (chat(user("a")), chat(user("a"), thinking=True)),
        (chat(user("a")), chat(user("a"), tools=ToolUse([Tool("f", "{}")], ["f"]))),
        (chat(Turn("assistant", [Text("a")])), chat(Turn("assistant", [Text("a")], ids=[1, 2]))),
        (chat(Turn("assistant", [Text("a")], ids=[1])), chat(Turn("assistant", [Text("a")], ids=[2]))),
        (chat(Turn("assistant", [], reasoning="a")), chat(Turn("assistant", [Text("a")]))),
        (chat(Turn("assistant", [], [ToolCall("f", "1")])), chat(Turn("assistant", [], [ToolCall("f", "2")]))),
        (media(), media(PICTURE + b"x")),
        (media(), media(size=PictureSize(max_pixels=1000))),
        (media(size=PictureSize(min_pixels=1000)), media(size=PictureSize(max_pixels=1000))),
        (media(), media(kind="video")),
        (media(kind="video"), media(kind="video", video=VideoOptions(fps=1.0))),
        (media(kind="video"), media(kind="video", frames=[Tensor.of(b"x")])),
        (media(kind="audio"), media(PICTURE + b"x", kind="audio")),
        (media(wav(bytes(99), 8000), "audio"), media(wav(bytes(99), 16_000), "audio")),
    ],
)
def test_different_prompts_share_no_key(one: ChatRequest, other: ChatRequest) -> None:
    assert shared(prompt_chain(one), prompt_chain(other)) == 0


def test_options_of_the_request_count_for_clips_without_their_own_options() -> None:
    clip = Media("video", Tensor.of(PICTURE), "messages[0]")
    turn = Turn("user", [MediaRef(0)])
    plain = chat(turn, media=[clip])
    slow = chat(turn, media=[clip], video=VideoOptions(fps=1.0))
    assert shared(prompt_chain(plain), prompt_chain(slow)) == 0
    other = Media("video", Tensor.of(PICTURE), "elsewhere", video=VideoOptions(fps=1.0))
    assert prompt_chain(slow) == prompt_chain(chat(turn, media=[other]))


def test_options_of_the_answer_do_not_matter() -> None:
    asked = chat(user("a"))
    asked.thinker.temperature = 0.7
    asked.text.stop = ["."]
    assert prompt_chain(asked) == prompt_chain(chat(user("a")))


def test_a_large_file_is_known_by_its_size_its_beginning_and_its_end() -> None:
    size = module._SAMPLED_BYTES + 1000
    whole = bytes(size)
    chains = [prompt_chain(media(data)) for data in (whole, whole + b"x", b"x" + whole[1:], whole[:-1] + b"x")]
    assert len({chain.blocks for chain in chains}) == 4
    assert prompt_chain(media(whole)) == chains[0]


# --- common beginnings ------------------------------------------------------------------------------------------------


def test_a_conversation_begins_with_its_earlier_turns() -> None:
    first = chat(Turn("system", [Text("Be kind. " * 60)]), user("Hello!"))
    more = chat(*first.turns, Turn("assistant", [Text("Hi.")], ids=[3, 4]), user("How are you?"))
    assert shared(prompt_chain(first), prompt_chain(more)) == len(prompt_chain(first).blocks)


def test_a_picture_stays_in_the_common_beginning() -> None:
    first = media()
    more = chat(*first.turns, Turn("assistant", [Text("A car.")]), user("And its colour?"), media=first.media)
    assert shared(prompt_chain(first), prompt_chain(more)) == len(prompt_chain(first).blocks) == 2


def test_a_long_common_system_prompt_counts_whatever_follows() -> None:
    text = "You are a helpful assistant of a large company. " * 100
    one, other = (prompt_chain(chat(Turn("system", [Text(text + end)]), user(end))) for end in ("A", "B"))
    assert shared(one, other) == len(text) // 256
    assert sum(block.tokens for block in one.blocks[: shared(one, other)]) > 0.9 * len(text) / 4


def test_a_sound_begins_like_a_longer_sound() -> None:
    samples = b"".join(struct.pack("<h", number % 1000) for number in range(80_000))
    part, whole = (prompt_chain(media(wav(pcm, 16_000), "audio")) for pcm in (samples[:100_000], samples))
    assert shared(part, whole) == 3  # three whole seconds
    assert [block.tokens for block in whole.blocks[:3]] == [13, 13, 13]


# --- its size ---------------------------------------------------------------------------------------------------------


def test_every_block_has_a_token_and_texts_have_about_one_for_four_bytes() -> None:
    chain = prompt_chain(chat(user("é" * 500), user("")))
    assert chain.tokens == 250
    assert all(block.tokens >= 1 for block in prompt_chain(media(b"")).blocks)


def test_a_picture_that_is_made_small_has_few_tokens() -> None:
    data = bytes(400_000)
    assert prompt_chain(media(data)).blocks[0].tokens == 400_000 // 256
    assert prompt_chain(media(data, size=PictureSize(max_pixels=102_400))).blocks[0].tokens == 100
    assert prompt_chain(media(bytes(100_000_000))).blocks[0].tokens == 16_384


def test_a_wrong_header_makes_no_large_number_of_tokens() -> None:
    data = bytearray(wav(bytes(64 * 1024)))
    data[28:32] = bytes(4)
    assert prompt_chain(media(bytes(data), "audio")).blocks[0].tokens == 128


def test_a_chain_has_a_limited_number_of_blocks() -> None:
    assert len(prompt_chain(chat(user("x" * 5_000_000), user("y" * 1000))).blocks) == module._MOST_BLOCKS


@pytest.mark.parametrize(("size", "in_thread"), [(INLINE_BYTES // 2, False), (2 * INLINE_BYTES, True)])
async def test_large_requests_are_hashed_in_a_thread(
    size: int, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def recorded(request: ChatRequest) -> PromptChain:
        threads.append(threading.current_thread())
        return prompt_chain(request)

    monkeypatch.setattr(module, "prompt_chain", recorded)
    request = media(bytes(size))
    assert await chain_of(request, asyncio.to_thread) == prompt_chain(request)
    assert (threads[0] is not threading.main_thread()) == in_thread


# --- requests of clients ----------------------------------------------------------------------------------------------


def with_picture(text: str, picture: bytes, **part: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}, **part}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}]}


async def chains_of(*bodies: dict[str, Any], compared: bool = True) -> list[PromptChain]:
    """The chains with which the gateway sends these requests to the pipeline."""
    pipeline = ScriptedPipeline(["Fine."])
    pipeline.compares_prompts = compared
    async with serving(pipeline) as served:
        chains = []
        for body in bodies:
            status, answer = await served.post(body)
            assert status == 200, answer
            request_id = await pipeline.submitted.get()
            assert pipeline.counted[request_id] == (11, 4)
            chains.append(pipeline.chains[request_id])
    return chains


async def test_equal_requests_have_equal_keys_and_other_media_or_options_have_other_keys() -> None:
    one, equal, text, picture, small = await chains_of(
        with_picture("What?", PICTURE),
        with_picture("What?", PICTURE) | {"temperature": 0.5, "max_tokens": 3},
        with_picture("Who?", PICTURE),
        with_picture("What?", PICTURE + b"x"),
        with_picture("What?", PICTURE, max_pixels=100_000),
    )
    assert one == equal != UNKNOWN_PROMPT
    assert [shared(one, other) for other in (text, picture, small)] == [1, 0, 0]


async def test_options_for_clips_have_other_keys() -> None:
    url = f"data:video/mp4;base64,{base64.b64encode(PICTURE).decode()}"
    body = {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]}
    one, equal, slow, longer = await chains_of(body, body, body | {"video_fps": 1}, body | {"video_max_frames": 9})
    assert one == equal
    assert [shared(one, other) for other in (slow, longer)] == [0, 0]


async def test_nothing_is_hashed_if_the_pipeline_does_not_compare_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "prompt_chain", None)
    assert await chains_of(with_picture("What?", PICTURE), compared=False) == [UNKNOWN_PROMPT]


async def test_the_responses_of_a_session_have_a_common_beginning() -> None:
    pipeline = ScriptedPipeline()
    pipeline.compares_prompts = True
    prompts = []
    async with serving(pipeline) as served, talking(served.url) as talk:
        for turn in range(3):
            await talk.say(f"Question {turn}?")
            await talk.send("response.create")
            async with asyncio.timeout(10):
                request_id = await pipeline.submitted.get()
            pipeline.call(request_id, text="An answer.", ids=[100 + turn, 7])
            pipeline.finish(request_id)
            await talk.until("response.done")
            assert [each.ids for each in pipeline.bodies[request_id].turns if each.role == "assistant"] == [
                [100 + earlier, 7] for earlier in range(turn)
            ]
            prompts.append(pipeline.chains[request_id])
    for earlier, later in itertools.pairwise(prompts):
        assert shared(earlier, later) == len(earlier.blocks) < len(later.blocks)
