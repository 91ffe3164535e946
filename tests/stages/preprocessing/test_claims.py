"""Media are decoded only after memory has been granted for them, and decoded media are never larger than the granted
memory.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cases import film, media_of_every_kind
from conversations import Case, names, start_of
from driving import PATIENCE_SECONDS
from media_files import image_file
from PIL import Image

from gateway.grants import Grants, HeldClaim
from omni_pipeline.wire.messages import Claim, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import ChatRequest, Media, MediaRef, Modality, Turn, VideoOptions
from stages.preprocessing import Preprocessing

MEDIA_CASES = media_of_every_kind()


class Driven:
    """Drives the stage in place of the worker's loop and the main process.

    Attributes:
        claims: The `Claim` messages of the stage, in order.
        answers: All other messages of the stage, in order.
    """

    def __init__(self, stage: Preprocessing) -> None:
        self.stage = stage
        self.claims: list[Claim] = []
        self.answers: list[Any] = []

    def until(self, count: int, kind: str = "claims") -> None:
        """Step the stage until it has sent `count` messages. The messages are `Claim` messages, or all other messages
        if `kind` is "answers".
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(getattr(self, kind)) < count:
            assert time.monotonic() < deadline
            self.turn()

    def turn(self) -> None:
        """Step the stage if it has work. Otherwise, wait a short time until it has work."""
        if not self.stage.has_work:
            select.select([self.stage.waits_on], [], [], 0.2)
            return
        for message in self.stage.step():
            (self.claims if isinstance(message, Claim) else self.answers).append(message)


@pytest.fixture(scope="module")
def shared(stage_context: Any) -> Iterator[Preprocessing]:
    stage = Preprocessing(stage_context("preprocessing", readers=2))
    yield stage
    stage.close()


@pytest.fixture
def driven(shared: Preprocessing) -> Iterator[Driven]:
    yield Driven(shared)
    for request_id in list(shared.live()):
        shared.abort(request_id)


def sent_bytes(answers: list[Any]) -> int:
    """Bytes of the encoders' inputs in these messages."""
    items = [item for message in answers if message.target != "mm_aggregate" for item in message.body.items]
    return sum((item.patches if hasattr(item, "patches") else item.mel).nbytes for item in items)


def of_file(kind: Modality, data: bytes, count: int = 1) -> ChatRequest:
    media = [Media(kind, Tensor.of(data), f"media[{index}]") for index in range(count)]
    return ChatRequest([Turn("user", [MediaRef(index) for index in range(count)])], media)


@pytest.mark.parametrize("case", MEDIA_CASES, ids=names(MEDIA_CASES))
def test_what_is_claimed_covers_what_is_sent(driven: Driven, case: Case) -> None:
    driven.stage.receive(start_of(case))
    driven.until(1)
    assert driven.answers == []
    driven.stage.grant("r")
    driven.until(1, "answers")
    [claim] = driven.claims
    assert claim.source == "preprocessing"
    assert claim.passing >= 2 * sent_bytes(driven.answers) > 0
    assert claim.lasting > 0


def test_text_never_claims(driven: Driven) -> None:
    driven.stage.receive(start_of(Case("", [("user", ["Hello?"])])))
    driven.until(1, "answers")
    assert driven.claims == []


def test_nothing_is_decoded_before_the_grant_and_others_go_on(driven: Driven) -> None:
    driven.stage.receive(start_of(MEDIA_CASES[0], "waits"))
    driven.until(1)
    driven.stage.receive(start_of(MEDIA_CASES[4], "goes"))
    driven.until(2)
    driven.stage.receive(start_of(Case("", [("user", ["Hello?"])]), "text"))
    driven.stage.grant("goes")
    driven.stage.grant("unknown")
    driven.until(3, "answers")
    assert {message.request_id for message in driven.answers} == {"text", "goes"}
    assert list(driven.stage.live()) == ["waits"]
    driven.stage.grant("waits")
    driven.until(5, "answers")
    assert not driven.stage.live()


def test_request_that_ends_while_it_waits_is_not_decoded(driven: Driven) -> None:
    driven.stage.receive(start_of(MEDIA_CASES[0]))
    driven.until(1)
    driven.stage.grant("r")
    driven.stage.abort("r")
    driven.stage.grant("r")
    assert not driven.stage.has_work
    assert not driven.stage.live()


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_medium_without_a_readable_header_claims_nothing_and_is_refused(driven: Driven, kind: Modality) -> None:
    driven.stage.receive(Start("r", "gateway", "preprocessing", of_file(kind, b"\1" * 100)))
    driven.until(1, "answers")
    [failed] = driven.answers
    assert isinstance(failed, Failed)
    assert (failed.error.code, driven.claims) == (f"invalid_{kind}", [])


def test_sound_that_is_longer_than_its_clip_claims_the_rest_before_it_leaves_the_stage(driven: Driven) -> None:
    driven.stage.receive(start_of(Case("", [("user", [film(8, seconds=9)])], video=VideoOptions(use_audio=True))))
    driven.until(1)
    driven.stage.grant("r")
    driven.until(2)
    assert driven.answers == []
    driven.stage.grant("r")
    driven.until(3, "answers")
    assert [message.target for message in driven.answers] == ["image_encoder", "audio_encoder", "mm_aggregate"]
    assert len(driven.claims) == 2, "the second time, everything has been claimed"
    assert sum(claim.passing for claim in driven.claims) >= 2 * sent_bytes(driven.answers)


def test_flat_pictures_at_a_small_limit_are_all_answered_within_it(driven: Driven) -> None:
    flat = image_file(Image.new("RGB", (640, 480)))
    assert len(flat) < 4096
    requests = [f"r{number}" for number in range(12)]
    for name in requests:
        driven.stage.receive(Start(name, "gateway", "preprocessing", of_file("image", flat, count=5)))
    driven.until(1)
    each = driven.claims[0].passing + driven.claims[0].lasting
    grants = Grants(limit=int(2.5 * each))
    held: dict[str, HeldClaim] = {}
    decoded: set[str] = set()
    most = 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(decoded) < len(requests):
        assert time.monotonic() < deadline
        claims, driven.claims = driven.claims, []
        for claim in claims:
            name = claim.request_id
            held[name] = HeldClaim(claim.passing, claim.lasting, lambda name=name: driven.stage.grant(name))
            grants.add(held[name])
        most = max(most, grants.held)
        waiting = [message for message in driven.answers if message.target == "image_encoder"]
        assert sent_bytes(waiting) <= grants.held, "whatever has been decoded has been granted"
        for message in waiting[:1]:  # the encoder handles one request at a time, and its answer ends at once
            driven.answers = [other for other in driven.answers if other.request_id != message.request_id]
            decoded.add(message.request_id)
            grants.drop(held.pop(message.request_id))
        driven.turn()
    assert each < most <= grants.limit
    assert (grants.held, grants.waiting) == (0, 0)
