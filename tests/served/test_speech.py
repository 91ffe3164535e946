"""Speech over HTTP works in all documented ways: with the usage guide's examples, with OpenAI's client, and with many
spoken answers at once.
"""

from __future__ import annotations

import base64
import io
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
import soundfile
import torch

from tests.reference import Conversation, SpokenReference
from tests.served.test_usage_guide import COMMON, EXAMPLES
from tests.server import Server

RATE = 24_000
FRAME = 1920


@pytest.fixture(scope="module")
def client(speaker: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speaker.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_guides_examples_speak(speaker: Server, example: str) -> None:
    status, answer = speaker.post(EXAMPLES[example] | COMMON | {"modalities": ["text", "audio"]})
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert message["content"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(message["audio"]["data"])))
    frames = answer["usage"]["completion_tokens_details"]["audio_tokens"]
    assert (rate, len(samples)) == (RATE, frames * FRAME - 555)
    assert frames > 0


def speak(client: openai.OpenAI, **fields: Any) -> Any:
    """Request a short spoken answer that is the same each time."""
    return client.chat.completions.create(
        **{
            "model": "qwen3-omni",
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "modalities": ["text", "audio"],
            "max_tokens": 12,
            "seed": 5,
            "extra_body": {"talker_max_new_tokens": 21},
            **fields,
        }
    )


def test_openais_client_plays_a_stream(client: openai.OpenAI) -> None:
    whole = speak(client, audio={"voice": "ethan", "format": "pcm16"}).choices[0].message
    text, sound, transcript = "", b"", None
    for chunk in speak(client, audio={"voice": "ethan", "format": "pcm16"}, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            audio = getattr(choice.delta, "audio", None) or {}
            sound += base64.b64decode(audio.get("data") or "")
            transcript = audio.get("transcript", transcript)
    assert text == transcript == whole.content == whole.audio.transcript
    assert sound == base64.b64decode(whole.audio.data)
    assert 0 < len(sound) / 2 / RATE <= 20 * 0.08


@pytest.mark.parametrize("audio_format", ["wav", "pcm16", "flac", "mp3", "opus", "aac"])
def test_every_format_arrives(client: openai.OpenAI, audio_format: str) -> None:
    answer = speak(client, audio={"voice": "Chelsie", "format": audio_format})
    assert len(base64.b64decode(answer.choices[0].message.audio.data)) > 1000


def test_sound_alone_has_its_text_in_the_transcript(client: openai.OpenAI) -> None:
    message = speak(client, modalities=["audio"], audio={"voice": "aiden", "format": "wav"}).choices[0].message
    assert message.content is None
    assert message.audio.transcript


@pytest.mark.parametrize("stream", [False, True])
def test_the_id_of_a_spoken_answer_stands_for_its_text(client: openai.OpenAI, stream: bool) -> None:
    """A later request has either the id of a spoken answer or the written text of this answer. In both cases, the model
    gives the same tokens with the same probabilities.
    """
    asked = {"modalities": ["audio"], "audio": {"voice": "aiden", "format": "pcm16"}}
    if stream:
        pieces = [
            chunk.choices[0].delta.audio
            for chunk in speak(client, **asked, stream=True)
            if chunk.choices and hasattr(chunk.choices[0].delta, "audio")
        ]
        [audio_id] = [piece["id"] for piece in pieces if "id" in piece]
        transcript = "".join(piece.get("transcript", "") for piece in pieces)
    else:
        audio = speak(client, **asked).choices[0].message.audio
        audio_id, transcript = audio.id, audio.transcript
    assert transcript

    def tokens_after(earlier: dict[str, Any]) -> tuple[list[int], list[float]]:
        question = {"role": "user", "content": "Tell me a story."}
        messages = [question, {"role": "assistant", **earlier}, {"role": "user", "content": "And then?"}]
        fields = {"return_token_ids": True, "ignore_eos": True}
        [choice] = client.chat.completions.create(
            model="qwen3-omni", messages=messages, max_tokens=12, logprobs=True, extra_body=fields
        ).choices
        return choice.token_ids, [token.logprob for token in choice.logprobs.content]

    named, written = tokens_after({"audio": {"id": audio_id}}), tokens_after({"content": transcript})
    assert named[0] == written[0]
    assert named[1] == pytest.approx(written[1], abs=1e-3)
    assert written[1] != pytest.approx(tokens_after({"content": transcript + " No."})[1], abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_joined_wav_has_every_sample(client: openai.OpenAI, stream: bool) -> None:
    asked = {"audio": {"voice": "ethan", "format": "wav", "chunks": "one_file"}, "stream": stream}
    if stream:
        deltas = [chunk.choices[0].delta for chunk in speak(client, **asked) if chunk.choices]
        data = "".join(delta.audio.get("data", "") for delta in deltas if hasattr(delta, "audio"))
    else:
        data = speak(client, **asked).choices[0].message.audio.data
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data, validate=True)), dtype="int16")
    plain = speak(client, audio={"voice": "ethan", "format": "pcm16"}).choices[0].message.audio.data
    assert (rate, samples.tobytes()) == (RATE, base64.b64decode(plain))


def test_speech_says_whether_its_limit_cut_it_off(client: openai.OpenAI) -> None:
    audio = {"voice": "ethan", "format": "pcm16"}
    fields = {"talker_max_new_tokens": 9, "talker_temperature": 0, "ignore_eos": True}
    text = speak(client, modalities=["text"], audio=None, extra_body=fields).choices[0].message.content
    stop = text[len(text) // 2 :][:12]
    for modalities, ended in ((["text", "audio"], "stop"), (["audio"], "length")):
        cut = speak(client, modalities=modalities, audio=audio, stop=stop, extra_body=fields)
        [choice] = cut.choices
        assert (choice.message.audio.transcript, choice.finish_reason) == (text[: text.index(stop)], ended)
        assert choice.message.audio.finish_reason == "length"
        frames = cut.usage.completion_tokens_details.audio_tokens
        assert (frames, len(base64.b64decode(choice.message.audio.data)) / 2) == (8, 8 * FRAME - 555)
    # The last token of a text is never spoken. So this text is silent, and its speech ends by itself.
    silent = speak(client, audio=audio, max_tokens=1, extra_body=fields)
    assert (silent.choices[0].finish_reason, silent.choices[0].message.audio.finish_reason) == ("length", "stop")
    assert silent.usage.completion_tokens_details.audio_tokens == 0


@pytest.mark.parametrize("at", [1, 4, 7])
def test_nothing_of_a_stop_string_is_spoken_nor_what_comes_after(client: openai.OpenAI, at: int) -> None:
    """One text ends at a stop string, and another text ends one token later at the token limit. Both sound the same,
    because the last token of a text is never spoken.
    """
    fields = {"ignore_eos": True, "return_token_ids": True, "talker_temperature": 0, "talker_max_new_tokens": 40}
    audio = {"voice": "ethan", "format": "pcm16"}
    whole = speak(client, temperature=0, modalities=["text"], audio=None, extra_body=fields).choices[0]
    pieces = [
        speak(client, temperature=0, modalities=["text"], audio=None, max_tokens=count, extra_body=fields)
        for count in (at, at + 1)
    ]
    before, after = (piece.choices[0].message.content for piece in pieces)
    stop = whole.message.content[len(before) :][:12]
    assert whole.message.content.index(stop) == len(before) < len(after)
    stopped = speak(client, temperature=0, audio=audio, stop=stop, extra_body=fields).choices[0]
    limited = speak(client, temperature=0, audio=audio, max_tokens=at + 1, extra_body=fields).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (before, "stop")
    assert stopped.message.audio.data == limited.message.audio.data


def test_an_unknown_voice_is_refused_with_the_list(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"chelsie, ethan \(default\), aiden") as refused:
        speak(client, audio={"voice": "nobody", "format": "wav"})
    assert refused.value.param == "audio.voice"


def test_voices_sound_different(client: openai.OpenAI) -> None:
    sounds = {
        speak(client, audio={"voice": voice, "format": "pcm16"}).choices[0].message.audio.data
        for voice in ("ethan", "chelsie", "aiden")
    }
    assert len(sounds) == 3


def test_a_client_that_leaves_in_the_middle_of_the_sound_frees_every_stage(
    client: openai.OpenAI, speaker: Server
) -> None:
    fields = {"talker_max_new_tokens": 2000, "ignore_eos": True}
    stream = speak(client, audio={"voice": "ethan", "format": "pcm16"}, stream=True, extra_body=fields)
    for chunk in stream:
        if chunk.choices and (getattr(chunk.choices[0].delta, "audio", None) or {}).get("data"):
            break
    stream.close()
    deadline = time.monotonic() + 5
    while any(speaker.live_requests().values()) and time.monotonic() < deadline:
        time.sleep(0.1)  # metrics come with heartbeats, once a second
    assert not any(speaker.live_requests().values())


def test_no_voice_ever_gets_into_another(client: openai.OpenAI) -> None:
    """Fifty different requests are sent, eight at a time. A third of them are abandoned at random points. The other
    answers are the same as when each request is sent alone.
    """
    rng = random.Random(11)

    def request(number: int) -> dict[str, Any]:
        local = random.Random(number)
        content = [{"type": "text", "text": f"Say {number}."}]
        if number % 3 == 0:
            content.insert(0, {"type": "image_url", "image_url": {"url": "tests/data/cars.jpg"}})
        if number % 5 == 0:
            content.insert(0, {"type": "audio_url", "audio_url": {"url": "tests/data/query_to_cars.wav"}})
        return {
            "messages": [{"role": "user", "content": content}],
            "audio": {"voice": local.choice(["ethan", "chelsie", "aiden"]), "format": "pcm16"},
            "max_tokens": local.randint(2, 16),
            "seed": number,
            "temperature": 0.7,
            "extra_body": {"talker_max_new_tokens": local.randint(2, 25)},
        }

    leave = {number: rng.randint(0, 12) for number in range(50) if number % 3 == 1}

    def run(number: int) -> tuple[int, str, str] | None:
        if number in leave:
            stream = speak(client, **request(number), stream=True)
            for _, _chunk in zip(range(leave[number]), stream, strict=False):
                pass
            stream.close()
            return None
        message = speak(client, **request(number)).choices[0].message
        return number, message.content, message.audio.data

    with ThreadPoolExecutor(8) as clients:
        together = [answer for answer in clients.map(run, range(50)) if answer is not None]
    assert len(together) == 50 - len(leave)
    assert together == [run(number) for number, *_ in together]


def test_first_codes_are_drawn_as_the_reference_draws_them(client: openai.OpenAI, tiny_checkpoint: Path) -> None:
    """A chi-square test of the first codes of utterances with many seeds. The sound of the first frame shows which code
    was drawn.

    A frame's sound is a function of its codes, so equal sounds mean equal codes. The expected shares are the
    reference's probabilities of codebook 0 under its default sampling. To find the code of a frame, the test decodes
    every possible code with the reference's own decoder, and compares the sounds with the frame's sound.
    """
    draws = 160
    fields = {"talker_max_new_tokens": 2, "stage_sampling": {"code_predictor": {"temperature": 0}}}

    def first_frame(seed: int) -> bytes:
        audio = {"voice": "ethan", "format": "pcm16"}
        message = speak(client, audio=audio, seed=seed, max_tokens=3, extra_body=fields).choices[0].message
        return base64.b64decode(message.audio.data)

    with ThreadPoolExecutor(8) as clients:
        heard = Counter(sound for sound in clients.map(first_frame, range(draws)) if sound)
    expected = _first_frames(tiny_checkpoint)
    counts = dict.fromkeys(expected, 0)
    for sound, count in heard.items():
        samples = numpy.frombuffer(sound, "<i2") / 32768
        nearest = min(expected, key=lambda code: float(numpy.abs(expected[code][1] - samples).max()))
        assert numpy.abs(expected[nearest][1] - samples).max() < 2e-4
        counts[nearest] += count
    total = sum(counts.values())
    likely = [code for code in expected if expected[code][0] * total >= 5]
    rest = 1 - sum(expected[code][0] for code in likely)
    terms = [(counts[code] - total * expected[code][0]) ** 2 / (total * expected[code][0]) for code in likely]
    others = total - sum(counts[code] for code in likely)
    if rest * total >= 5:
        terms.append((others - total * rest) ** 2 / (total * rest))
    # The 0.999 quantile, by Wilson and Hilferty's approximation.
    freedom = len(terms) - 1
    assert freedom >= 2
    assert sum(terms) < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


@torch.no_grad()
def _first_frames(checkpoint: Path) -> dict[int, tuple[float, numpy.ndarray]]:
    """For each first code that the reference may draw: its probability, and the sound of its frame."""
    reference = SpokenReference(checkpoint)
    model = reference.model
    logits: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    hooks = [
        model.talker.codec_head.register_forward_hook(lambda m, a, out: logits.append(out[0, -1])),
        model.talker.model.register_forward_hook(lambda m, a, out: states.append(out.last_hidden_state[:, -1:])),
    ]
    story = Conversation("story", [{"role": "user", "content": [{"type": "text", "text": "Tell me a story."}]}])
    reference.speak(story, max_tokens=3, max_frames=1, speaker="ethan")
    for hook in hooks:
        hook.remove()
    first = logits[0].float()
    first[-1024:] = -torch.inf  # the code that ends the utterance gives no frame
    best = (first / 0.9).topk(50)
    shares = torch.softmax(best.values, dim=-1)
    frames: dict[int, tuple[float, numpy.ndarray]] = {}
    predictor = model.talker.code_predictor
    for share, code in zip(shares.tolist(), best.indices.tolist(), strict=True):
        embedded = model.talker.get_input_embeddings()(torch.tensor([[code]]))
        rest = predictor.generate(
            inputs_embeds=torch.cat((states[0], embedded), dim=1),
            max_new_tokens=predictor.config.num_code_groups - 1,
            do_sample=False,
        )
        codes = torch.cat([torch.tensor([[code]]), rest], dim=1)[:, :, None]
        frames[code] = share, model.code2wav(codes)[0, 0].numpy()
    return frames
