"""A person sees what the stages do, and when each stage worked for an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.clients.playground.page import OpenPage

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

STAGES = {
    *("preprocessing", "image_encoder", "audio_encoder", "mm_aggregate", "thinker", "decode"),
    *("talker_ar", "code_predictor", "code2wav"),
}


def test_an_answer_has_its_timeline_over_all_stages(open_page: Open, picture: Picture) -> None:
    page = open_page()
    page.tab.get_by_role("button", name="Ask aloud about the picture").click()
    page.answer()
    page.tab.get_by_role("button", name="Show the timeline over the stages").click()
    page.tab.wait_for_selector(".timeline")
    picture(page, "timeline")
    page.tab.get_by_text("As numbers").click()
    rows = [row.inner_text().split("\t") for row in page.tab.locator(".timeline tbody tr").all()]
    assert {row[0] for row in rows} == STAGES
    assert all(int(row[-1]) >= 1 for row in rows), "every stage has worked for an answer of every kind"
    begins = {row[0]: int(row[1].removesuffix(" ms")) for row in rows}
    assert begins["preprocessing"] <= begins["thinker"] <= begins["code2wav"]


def test_the_pipeline_is_drawn_as_its_graph_and_shows_work(open_page: Open, picture: Picture) -> None:
    page = open_page()
    page.tab.get_by_role("button", name="What is being drawn?").click()
    page.tab.get_by_role("link", name="Pipeline").click()
    thinker = page.tab.get_by_role("article", name="thinker")
    page.until(lambda: not thinker.inner_text().count("busy 0 %"))
    picture(page, "pipeline")
    assert page.tab.evaluate("scrollY") == 0, "the answer that grows in the other view moves nothing here"
    assert {card.get_attribute("aria-label") for card in page.tab.locator(".stage").all()} == STAGES
    assert "KV" in thinker.inner_text()
    assert page.tab.locator("#edges path").count() >= 10
    place = {name: page.tab.get_by_role("article", name=name, exact=True).bounding_box() for name in STAGES}
    down = ["preprocessing", "image_encoder", "mm_aggregate", "thinker", "talker_ar", "code_predictor", "code2wav"]
    heights = [(place[name] or {})["y"] for name in down]
    assert heights == sorted(heights)
    page.tab.get_by_role("link", name="Chat").click()
    page.answer()
