"""Work on the large bodies of one client does not stop the work on the large bodies of other clients."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gateway.answers.exchange import Exchanges
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request


@pytest.fixture
def exchanges() -> Exchanges:
    nothing: Any = None
    return Exchanges(nothing, nothing, nothing, nothing, model="", limits=Limits(), traces=nothing)


async def test_large_bodies_of_one_client_do_not_delay_those_of_another(exchanges: Exchanges) -> None:
    released = threading.Event()
    many = [asyncio.create_task(exchanges.in_thread("a", released.wait)) for _ in range(50)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(10):
            assert await exchanges.in_thread("b", lambda: "checked") == "checked"
            assert not any(task.done() for task in many)
    finally:
        released.set()
    assert await asyncio.gather(*many) == [True] * 50


async def test_an_error_of_the_work_is_passed_on(exchanges: Exchanges) -> None:
    def refuse() -> None:
        raise bad_request("No.", code="invalid_json")

    with pytest.raises(OmniError, match="No"):
        await exchanges.in_thread("a", refuse)
