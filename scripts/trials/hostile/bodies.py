"""Attacks through the JSON body of a request."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import wave
from typing import Any

from trials.hostile.client import HostileClient, Round, Target, chat

MIB = 2**20


def giant_texts(draw: random.Random, target: Target) -> Round:
    """Attacks the tokenizer: sends 4 MiB and 64 MiB of words, and texts of the same sizes without a single space."""
    sizes = [4 * MIB, min(64 * MIB, target.body_bytes - MIB)]
    texts = [unit * (size // len(unit)) for size in sizes for unit in ("bread and water ", "x")]
    bodies = [json.dumps(chat(text)).encode() for text in texts]

    async def attack(client: HostileClient) -> None:
        await client.post(client.draw.choice(bodies))

    return attack


def json_bombs(draw: random.Random, target: Target) -> Round:
    """Attacks the JSON decoder: sends 48 MiB of empty lists, deep nesting, a big unused field or a million messages."""
    size = min(48 * MIB, target.body_bytes - MIB)
    lists = b"[" + b"[]," * (size // 3) + b"[]]"
    question = b'{"messages":[{"role":"user","content":"x"}],"metadata":'
    bodies = [
        b'{"messages":' + lists + b"}",
        question + lists + b"}",
        question + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}",
        b"[" * (4 * MIB),
        question + b'"' + b"x" * size + b'"}',
        b'{"messages":[' + b",".join([b'{"role":"user","content":"a"}'] * min(1_000_000, size // 30)) + b"]}",
    ]

    async def attack(client: HostileClient) -> None:
        await client.post(client.draw.choice(bodies))

    return attack


def big_bodies(draw: random.Random, target: Target) -> Round:
    """Attacks the count of held bytes: sends large valid sounds, and disconnects as soon as they are sent."""
    samples = min(target.media_bytes, target.body_bytes * 3 // 4) - MIB
    body = json.dumps(chat("", audios=[f"data:;base64,{_silence(samples)}"])).encode()

    async def attack(client: HostileClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(_post_and_leave(client, body))

    return attack


async def _post_and_leave(client: HostileClient, body: bytes) -> None:
    async with client.connection() as wire:
        # with this setting, `send` returns when the whole body has been sent
        wire.writer.transport.set_write_buffer_limits(0)
        await wire.send(client.head(len(body)) + body)
        await asyncio.sleep(client.draw.uniform(0.0, 1.0))
    client.outcomes["left after the body"] += 1


def hostile_numbers(draw: random.Random, target: Target) -> Round:
    """Attacks the checks of numbers: sends numbers of 5,000 digits, infinite or negative values, or wrong types."""
    digits = "9" * 5000
    fields = [
        *(f'"logit_bias":{{"{key}":1}}' for key in ("0" * 30 + "9" * 30, digits, "-1", "1e5", " 1", "١", "0x1", "")),
        *(f'"logit_bias":{{"1":{value}}}' for value in ("1e999", "NaN", "-Infinity", '"1"', "[1]", digits)),
        '"logit_bias":{' + ",".join(f'"{number}":1' for number in range(100_000)) + "}",
        *(f'"{name}":{digits}' for name in ("max_tokens", "seed", "top_k", "temperature", "video_max_frames")),
        *(f'"{name}":-1e308' for name in ("temperature", "top_p", "presence_penalty", "repetition_penalty")),
        *(f'"stop_token_ids":[{value}]' for value in ("-1", digits, "1e3", "true")),
        f'"seed":{2**63}',
        f'"seed":{-(2**63) - 1}',
        f'"min_tokens":{2**62}',
        '"video_fps":5e-324',
        '"stage_sampling":{"talker_ar":{"seed":' + digits + "}}",
    ]
    bodies = [f'{{"messages":[{{"role":"user","content":"x"}}],{field}}}'.encode() for field in fields]

    async def attack(client: HostileClient) -> None:
        await client.post(client.draw.choice(bodies))

    return attack


def split_tokens(draw: random.Random, target: Target) -> Round:
    """Attacks the chat template: sends special tokens that are split over adjacent parts of a message."""
    tokens = ("<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|audio_pad|>")

    async def attack(client: HostileClient) -> None:
        token = client.draw.choice(tokens)
        at = client.draw.randrange(1, len(token) - 1)
        split = await client.post(_parts(token[:at], token[at:]))
        apart = await client.post(_parts(token[:at] + " ", token[at:]))
        if split.status == 200 == apart.status:
            lengths = [reply.json()["usage"]["prompt_tokens"] for reply in (split, apart)]
            if lengths[0] + 2 < lengths[1]:  # a special token is one token, but its spelling as text is several tokens
                client.breaches["a split special token became a real one"] += 1

    return attack


def _parts(*texts: str) -> dict[str, Any]:
    return chat([{"type": "text", "text": text} for text in texts])


def _silence(size: int) -> str:
    """A WAV file of silence with about `size` bytes, in base64."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(size // 2 * 2))
    return base64.b64encode(file.getvalue()).decode()


KINDS = (giant_texts, json_bombs, big_bodies, hostile_numbers, split_tokens)
