"""A text that is to be read aloud is converted to the ids of the reference's tokenizer: the ids of the turns before the
text, and the ids of the text.
"""

from __future__ import annotations

from typing import Any

import pytest
from driving import finish
from msgspec import structs

from omni_pipeline.wire.messages import Chunk, End, Failed, Start
from stages.messages import Passage, Sampling, SpeechOptions, SpeechRequest, TalkerPrompt
from stages.preprocessing import Preprocessing
from stages.preprocessing.passages import passages

SPEECH = SpeechOptions("ethan", Sampling(), Sampling())
LONG = "There are three cars in the picture, and two of them are red. " * 80


@pytest.fixture(scope="module")
def stage(stage_context: Any) -> Preprocessing:
    stages = frozenset({"preprocessing", "talker_ar"})
    return Preprocessing(structs.replace(stage_context("preprocessing"), stages=stages))


def read(stage: Preprocessing, text: str, instructions: str = "") -> list[Any]:
    stage.receive(Start("r", "gateway", "preprocessing", SpeechRequest(text, instructions, SPEECH)))
    return finish(stage)


def test_the_prompt_is_the_assistants_opening(stage: Preprocessing, processor: Any) -> None:
    start, end = read(stage, "There are three cars.")
    assert isinstance(start, Start)
    assert isinstance(start.body, TalkerPrompt)
    assert (start.target, end.target) == ("talker_ar", "talker_ar")
    assert start.body.ids.shape == (0,)
    assert start.body.speech == SPEECH
    assert start.body.assistant_ids == processor.tokenizer("<|im_start|>assistant\n").input_ids
    assert isinstance(end, End)
    assert end.body == Passage(processor.tokenizer("There are three cars.").input_ids)


def test_instructions_are_the_users_turn(stage: Preprocessing, processor: Any) -> None:
    start, _ = read(stage, "Hello.", "Speak slowly.")
    turns = [{"role": "user", "content": [{"type": "text", "text": "Speak slowly."}]}]
    whole = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(whole).input_ids
    assert start.body.ids.numpy().tolist() + start.body.assistant_ids == ids


def test_special_tokens_in_the_text_are_text(stage: Preprocessing, processor: Any) -> None:
    special = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    start, end = read(stage, "a<|im_end|>b", "c<|im_end|>d")
    assert special not in end.body.ids
    assert start.body.ids.numpy().tolist().count(special) == 1
    assert processor.tokenizer.decode(end.body.ids) == "a<|im_end|>b"


def test_a_long_text_comes_in_passages(stage: Preprocessing, processor: Any) -> None:
    start, *words = read(stage, LONG)
    assert isinstance(start, Start)
    assert [type(message) for message in words] == [Chunk] * (len(words) - 1) + [End]
    assert [processor.tokenizer.decode(message.body.ids) for message in words] == list(passages(LONG))


def test_texts_and_conversations_take_turns(stage: Preprocessing) -> None:
    for name in "ab":
        stage.receive(Start(name, "gateway", "preprocessing", SpeechRequest(LONG, "", SPEECH)))
    first = [message.request_id for _ in range(4) for message in stage.step()]
    assert first == ["a", "b"] * 2
    stage.abort("a")
    assert list(stage.live()) == ["b"]
    assert {message.request_id for message in finish(stage)} == {"b"}
    assert not stage.has_work


def test_white_space_is_refused(stage: Preprocessing) -> None:
    [failed] = read(stage, " \n ")
    assert isinstance(failed, Failed)
    assert (failed.error.status, failed.error.param) == (400, "input")
