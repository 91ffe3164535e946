"""Every sampling field changes the answer as documented. If the reference has the same field, the change equals the
reference's change.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.equality.conversations import request
from tests.reference import NEAR_TIE, Conversation, Reference, differs
from tests.served.streams import DONE, stream
from tests.server import Server

TOKENS = 32
QUESTION = "Tell me about the sea."


def ask(server: Server, **fields: Any) -> dict[str, Any]:
    """The only choice of the answer to `QUESTION`, or to the given `messages`, with its token ids."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS, "return_token_ids": True}
    status, answer = server.post(body | fields)
    assert status == 200, answer
    [choice] = answer["choices"]
    return choice


def ids(server: Server, **fields: Any) -> list[int]:
    return ask(server, **fields)["token_ids"]


@pytest.fixture(scope="module")
def greedy(server: Server) -> list[int]:
    return ids(server, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


def user(*parts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


PICTURE = {"type": "image", "image": "cars.jpg"}
SOUND = {"type": "audio", "audio": "query_to_cars.wav"}
CLIP = {"type": "video", "video": "draw.mp4"}
PENALISED = {
    "words": user({"type": "text", "text": QUESTION}),
    "echo": user({"type": "text", "text": "again " * 40}),
    "turns": [
        *user({"type": "text", "text": "Hi"}),
        {"role": "assistant", "content": [{"type": "text", "text": "Hello! How can I help?"}]},
        *user({"type": "text", "text": "Say more."}),
    ],
    "picture": user(PICTURE, {"type": "text", "text": "How many cars are there in the picture?"}),
    "sound": user(SOUND),
    "clip": user(CLIP, SOUND),
}


def conversation_of(name: str, data: Path) -> Conversation:
    messages = [
        message
        | {
            "content": [
                part if part["type"] == "text" else part | {part["type"]: str(data / part[part["type"]])}
                for part in message["content"]
            ]
        }
        for message in PENALISED[name]
    ]
    return Conversation(name, messages)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
@pytest.mark.parametrize("name", PENALISED)
def test_repetition_penalty_is_the_references(
    server: Server, reference: Reference, repository: Path, name: str, penalty: float
) -> None:
    """The penalty also applies to tokens of the prompt, including the placeholder ids of media."""
    conversation = conversation_of(name, repository / "tests" / "data")
    truth = reference.greedy(conversation, TOKENS, repetition_penalty=penalty)
    answer = ids(server, **request(conversation), repetition_penalty=penalty)
    at = differs(answer, truth)
    assert at is None or truth.margins[at] < NEAR_TIE


@pytest.mark.parametrize("name", ["words", "picture"])
def test_repetition_penalty_makes_a_difference(server: Server, repository: Path, name: str) -> None:
    body = request(conversation_of(name, repository / "tests" / "data"))
    assert ids(server, **body, repetition_penalty=1.3) != ids(server, **body)


def test_a_banned_token_makes_way_for_another(server: Server, greedy: list[int]) -> None:
    answer = ids(server, logit_bias={str(greedy[0]): -100}, ignore_eos=True)
    assert greedy[0] not in answer


def test_a_favoured_token_is_generated(server: Server, greedy: list[int]) -> None:
    favourite = greedy[0] - 1
    assert ids(server, logit_bias={str(favourite): 100}, max_tokens=4) == [favourite] * 4


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_penalties_on_the_answer_make_it_less_repetitive(server: Server, field: str) -> None:
    """A bias makes two tokens likely. The penalties make these tokens less likely, and the penalties do not depend on
    the prompt.
    """
    fond: dict[str, Any] = {"logit_bias": {"300": 9, "301": 9}, "ignore_eos": True}
    plain, penalised = (ids(server, **fond, **{field: penalty}) for penalty in (0, 2))
    repeats = [max(Counter(answer).values()) for answer in (plain, penalised)]
    assert repeats[1] < repeats[0]
    assert penalised == ids(server, **fond, **{field: 2})
    assert penalised[0] == plain[0]  # the first token has no earlier answer tokens, so no penalty applies


def test_frequency_penalty_grows_with_each_repetition_and_presence_penalty_does_not(server: Server) -> None:
    fond: dict[str, Any] = {"logit_bias": {"300": 30}, "ignore_eos": True, "max_tokens": 60}
    assert set(ids(server, **fond, presence_penalty=2)) == {300}
    assert set(ids(server, **fond, frequency_penalty=2)) > {300}


def test_min_tokens_holds_off_the_end_of_the_turn(server: Server) -> None:
    """The test uses a bias towards `<|im_end|>`. Without `min_tokens`, this bias makes every answer end at once."""
    end = im_end(server)
    assert ids(server, logit_bias={str(end): 100}) == [end]
    answer = ask(server, logit_bias={str(end): 100}, min_tokens=5)
    assert len(answer["token_ids"]) == 6
    assert answer["token_ids"].index(end) == 5
    assert answer["finish_reason"] == "stop"


def test_min_tokens_holds_off_stop_tokens(server: Server, greedy: list[int]) -> None:
    assert ids(server, stop_token_ids=[greedy[0]]) == greedy[:1]
    assert len(ids(server, stop_token_ids=[greedy[0]], min_tokens=3, ignore_eos=False)) > 3


def test_ignore_eos_goes_on_to_the_limit(server: Server) -> None:
    end = im_end(server)
    answer = ask(server, logit_bias={str(end): 100}, ignore_eos=True)
    assert answer["token_ids"] == [end] * TOKENS
    assert (answer["message"]["content"], answer["finish_reason"]) == ("", "length")


def im_end(server: Server) -> int:
    """The id that ends a turn."""
    return int(json.loads((server.checkpoint / "config.json").read_text())["im_end_token_id"])


@pytest.mark.parametrize("at", [0, 3, 10])
def test_a_stop_token_ends_the_answer_without_its_text(server: Server, greedy: list[int], at: int) -> None:
    stop = greedy[at]
    first = greedy.index(stop)
    answer = ask(server, stop_token_ids=[stop])
    assert (answer["token_ids"], answer["finish_reason"]) == (greedy[: first + 1], "stop")
    before = ask(server, max_tokens=first)["message"]["content"] if first else ""
    assert answer["message"]["content"] == before


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0, "top_p": 0.5, "seed": 1},
        {"temperature": 1e-300},
        {"temperature": 1.5, "top_k": 1},
        {"temperature": 1, "top_p": 1e-9},
        {"temperature": 1, "min_p": 1},
        {"top_k": -1},
        {"stage_sampling": {"thinker": {}}},
        {"stage_sampling": {"thinker": {"temperature": 0}}, "temperature": 2},
        {"stage_sampling": {"thinker": {"top_k": 1}}, "temperature": 2, "top_k": 1000},
    ],
    ids=str,
)
def test_these_are_all_greedy(server: Server, greedy: list[int], fields: dict[str, Any]) -> None:
    assert ids(server, **fields, ignore_eos=True) == greedy


@pytest.mark.parametrize(
    ("field", "value", "top_level"),
    [
        ("temperature", 0.7, 2.0),
        ("top_p", 0.5, 0.99),
        ("top_k", 3, 100),
        ("min_p", 0.3, 0.0),
        ("repetition_penalty", 1.5, 1.0),
        ("seed", 11, 12),
        ("max_tokens", 7, 30),
    ],
)
def test_the_thinkers_own_value_wins_over_the_requests(
    server: Server, field: str, value: float, top_level: float
) -> None:
    base: dict[str, Any] = {"temperature": 1.0, "seed": 11, "ignore_eos": True, "max_tokens": TOKENS}
    said = ids(server, **base | {field: value})
    assert ids(server, **base | {field: top_level, "stage_sampling": {"thinker": {field: value}}}) == said
    assert ids(server, **base | {field: top_level}) != said


@pytest.mark.parametrize("fields", [{"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.4}], ids=str)
def test_filters_leave_likely_tokens_only(server: Server, fields: dict[str, Any]) -> None:
    """Samples with a filter are always among the few tokens with the highest log-probabilities. Samples without a
    filter are not.
    """

    def ranks(**more: Any) -> list[int]:
        choice = ask(server, temperature=1, seed=5, ignore_eos=True, logprobs=True, top_logprobs=20, **more)
        return [
            next((rank for rank, top in enumerate(token["top_logprobs"]) if top["bytes"] == token["bytes"]), 20)
            for token in choice["logprobs"]["content"]
        ]

    assert max(ranks(**fields)) <= max(5, fields.get("top_k", 0)) < max(ranks())
    if "top_k" in fields:
        assert max(ranks(**fields)) < fields["top_k"]


def test_streamed_ids_are_the_whole_answers(server: Server, greedy: list[int]) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS, "ignore_eos": True}
    with stream(server, body | {"return_token_ids": True}) as events:
        deltas = [event["choices"][0] for event in events if event != DONE]
    assert [token for delta in deltas for token in delta.get("token_ids", ())] == greedy
