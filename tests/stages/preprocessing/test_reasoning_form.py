"""The marks of a model's reasoning are found, and a prompt that ends inside reasoning is noticed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from omni_pipeline.errors import StartupError
from stages.messages import ReasoningForm
from stages.preprocessing.reasoning_form import ReasoningMarks, find_reasoning_marks

TEMPLATE = "{{ '<think>\n\n</think>' }}"
VOCABULARY = {"<think>": 90, "</think>": 91, "<|im_start|>": 80}
FORM = ReasoningForm("<think>", "</think>", 90, 91, "<tool_call>")


def marks(
    setting: str, *, speaks: bool = False, template: str = TEMPLATE, vocabulary: dict[str, int] = VOCABULARY
) -> ReasoningMarks | None:
    tokenizer: Any = SimpleNamespace(get_vocab=lambda: vocabulary)
    return find_reasoning_marks(tokenizer, template, setting, speaks=speaks)


def test_automatic_is_qwen3_for_a_silent_model_whose_template_reasons() -> None:
    assert marks("auto") == marks("qwen3") == ReasoningMarks(FORM, always=False, turn_id=80)


@pytest.mark.parametrize(
    ("setting", "fields"),
    [
        ("auto", {"speaks": True}),
        ("auto", {"template": "{{ 'a' }}"}),
        ("auto", {"vocabulary": {"<|im_start|>": 80}}),
        ("none", {}),
    ],
)
def test_other_models_do_not_reason(setting: str, fields: dict[str, Any]) -> None:
    assert marks(setting, **fields) is None


def test_a_parser_can_be_set_for_every_model_that_has_its_markers() -> None:
    found = marks("qwen3", speaks=True, template="{{ 'a' }}")
    assert found is not None
    with pytest.raises(StartupError, match=r"'qwen3' cannot be used: </think> is not a token of the model"):
        marks("qwen3", vocabulary={"<think>": 90})


@pytest.mark.parametrize("setting", ["qwen3-thinking", "deepseek-r1"])
def test_some_parsers_expect_reasoning_unless_the_prompt_has_closed_it(setting: str) -> None:
    found = marks(setting)
    assert found is not None
    assert found.after(numpy.array([80, 1])).begun
    assert not found.after(numpy.array([80, 90, 91, 2])).begun


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ([80, 1], False),
        ([80, 1, 90], True),
        ([80, 1, 90, 3], True),
        ([80, 1, 90, 3, 91, 3], False),
        ([80, 1, 90, 80, 2], False),  # in an earlier turn
        ([1], False),
        ([], False),
    ],
)
def test_the_last_turn_says_whether_the_answer_begins_inside_reasoning(prompt: list[int], begun: bool) -> None:
    found = marks("auto")
    assert found is not None
    assert found.after(numpy.array(prompt, numpy.int64)).begun is begun
