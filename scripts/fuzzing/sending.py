"""Sends cases to a running server, several at a time, and judges the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
from msgspec import Struct

from fuzzing.findings import FuzzFinding, FuzzReport

_SECONDS = 60.0  # maximum seconds for one case


class FuzzCase(Struct):
    """One request.

    Attributes:
        what: Description of the request.
        kind: The kind of the request. It is the first word of the outcome under which the request is counted.
        path: Path of the endpoint.
        options: Arguments of aiohttp's `post`.
    """

    what: str
    kind: str
    path: str
    options: dict[str, Any]


async def run(
    url: str, report: FuzzReport, numbers: Iterator[int], make: Callable[[int], FuzzCase], *, concurrency: int
) -> None:
    """Make and send the cases with these numbers, `concurrency` cases at a time."""
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(_send_all(session, url, report, numbers, make))


async def _send_all(
    session: aiohttp.ClientSession,
    url: str,
    report: FuzzReport,
    numbers: Iterator[int],
    make: Callable[[int], FuzzCase],
) -> None:
    for number in numbers:
        case = make(number)
        began = time.monotonic()
        status, code = 0, "no answer"
        try:
            async with session.post(url + case.path, **case.options) as response:
                status, code = response.status, await _code(response)
        except TimeoutError:
            report.findings.append(FuzzFinding(number, case.what, f"no answer within {_SECONDS:g} s"))
        except (aiohttp.ClientError, ValueError) as error:
            report.findings.append(FuzzFinding(number, case.what, f"{type(error).__name__}: {error}"))
        report.count(number, case.what, f"{case.kind} {status} {code}", time.monotonic() - began)
        report.judge(number, case.what, status, code)
        if status == 503:
            await _until_healthy(session, url)


async def _code(response: aiohttp.ClientResponse) -> str:
    """The error code of an answer; ``ok`` for an answer without an error."""
    if response.status < 400 and response.content_type != "application/json":
        text = await response.text()
        if response.content_type == "text/event-stream" and "data: [DONE]" not in text and '"error"' not in text:
            raise ValueError("a stream has ended without [DONE] or an error")
        return "ok"
    body = await response.json()
    return str(body["error"]["code"]) if "error" in body else "ok"


async def _until_healthy(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until the server is healthy, because a worker may be restarting."""
    while True:
        async with session.get(f"{url}/health") as response:
            if response.status == 200:
                return
        await asyncio.sleep(0.1)
