"""OpenAI's own client library works with the server as it does with OpenAI."""

from __future__ import annotations

import asyncio
import base64
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server import Server

QUESTION = "How many cars are there in the picture?"
TOKENS = 24
# With this field, the answer does not stop at the end of the turn, but at the token limit.
ON_AND_ON = {"ignore_eos": True}


def ask(client: openai.OpenAI, content: Any = QUESTION, **options: Any) -> ChatCompletion:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="qwen3-omni", messages=messages, **{"max_tokens": TOKENS} | options)


def ask_streamed(client: openai.OpenAI, content: Any = QUESTION, **options: Any) -> list[ChatCompletionChunk]:
    return list(ask(client, content, stream=True, **options))  # type: ignore[call-overload]


def text(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def text_of_chunks(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def finish_reasons(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]


@pytest.fixture(scope="module")
def greedy(client: openai.OpenAI) -> str:
    """The first `TOKENS` tokens of the greedy answer to `QUESTION`."""
    return text(ask(client, extra_body=ON_AND_ON))


# --- whole and streamed -----------------------------------------------------------------------------------------------


def test_an_answer_has_all_that_the_api_promises(client: openai.OpenAI, greedy: str) -> None:
    answer = ask(client, extra_body=ON_AND_ON)
    [choice] = answer.choices
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", "qwen3-omni", "chatcmpl-")
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert choice.message.content == greedy
    assert len(greedy) > TOKENS


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: openai.OpenAI, greedy: str) -> None:
    chunks = ask_streamed(client, extra_body=ON_AND_ON)
    assert text_of_chunks(chunks) == greedy
    assert finish_reasons(chunks) == ["length"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > TOKENS / 2
    assert all(chunk.usage is None for chunk in chunks)


def test_an_answer_ends_by_itself_with_stop(client: openai.OpenAI) -> None:
    """The checkpoint is random, so only some of the first hundred questions have an answer that ends."""
    for number in range(100):
        answer = ask(client, f"Question {number}", max_tokens=200)
        if answer.choices[0].finish_reason == "stop":
            break
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 200
    chunks = ask_streamed(client, f"Question {number}", max_tokens=200)
    assert (text_of_chunks(chunks), finish_reasons(chunks)) == (text(answer), ["stop"])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("limit", [1, 5])
def test_the_limit_on_tokens_ends_an_answer_with_length(client: openai.OpenAI, field: str, limit: int) -> None:
    answer = ask(client, extra_body=ON_AND_ON, **{"max_tokens": openai.omit, field: limit})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == limit


def test_usage_adds_up_and_counts_the_media(client: openai.OpenAI) -> None:
    files = {"images": ["tests/data/cars.jpg"], "audios": ["tests/data/query_to_cars.wav"]}
    usage = ask(client, "", extra_body=ON_AND_ON | files).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens == TOKENS
    details = usage.prompt_tokens_details.model_dump()
    assert details["image_tokens"] == 300  # one token for each 32×32 pixels of 640×480
    assert 0 < (details["audio_tokens"] or 0) < usage.prompt_tokens - 300
    assert details["video_tokens"] == 0


def test_include_usage_puts_it_into_a_last_chunk_without_choices(client: openai.OpenAI) -> None:
    *others, last = ask_streamed(client, stream_options={"include_usage": True}, extra_body=ON_AND_ON)
    whole = ask(client, extra_body=ON_AND_ON).usage
    assert whole is not None
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens) == ([], TOKENS)
    assert last.usage.prompt_tokens == whole.prompt_tokens
    assert all(chunk.usage is None and chunk.choices for chunk in others)


# --- media ------------------------------------------------------------------------------------------------------------


def data_url(kind: str, file: Path) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


@pytest.mark.parametrize("form", ["path", "absolute path", "file URL", "data URL"])
@pytest.mark.parametrize(
    ("part", "listed", "name"),
    [("image_url", "images", "cars.jpg"), ("audio_url", "audios", "query_to_cars.wav"),
     ("video_url", "videos", "draw.mp4")],
)  # fmt: skip
def test_a_medium_is_the_same_whatever_way_it_comes(
    client: openai.OpenAI, repository: Path, part: str, listed: str, name: str, form: str
) -> None:
    file = repository / "tests" / "data" / name
    address = {
        "path": f"tests/data/{name}",
        "absolute path": str(file),
        "file URL": file.as_uri(),
        "data URL": data_url("application/octet-stream", file),
    }[form]
    expected = ask(client, extra_body={listed: [f"tests/data/{name}"]})
    answer = ask(client, [{"type": part, part: {"url": address}}, {"type": "text", "text": QUESTION}])
    assert text(answer) == text(expected)
    assert answer.usage is not None
    assert expected.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens > 40


def test_input_audio_is_heard(client: openai.OpenAI, data: Path) -> None:
    sound = base64.b64encode((data / "query_to_cars.wav").read_bytes()).decode()
    answer = ask(client, [{"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}])
    assert text(answer) == text(ask(client, "", extra_body={"audios": ["tests/data/query_to_cars.wav"]}))
    assert text(answer) != text(ask(client, ""))


def test_media_stand_where_their_parts_stand(client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "tests/data/cars.jpg", "detail": "high"}}
    words = {"type": "text", "text": QUESTION}
    assert text(ask(client, [image, words])) != text(ask(client, [words, image]))


# --- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False], ids=["special tokens shown", "special tokens left out"])
def test_logprobs_are_those_of_the_text_and_sane(client: openai.OpenAI, greedy: str, special: bool) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3, extra_body=ON_AND_ON | {"skip_special_tokens": not special})
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.content
    assert tokens is not None
    assert (len(tokens) == TOKENS) == special
    shown = b"".join(bytes(token.bytes or ()) for token in tokens).decode(errors="replace")
    assert shown == text(answer)
    assert (shown == greedy) == (not special)
    for token in tokens:
        best, *others = token.top_logprobs
        # The answer is greedy, so the best candidate is the chosen token.
        assert (best.token, best.bytes, best.logprob) == (token.token, token.bytes, token.logprob)
        assert len(others) == 2
        assert best.logprob >= others[0].logprob >= others[1].logprob
        assert sum(math.exp(candidate.logprob) for candidate in token.top_logprobs) <= 1.000001


def test_streamed_logprobs_are_the_whole_answers(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "extra_body": ON_AND_ON}
    whole = ask(client, **options).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    streamed = [
        token
        for chunk in ask_streamed(client, **options)
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    assert [token.token for token in streamed] == [token.token for token in whole.content]
    for ours, theirs in zip(streamed, whole.content, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [top.token for top in ours.top_logprobs] == [top.token for top in theirs.top_logprobs]


def test_logprobs_without_alternatives(client: openai.OpenAI) -> None:
    logprobs = ask(client, logprobs=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert all(token.top_logprobs == [] and token.logprob <= 0 for token in logprobs.content)


# --- stop strings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 20])
@pytest.mark.parametrize("at", [0, 13, 30])
def test_a_stop_string_ends_the_answer_and_is_never_shown(
    client: openai.OpenAI, greedy: str, at: int, length: int
) -> None:
    stop = greedy[at : at + length]
    expected = greedy[: greedy.index(stop)]
    answer = ask(client, stop=stop, extra_body=ON_AND_ON)
    assert (text(answer), answer.choices[0].finish_reason) == (expected, "stop")
    chunks = ask_streamed(client, stop=stop, extra_body=ON_AND_ON)
    assert (text_of_chunks(chunks), finish_reasons(chunks)) == (expected, ["stop"])


def test_of_several_stop_strings_the_first_in_the_text_counts(client: openai.OpenAI, greedy: str) -> None:
    early, late = greedy[10:14], greedy[30:34]
    answer = ask(client, stop=["not in there", late, early], extra_body=ON_AND_ON)
    assert text(answer) == greedy[: greedy.index(early)]


def test_a_stop_string_that_does_not_come_changes_nothing(client: openai.OpenAI, greedy: str) -> None:
    # the stop string begins with the answer's last characters, so these characters are held back until the limit
    stop = greedy[-3:] + "\x00"
    answer = ask(client, stop=stop, extra_body=ON_AND_ON)
    assert (text(answer), answer.choices[0].finish_reason) == (greedy, "length")
    assert text_of_chunks(ask_streamed(client, stop=stop, extra_body=ON_AND_ON)) == greedy


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_a_seed_repeats_streamed_or_not_and_in_company(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> str:
        return text(ask(client, temperature=1, seed=seed, extra_body=ON_AND_ON))

    alone = {seed: sampled(seed) for seed in range(8)}
    assert len(set(alone.values())) == 8
    streamed = ask_streamed(client, temperature=1, seed=3, extra_body=ON_AND_ON)
    assert text_of_chunks(streamed) == alone[3]
    with ThreadPoolExecutor(8) as clients:
        together = dict(zip(alone, clients.map(sampled, alone), strict=True))
    assert together == alone


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    assert len({text(ask(client, temperature=1, extra_body=ON_AND_ON)) for _ in range(4)}) > 1


# --- models and errors ------------------------------------------------------------------------------------------------


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == ("qwen3-omni", "model")
    assert client.models.retrieve("qwen3-omni") == model


def test_n_of_one_is_one_answer(client: openai.OpenAI) -> None:
    assert len(ask(client, n=1).choices) == 1


def test_several_choices_are_streamed_beside_each_other(client: openai.OpenAI) -> None:
    drawn = {"temperature": 1, "seed": 3, "n": 4, "max_tokens": 8}
    whole = ask(client, **drawn)
    texts, reasons, order = [""] * 4, {}, []
    for chunk in ask(client, **drawn, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            order.append(choice.index)
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert order != sorted(order)  # no choice waits for the end of another choice
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == ask(client, max_tokens=1).usage.prompt_tokens


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"n": 17}, "n", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
        ({"response_format": {"type": "json_object"}, "extra_body": {"regex": "a"}}, "regex", "invalid_value"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", "invalid_grammar"),
        ({"extra_body": {"images": ["no/such.jpg"]}}, "images[0]", "media_not_found"),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
         "messages[0].content[0].image_url.url", "invalid_image"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_bad_request_is_a_bad_request_error(
    client: openai.OpenAI, options: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=stream, **options)
    assert (caught.value.status_code, caught.value.param, caught.value.code) == (400, param, code)
    assert caught.value.type == "invalid_request_error"


def test_what_is_not_there_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="only model is 'qwen3-omni'") as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="no endpoint POST /v1/embeddings"):
        client.embeddings.create(model="qwen3-omni", input="x")


def test_a_medium_beyond_the_limit_is_an_api_status_error(client: openai.OpenAI, repository: Path) -> None:
    (repository / "large.bin").write_bytes(bytes(5 * 1024 * 1024))
    with pytest.raises(openai.APIStatusError, match="is larger than the 4194304 bytes") as caught:
        ask(client, extra_body={"videos": ["large.bin"]})
    assert (caught.value.status_code, caught.value.code) == (413, "media_too_large")


# --- many requests at once, and clients that disconnect ---------------------------------------------------------------


async def test_eight_streams_at_once_equal_eight_alone(server: Server, client: openai.OpenAI) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        (QUESTION, {}),
        (QUESTION, {"images": ["tests/data/cars.jpg"]}),
        ("", {"audios": ["tests/data/query_to_cars.wav"]}),
        ("", {"images": ["tests/data/cars.jpg"], "audios": ["tests/data/query_to_cars.wav"]}),
        ("What is being drawn?", {"videos": ["tests/data/draw.mp4"]}),
        ("What is being drawn?", {"videos": ["tests/data/draw.mp4"], "use_audio_in_video": True}),
        ("Hello", {}),
        ("1 2 3 4 5", {}),
    ]
    alone = [text(ask(client, content, extra_body=more | ON_AND_ON)) for content, more in requests]

    async def streamed(client: openai.AsyncOpenAI, content: str, more: dict[str, Any]) -> str:
        chunks = await client.chat.completions.create(
            model="qwen3-omni",
            messages=[{"role": "user", "content": content}],
            max_tokens=TOKENS,
            stream=True,
            extra_body=more | ON_AND_ON,
        )
        return text_of_chunks([chunk async for chunk in chunks])

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as others:
        together = await asyncio.gather(*(streamed(others, content, more) for content, more in requests))
    assert together == alone
    assert len(set(alone)) == 8


def test_a_stream_that_is_closed_early_frees_every_stage(server: Server, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="qwen3-omni",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=20_000,
        stream=True,
        extra_body=ON_AND_ON | {"images": ["tests/data/cars.jpg"]},
    )
    next(iter(stream))
    server.until(lambda: server.live_requests()["thinker"] == 1 == server.live_requests()["decode"], 5)
    stream.close()
    server.until(lambda: not any(server.live_requests().values()), 5)
