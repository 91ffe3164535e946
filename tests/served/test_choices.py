"""A request for several choices gets several texts. The server computes the prompt only once for all texts."""

from __future__ import annotations

import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from omni_pipeline.worker.loop import HEARTBEAT_SECONDS
from tests.served.streams import stream
from tests.server import Server

MOST = 16
ASK = {
    "messages": [{"role": "user", "content": "Tell me about the sea."}],
    "max_tokens": 24,
    "return_token_ids": True,
    "ignore_eos": True,
}
DRAWN = {"temperature": 1, "seed": 11}


def choices(server: Server, n: int, **fields: Any) -> list[list[int]]:
    """The token ids of each choice."""
    status, answer = server.post(ASK | fields | {"n": n})
    assert status == 200, answer
    assert [choice["index"] for choice in answer["choices"]] == [*range(n)]
    return [choice["token_ids"] for choice in answer["choices"]]


def counted(server: Server) -> dict[str, float]:
    """The counters of the stages, by name and label, once all workers have reported them."""
    time.sleep(HEARTBEAT_SECONDS + 0.5)
    with urllib.request.urlopen(f"{server.url}/metrics") as page:
        lines = [line.split() for line in page.read().decode().splitlines()]
    return {name: float(value) for name, value in (line for line in lines if line[0].startswith("omni_stage_"))}


def test_greedy_choices_are_the_answer_to_a_request_for_one(server: Server) -> None:
    assert choices(server, MOST) == choices(server, 1) * MOST


def test_each_choice_repeats_alone_and_beside_others(server: Server) -> None:
    many = choices(server, MOST, **DRAWN)
    assert len({tuple(ids) for ids in many}) == MOST
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(choices, server, 3, **DRAWN | {"seed": seed}) for seed in range(4)]
        again, few = pool.submit(choices, server, MOST, **DRAWN), pool.submit(choices, server, 5, **DRAWN)
        repeated = [*again.result(), *few.result(), *choices(server, 1, **DRAWN)]
        assert not {tuple(ids) for other in others for ids in other.result()} & {tuple(ids) for ids in many}
    firsts = [*many, *many[:5], *many[:1]]
    assert repeated == firsts


def test_the_picture_and_the_prompt_of_several_choices_are_computed_once(server: Server) -> None:
    picture = {"images": ["tests/data/cars.jpg"], "mm_processor_kwargs": {"max_pixels": 90_123}}
    before = counted(server)
    many = choices(server, MOST, **picture, **DRAWN)
    grown = {name: value - before.get(name, 0) for name, value in counted(server).items()}
    prompts = grown['omni_stage_prompt_tokens_total{stage="thinker"}']
    computed = prompts - grown['omni_stage_prompt_tokens_cached_total{stage="thinker"}']
    assert prompts > MOST * 64
    assert computed <= prompts / MOST + MOST - 1  # each choice computes the last token itself, for its logits
    assert grown['omni_stage_encoded_items_total{stage="image_encoder"}'] == 1
    [alone] = choices(server, 1, **picture, **DRAWN)
    assert alone[0] == many[0][0]


def test_a_client_that_leaves_ends_all_choices(server: Server) -> None:
    with stream(server, ASK | {"n": MOST, "max_tokens": 1500}) as events:
        for _ in range(3 * MOST):
            next(events)
        assert server.live_requests()
    server.until(lambda: not any(server.live_requests().values()), 20)
