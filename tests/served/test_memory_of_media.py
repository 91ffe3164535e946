"""The decoded media of all clients together never need more memory than the configured limit."""

from __future__ import annotations

import asyncio
import base64
import io
import urllib.request

import openai
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.served.conftest import DECODED_BYTES
from tests.server import Server

CLIENTS = 12


def flat_picture(width: int, height: int, colour: int) -> str:
    """A data URL with a picture in one colour, which has few bytes but many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (colour, colour, colour)).save(file, "PNG")
    assert len(file.getvalue()) < 4096
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def figures(server: Server) -> dict[str, float]:
    """The values of the server's metrics that have no labels, by name."""
    with urllib.request.urlopen(f"{server.url}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


async def test_large_pictures_of_many_clients_wait_for_memory_and_are_all_answered(server: Server) -> None:
    seen: list[dict[str, float]] = []

    async def ask(others: openai.AsyncOpenAI, number: int) -> int:
        pictures = [flat_picture(640, 480, 10 * number), flat_picture(480, 640, 10 * number + 5)]
        answer = await others.chat.completions.create(
            model="qwen3-omni",
            messages=[{"role": "user", "content": "What?"}],
            max_tokens=2,
            extra_body={"images": pictures},
        )
        return answer.usage.prompt_tokens if answer.usage else 0

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as others:
        asked = [asyncio.create_task(ask(others, number)) for number in range(CLIENTS)]
        while not all(task.done() for task in asked):
            seen.append(await asyncio.to_thread(figures, server))
            await asyncio.sleep(0.02)
        assert min([task.result() for task in asked]) > 600
    assert {each["omni_decoded_limit_bytes"] for each in seen} == {DECODED_BYTES}
    assert 0 < max(each["omni_decoded_bytes"] for each in seen) <= DECODED_BYTES
    assert max(each["omni_requests_waiting_for_memory"] for each in seen) > 1
    after = figures(server)
    assert (after["omni_decoded_bytes"], after["omni_held_bytes"], after["omni_requests_leaving"]) == (0, 0, 0)


async def test_clients_that_leave_give_everything_back(server: Server) -> None:
    async def leave(others: openai.AsyncOpenAI, number: int) -> None:
        async with asyncio.timeout(0.02 * number):
            await others.chat.completions.create(
                model="qwen3-omni",
                messages=[{"role": "user", "content": "What?" * 1000}],
                extra_body={"images": [flat_picture(640, 480, number)], "max_tokens": 1000, "ignore_eos": True},
            )

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as others:
        ends = await asyncio.gather(*(leave(others, number) for number in range(CLIENTS)), return_exceptions=True)
    assert {type(end) for end in ends} == {TimeoutError}

    def everything_is_free() -> bool:
        found = figures(server)
        names = ("omni_requests_in_flight", "omni_requests_leaving", "omni_held_bytes", "omni_decoded_bytes")
        return not any(found[name] for name in (*names, "omni_requests_waiting_for_memory"))

    server.until(everything_is_free, 5)
