"""Sends damaged media of every container to a running server, several at a time."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
from msgspec import Struct

from fuzzing.damage import damaged
from fuzzing.findings import FuzzFinding, FuzzReport
from fuzzing.seeds import Seed, seeds

_FIELDS = {"image": "images", "audio": "audios", "video": "videos"}
_SECONDS = 60.0  # maximum seconds for one case


class MediaCase(Struct):
    """One request: a description, and its body."""

    what: str
    body: dict[str, Any]


def make(number: int, seed: int, files: list[Seed]) -> MediaCase:
    """Make case `number`. The same seed and the same libraries make the same case."""
    rng = random.Random(f"{seed}:{number}")
    file = files[number % len(files)]
    how, data = damaged(file.data, rng, [other.data for other in files])
    # Usually send the file as its own kind of media, sometimes as another kind.
    kind = file.kind if rng.random() < 0.9 else rng.choice(list(_FIELDS))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": ""}],
        _FIELDS[kind]: [f"data:;base64,{base64.b64encode(data).decode()}"],
        "max_tokens": 1,
    }
    if kind == "video":
        body["use_audio_in_video"] = rng.random() < 0.5
        body["video_max_frames"] = 8
    if rng.random() < 0.05:
        body |= {"modalities": ["text", "audio"], "talker_max_new_tokens": 3}
    return MediaCase(f"{file.name} as {kind}, {how}, {len(data)} bytes", body)


async def run(url: str, report: FuzzReport, numbers: Iterator[int], *, concurrency: int) -> None:
    """Send the cases with these numbers, `concurrency` of them at a time."""
    files = seeds()
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(_send_all(session, url, report, numbers, files))


async def _send_all(
    session: aiohttp.ClientSession, url: str, report: FuzzReport, numbers: Iterator[int], files: list[Seed]
) -> None:
    for number in numbers:
        case = make(number, report.seed, files)
        began = time.monotonic()
        status, code = 0, "no answer"
        try:
            async with session.post(f"{url}/v1/chat/completions", json=case.body) as response:
                body = await response.json()
                status, code = response.status, body["error"]["code"] if "error" in body else "ok"
        except TimeoutError:
            report.findings.append(FuzzFinding(number, case.what, f"no answer within {_SECONDS:g} s"))
        except (aiohttp.ClientError, ValueError) as error:
            report.findings.append(FuzzFinding(number, case.what, f"{type(error).__name__}: {error}"))
        report.count(
            number, case.what, f"{case.what.split(',')[0].split()[-1]} {status} {code}", time.monotonic() - began
        )
        report.judge(number, case.what, status, code)
        if status == 503:
            await _until_healthy(session, url)


async def _until_healthy(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until a worker that is restarting is ready."""
    while True:
        async with session.get(f"{url}/health") as response:
            if response.status == 200:
                return
        await asyncio.sleep(0.1)
