"""If the server refuses a request, restarts, or loses a worker, the page shows this to the user."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.clients.playground.conftest import KEY
from tests.clients.playground.page import OpenPage
from tests.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Route

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

ITSELF = "I am a small demo model. I know cars and simple shapes."


def test_the_page_asks_for_a_key_and_keeps_it_in_the_tab(open_page: Open, picture: Picture, locked: Server) -> None:
    page = open_page(locked.url, wait=False)
    page.expected.append("status of 401")
    page.tab.get_by_label("API key").fill("wrong")
    page.tab.keyboard.press("Enter")
    page.until(lambda: page.tab.locator("#key-wrong").is_visible())
    picture(page, "key")
    page.tab.get_by_label("API key").fill(KEY)
    page.tab.keyboard.press("Enter")
    page.ready()
    assert not page.tab.locator("#voice-choice").is_visible(), "this server does not speak"
    page.ask("Who are you?")
    assert page.answer()["text"] == ITSELF
    page.tab.get_by_role("button", name="Show the request as a program").click()
    program = page.tab.locator(".snippets").inner_text()
    assert "OMNI_API_KEY" in program
    assert KEY not in program
    page.tab.reload()
    page.ready()
    other = open_page(locked.url, wait=False)
    other.expected.append("status of 401")
    assert other.tab.get_by_label("API key").is_visible()


def test_a_restarted_server_goes_on_under_the_open_page(open_page: Open, picture: Picture, locked: Server) -> None:
    page = open_page(locked.url, wait=False)
    page.expected += [
        "status of 401",
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_EMPTY_RESPONSE",
    ]
    page.tab.get_by_label("API key").fill(KEY)
    page.tab.keyboard.press("Enter")
    page.ready()
    page.ask("Who are you?")
    page.answer()
    health = page.tab.locator("#health")
    assert locked.stop() == 0
    page.until(lambda: "not reachable" in health.inner_text())
    page.ask("What is the capital of France?")
    page.answer("failed")
    picture(page, "not-reachable")
    assert "cannot be reached" in page.tab.locator(".answer .problem").last.inner_text()
    locked.start()
    page.until(lambda: "ready" in health.inner_text())
    page.tab.get_by_role("button", name="Ask again", exact=True).last.click()
    assert page.answer()["text"] == "I only know cars and simple shapes."


def without_end(route: Route) -> None:
    """Ask for an answer that does not end by itself."""
    body = json.loads(route.request.post_data or "") | {"ignore_eos": True, "max_tokens": 400}
    route.continue_(post_data=json.dumps(body))


# Records every state of the talker's card, because a state can be over before the test looks at the card.
_WATCH = """() => {
  window.states = [];
  new MutationObserver((changes) => {
    for (const { target } of changes) if (target.ariaLabel === "talker_ar") window.states.push(target.dataset.state);
  }).observe(document.getElementById("layers"), { attributeFilter: ["data-state"], subtree: true });
}"""


def restarts(card: Locator) -> int:
    """The number of restarts that the card of a stage shows."""
    found = re.search(r"(\d+) restart", card.text_content() or "")
    return int(found[1]) if found else 0


def test_a_worker_that_dies_while_it_speaks_is_seen_and_comes_back(
    open_page: Open, picture: Picture, demo_server: Server
) -> None:
    page = open_page()
    page.tab.route("**/v1/chat/completions", without_end)
    page.tab.get_by_role("button", name="Count the cars").click()
    page.until(lambda: ((page.last() or {}).get("played") or 0) > 0.3)
    talker = page.tab.locator(".stage[aria-label=talker_ar]")
    before = restarts(talker)
    page.tab.evaluate(_WATCH)
    [pid] = [worker["pid"] for worker in demo_server.health()[1]["workers"].values() if "talker_ar" in worker["stages"]]
    os.kill(pid, signal.SIGKILL)
    answer = page.answer("failed")
    assert answer["soundSeconds"] > 0.3
    assert "worker" in page.tab.locator(".answer .problem").inner_text()
    page.tab.get_by_role("link", name="Pipeline").click()
    page.until(lambda: set(page.tab.evaluate("window.states")) - {"ready"})
    picture(page, "worker-killed")
    page.until(lambda: restarts(talker) == before + 1 and talker.get_attribute("data-state") == "ready")
    assert "SIGKILL" in (talker.text_content() or "")
    page.until(lambda: "ready" in page.tab.locator("#health").inner_text())
    page.tab.unroute("**/v1/chat/completions")
    page.tab.get_by_role("link", name="Chat").click()
    page.tab.get_by_role("button", name="Ask again", exact=True).click()
    assert page.answer()["text"] == "There are three cars."


def test_an_answer_can_be_stopped_and_the_question_edited(open_page: Open) -> None:
    page = open_page()
    page.tab.route("**/v1/chat/completions", without_end)
    page.ask("Who are you?")
    page.until(lambda: (page.last() or {}).get("firstText"))
    page.tab.keyboard.press("Escape")
    page.answer("stopped")
    page.tab.unroute("**/v1/chat/completions")
    page.tab.locator(".question").hover()
    page.tab.get_by_role("button", name="Edit and ask again").click()
    assert page.tab.get_by_label("Question").input_value() == "Who are you?"
    assert page.tab.locator(".turn").count() == 0
