"""A checkpoint without speech, like Qwen3-Omni-30B-A3B-Thinking, is served with the text stages. Its answers are those
of the reference, divided into reasoning and content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests
from transformers import LogitsProcessor, LogitsProcessorList

from stages.topology import QWEN3_OMNI
from tests.reference import NEAR_TIE, Conversation, Reference, differs
from tests.server import Server


@pytest.fixture(scope="module")
def reference(checkpoints) -> Reference:
    return Reference(checkpoints("thinking"))


def test_the_server_starts_the_text_stages_and_says_why(reasoner: Server) -> None:
    assert (
        "Text only: the checkpoint cannot speak, because its config.json says enable_audio_output: false."
        in reasoner.log.read_text()
    )
    status, report = reasoner.health()
    assert status == 200
    assert report["stages"].keys() == QWEN3_OMNI.text_stages
    [model] = requests.get(f"{reasoner.url}/v1/models", timeout=10).json()["data"]
    assert model["id"] == "thinking"


@pytest.mark.parametrize("fields", [{"modalities": ["text", "audio"]}, {"modalities": ["audio"], "stream": True}])
def test_a_request_for_audio_is_refused(reasoner: Server, fields: dict) -> None:
    status, answer = reasoner.post({"messages": [{"role": "user", "content": "Hi"}], **fields})
    assert status == 400
    assert answer["error"]["param"] == "modalities"
    assert "this server does not speak" in answer["error"]["message"]


def asked(repository: Path) -> dict[str, list[dict]]:
    """The content of user messages, in the format of the API."""
    data = repository / "tests" / "data"
    sound = {"type": "audio_url", "audio_url": {"url": str(data / "query_to_cars.wav")}}
    picture = {"type": "image_url", "image_url": {"url": str(data / "cars.jpg")}}
    clip = {"type": "video_url", "video_url": {"url": str(data / "draw.mp4")}}
    return {
        "text": [{"type": "text", "text": "How many cars are there?"}],
        "a sound alone": [sound],
        "a picture and text": [picture, {"type": "text", "text": "What is this?"}],
        "everything": [clip, picture, sound, {"type": "text", "text": "Why?"}],
    }


def conversation(name: str, content: list[dict]) -> Conversation:
    """A conversation with a message of this content, in the format of the reference."""
    parts = []
    for part in content:
        kind = part["type"].removesuffix("_url")
        parts.append({"type": kind, kind: part["text"] if kind == "text" else part[part["type"]]["url"]})
    return Conversation(name, [{"role": "user", "content": parts}])


@pytest.mark.parametrize("name", ["text", "a sound alone", "a picture and text", "everything"])
def test_greedy_answers_are_those_of_the_reference(
    reasoner: Server, reference: Reference, repository: Path, name: str
) -> None:
    content = asked(repository)[name]
    truth = reference.greedy(conversation(name, content), 64)
    status, answer = reasoner.post(
        {"messages": [{"role": "user", "content": content}], "max_tokens": 64, "return_token_ids": True}
    )
    assert status == 200, answer
    at = differs(answer["choices"][0]["token_ids"], truth)
    assert at is None or truth.margins[at] < NEAR_TIE


OPEN, CLOSE = "<think>", "</think>"
QUESTIONS = ("Hello!", "How many cars are there?", "What is 2+2?", "Tell me a story about a dragon.", "why", "a")


def asking(question: str, **fields: object) -> dict:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 64, "return_token_ids": True, **fields}


def answered(reasoner: Server, body: dict) -> tuple[dict, dict]:
    """The only choice of an answer, and its usage."""
    status, answer = reasoner.post(body)
    assert status == 200, answer
    [choice] = answer["choices"]
    return choice, answer["usage"]


def ids_of(reference: Reference, *tokens: str) -> list[int]:
    return reference.processor.tokenizer.convert_tokens_to_ids(list(tokens))


def divided(reference: Reference, ids: list[int]) -> tuple[str, str, int]:
    """Reasoning, content and number of tokens of the reasoning, from the ids of an answer."""
    begin, end, stop = ids_of(reference, OPEN, CLOSE, "<|im_end|>")
    ids = ids[:-1] if ids[-1:] == [stop] else ids
    decode = reference.processor.tokenizer.decode
    if ids[:1] != [begin]:
        return "", decode(ids), 0
    at = ids.index(end) if end in ids else len(ids)
    return decode(ids[1:at]), decode(ids[at + 1 :]), min(at + 1, len(ids))


@pytest.mark.parametrize("question", QUESTIONS)
def test_reasoning_is_apart_from_the_content_and_counted(reasoner: Server, reference: Reference, question: str) -> None:
    choice, usage = answered(reasoner, asking(question))
    reasoning, content, tokens = divided(reference, choice["token_ids"])
    assert tokens > 0
    assert choice["message"]["reasoning_content"] == reasoning
    assert choice["message"]["content"] == content
    assert usage["completion_tokens_details"]["reasoning_tokens"] == tokens
    assert usage["completion_tokens"] == len(choice["token_ids"])


def test_the_questions_have_answers_with_and_without_the_end_of_reasoning(
    reasoner: Server, reference: Reference
) -> None:
    contents = [bool(divided(reference, answered(reasoner, asking(q))[0]["token_ids"])[1]) for q in QUESTIONS]
    assert {True, False} == set(contents)


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_that_is_not_divided_has_the_same_text(reasoner: Server, reference: Reference, question: str) -> None:
    separate, _ = answered(reasoner, asking(question))
    whole, usage = answered(reasoner, asking(question, separate_reasoning=False))
    assert whole["token_ids"] == separate["token_ids"]
    assert "reasoning_content" not in whole["message"]
    closing = CLOSE if ids_of(reference, CLOSE)[0] in separate["token_ids"] else ""
    parts = separate["message"]["reasoning_content"], closing, separate["message"]["content"]
    assert whole["message"]["content"] == OPEN + "".join(parts)
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_stream_sends_reasoning_before_content(reasoner: Server) -> None:
    body = asking("How many cars are there?")
    whole, _ = answered(reasoner, body)
    with openai.OpenAI(base_url=f"{reasoner.url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="thinking", messages=body["messages"], max_tokens=64, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    kinds = ["reasoning" if getattr(delta, "reasoning_content", None) else "content" if delta.content else ""
             for delta in deltas]  # fmt: skip
    kinds = [kind for kind in kinds if kind]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds.count("reasoning") > 1
    assert (
        "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        == (whole["message"]["reasoning_content"])
    )
    assert "".join(delta.content or "" for delta in deltas) == whole["message"]["content"]
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0


class Close(LogitsProcessor):
    """Forces the end of reasoning after `budget` tokens of reasoning."""

    def __init__(self, prompt: int, begin: int, end: int, budget: int) -> None:
        self._prompt, self._begin, self._end, self._budget = prompt, begin, end, budget

    def __call__(self, input_ids, scores):
        ids = input_ids[0, self._prompt :].tolist()
        if ids[:1] == [self._begin] and self._end not in ids and len(ids) - 1 >= self._budget:
            scores = scores.new_full(scores.shape, -float("inf"))
            scores[0, self._end] = 0
        return scores


@pytest.mark.parametrize("budget", [0, 3, 1000])
@pytest.mark.parametrize("question", QUESTIONS[:2])
def test_a_limit_on_reasoning_equals_a_reference_that_forces_its_end(
    reasoner: Server, reference: Reference, question: str, budget: int
) -> None:
    inputs = reference.inputs(conversation("budget", [{"type": "text", "text": question}]))
    begin, end, stop = ids_of(reference, OPEN, CLOSE, "<|im_end|>")
    prompt = inputs["input_ids"].shape[1]
    ids = reference.model.thinker.generate(
        **inputs, do_sample=False, max_new_tokens=48, eos_token_id=stop,
        logits_processor=LogitsProcessorList([Close(prompt, begin, end, budget)]),
    )[0, prompt:].tolist()  # fmt: skip
    choice, usage = answered(reasoner, asking(question, max_tokens=48, thinking_token_budget=budget))
    assert choice["token_ids"] == ids
    assert usage["completion_tokens_details"]["reasoning_tokens"] <= budget + 2


def test_a_limit_on_reasoning_holds_for_each_sampled_choice(reasoner: Server, reference: Reference) -> None:
    body = asking("Tell me a story.", n=4, seed=5, temperature=1.0, thinking_token_budget=2, max_tokens=32)
    status, answer = reasoner.post(body)
    assert status == 200
    begin, end = ids_of(reference, OPEN, CLOSE)
    for choice in answer["choices"]:
        ids = choice["token_ids"]
        assert ids[0] != begin or end in ids[:4] or len(ids) < 4


@pytest.mark.parametrize("off", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_reasoning_can_be_switched_off(reasoner: Server, reference: Reference, off: dict) -> None:
    prompt = reference.processor.apply_chat_template(
        [{"role": "user", "content": "Hello!"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    ids = reference.processor.tokenizer(prompt, return_tensors="pt")
    stop = ids_of(reference, "<|im_end|>")[0]
    truth = reference.model.thinker.generate(**ids, do_sample=False, max_new_tokens=32, eos_token_id=stop)
    choice, usage = answered(reasoner, asking("Hello!", max_tokens=32, **off))
    assert choice["token_ids"] == truth[0, ids["input_ids"].shape[1] :].tolist()
    assert usage["prompt_tokens"] == ids["input_ids"].shape[1]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    assert "reasoning_content" not in choice["message"]


def test_an_answer_cut_off_in_its_reasoning_says_so(reasoner: Server) -> None:
    choice, usage = answered(reasoner, asking("Tell me a story about a dragon.", max_tokens=4, logprobs=True))
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 4
    assert len(choice["logprobs"]["content"]) == 4


HISTORY = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "reasoning_content": "A greeting.\n", "content": "Hello"},
    {"role": "user", "content": "How many cars?"},
]


@pytest.mark.parametrize(
    "messages",
    [
        HISTORY,
        HISTORY[:2],
        [*HISTORY[:1], {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello"}],
        [*HISTORY[:1], {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello"}, HISTORY[2]],
    ],
)
def test_a_history_with_reasoning_is_read_as_by_the_reference(
    reasoner: Server, reference: Reference, messages: list[dict]
) -> None:
    prompt = reference.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = reference.processor.tokenizer(prompt, return_tensors="pt")
    stop = ids_of(reference, "<|im_end|>")[0]
    truth = reference.model.thinker.generate(**ids, do_sample=False, max_new_tokens=24, eos_token_id=stop)
    choice, usage = answered(reasoner, asking("", max_tokens=24) | {"messages": messages})
    assert usage["prompt_tokens"] == ids["input_ids"].shape[1]
    assert choice["token_ids"] == truth[0, ids["input_ids"].shape[1] :].tolist()


def test_a_budget_is_refused_by_a_model_that_does_not_reason(server: Server) -> None:
    status, answer = server.post(
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "thinking_token_budget": 5}
    )
    assert (status, answer["error"]["param"]) == (400, "thinking_token_budget")


SCHEMA = {
    "type": "object",
    "properties": {"cars": {"type": "integer"}, "color": {"enum": ["red", "blue"]}},
    "required": ["cars", "color"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "cars", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}])
@pytest.mark.parametrize("question", QUESTIONS[:3])
def test_a_grammar_holds_for_the_content_only(
    reasoner: Server, reference: Reference, question: str, sampling: dict
) -> None:
    free, _ = answered(reasoner, asking(question, thinking_token_budget=6, **sampling))
    choice, usage = answered(reasoner, asking(question, thinking_token_budget=6, response_format=FORMAT, **sampling))
    begin, end = ids_of(reference, OPEN, CLOSE)
    # In the reasoning, the end of the text is banned. The ban changes sampled tokens, but not the best token while the
    # reasoning is open.
    if not sampling and free["token_ids"][0] == begin and end in free["token_ids"]:
        length = free["token_ids"].index(end) + 1
        assert choice["token_ids"][:length] == free["token_ids"][:length]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == length
    if choice["finish_reason"] == "stop":
        assert json.loads(choice["message"]["content"])["color"] in ("red", "blue")
    else:
        assert choice["message"]["content"].startswith("{")


@pytest.fixture
def client(reasoner: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{reasoner.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_the_reasoning_and_content_of_chat(
    reasoner: Server, client: openai.OpenAI, question: str, stream: bool
) -> None:
    choice, usage = answered(reasoner, asking(question))
    options = {"model": "thinking", "input": question, "max_output_tokens": 64}
    if stream:
        events = list(client.responses.create(**options, stream=True))
        deltas = [event for event in events if event.type.endswith(".delta")]
        order = [event.type for event in deltas]
        assert order == sorted(order, reverse=True)  # reasoning_text before output_text
        response = events[-1].response
        assert (
            "".join(event.delta for event in deltas if event.type == "response.reasoning_text.delta")
            == (choice["message"]["reasoning_content"])
        )
    else:
        response = client.responses.create(**options)
    reasoning = response.output[0]
    assert (reasoning.type, reasoning.content[0].text) == ("reasoning", choice["message"]["reasoning_content"])
    assert response.output_text == choice["message"]["content"]
    counts = response.usage
    assert counts.output_tokens_details.reasoning_tokens == usage["completion_tokens_details"]["reasoning_tokens"]
    assert (counts.input_tokens, counts.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])


def test_the_effort_and_the_limit_of_a_response_act(client: openai.OpenAI) -> None:
    options = {"model": "thinking", "input": "Hello!", "max_output_tokens": 32}
    silent = client.responses.create(**options, reasoning={"effort": "none"})
    assert [item.type for item in silent.output] == ["message"]
    assert silent.usage.output_tokens_details.reasoning_tokens == 0
    short = client.responses.create(**options, extra_body={"thinking_token_budget": 2})
    assert short.usage.output_tokens_details.reasoning_tokens <= 4
    assert [item.type for item in short.output] == ["reasoning", "message"]


def test_the_output_of_a_response_is_read_again_as_chat_reads_it(reasoner: Server, client: openai.OpenAI) -> None:
    """The chat template writes only reasoning that comes after the last question. In this test, the reasoning of the
    first response comes after the last question, so the second prompt must contain this reasoning.
    """
    first = client.responses.create(
        model="thinking", input="Hello!", max_output_tokens=32, extra_body={"thinking_token_budget": 4}
    )
    reasoning, message = first.output
    turns = [{"role": "user", "content": "Hello!"}, *first.output]
    again = client.responses.create(model="thinking", input=turns, max_output_tokens=16)
    said = {"role": "assistant", "reasoning_content": reasoning.content[0].text, "content": first.output_text}
    _, usage = answered(reasoner, asking("", max_tokens=16) | {"messages": [turns[0], said]})
    assert again.usage.input_tokens == usage["prompt_tokens"]
    without = client.responses.create(model="thinking", input=[turns[0], message], max_output_tokens=16)
    assert without.usage.input_tokens != again.usage.input_tokens


def test_a_format_holds_for_the_text_of_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="thinking", input="How many cars?", max_output_tokens=64,
        text={"format": {"type": "json_schema", "name": "cars", "schema": SCHEMA, "strict": True}},
        extra_body={"thinking_token_budget": 6},
    )  # fmt: skip
    assert response.status == "completed"
    assert json.loads(response.output_text)["color"] in ("red", "blue")
