"""Everybody can use the page: by keyboard, with a screen reader, on a small phone, in the dark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import LIBRARIES
from tests.clients.playground.page import OpenPage
from tests.clients.playground.test_requests import STOCK, with_a_call
from tests.conftest import ROOT
from tests.server import Server

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

# Browser flag for a fake microphone that plays a spoken question once.
SPEAKS = (f"--use-file-for-fake-audio-capture={ROOT / 'tests' / 'data' / 'query_to_cars.wav'}%noloop",)
PHONE = {"viewport": {"width": 320, "height": 640}, "device_scale_factor": 2}


def violations(page: OpenPage) -> list[str]:
    """The faults that axe finds in the page as it is now."""
    page.tab.evaluate((Path(LIBRARIES) / "node_modules" / "axe-core" / "axe.min.js").read_text())
    found: list[dict[str, Any]] = page.tab.evaluate("async () => (await axe.run()).violations")
    return [f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}" for each in found]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_in_any_view(open_page: Open, picture: Picture, colours: str) -> None:
    page = open_page(color_scheme=colours)
    assert violations(page) == []
    picture(page, f"welcome-{colours}")
    page.tab.get_by_role("button", name="Count the cars").click()
    page.answer()
    for button in ("Show the request as a program", "Show the timeline over the stages"):
        page.tab.get_by_role("button", name=button).click()
        page.tab.wait_for_selector(".more > *")
        assert violations(page) == []
    picture(page, f"chat-{colours}")
    page.tab.get_by_role("button", name="Options").click()
    assert violations(page) == []
    page.tab.get_by_role("button", name="Done").click()
    page.tab.get_by_role("link", name="Pipeline").click()
    page.tab.wait_for_selector(".stage")
    assert violations(page) == []
    picture(page, f"pipeline-{colours}")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_in_a_spoken_conversation(
    open_page: Open, picture: Picture, data: Path, colours: str
) -> None:
    page = open_page(flags=SPEAKS, color_scheme=colours)
    page.tab.get_by_role("link", name="Talk").click()
    assert violations(page) == []
    page.tab.get_by_role("button", name="Start talking").click()
    page.until(lambda: page.tab.locator("#talk-show").is_enabled())
    page.tab.set_input_files("#talk-files", str(data / "cars.jpg"))
    page.tab.wait_for_selector("#talk-turns .answer .figures:not(:empty)")
    page.tab.get_by_label("Push to talk").check()
    page.tab.get_by_role("button", name="Hold to speak").wait_for()
    assert violations(page) == []
    picture(page, f"talk-{colours}")
    page.tab.get_by_role("button", name="End the conversation").click()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_in_any_dialog_or_panel(
    open_page: Open, picture: Picture, data: Path, colours: str, locked: Server
) -> None:
    page = open_page(color_scheme=colours)
    page.attach(data / "cars.jpg", data / "query_to_cars.wav", data / "draw.mp4")
    assert violations(page) == []
    page.tab.get_by_role("button", name="Camera").click()
    page.until(lambda: page.tab.evaluate("document.getElementById('viewfinder').videoWidth") > 0)
    assert violations(page) == []
    picture(page, f"camera-{colours}")
    page.tab.get_by_role("button", name="Cancel").click()
    page.tab.get_by_role("button", name="Options").click()
    page.tab.get_by_label("JSON schema").fill("{")
    page.tab.get_by_role("button", name="Done").click()
    page.tab.locator("#options-problem").wait_for()
    assert violations(page) == []
    picture(page, f"options-{colours}")
    page.tab.get_by_label("JSON schema").fill("")
    page.tab.get_by_label("Tools").fill(json.dumps([STOCK]))
    page.tab.get_by_role("button", name="Done").click()
    page.tab.route("**/v1/chat/completions", with_a_call)
    page.ask("Are there cars in stock?")
    page.answer()
    page.tab.get_by_label("Result of in_stock").wait_for()
    assert violations(page) == []
    page.tab.get_by_role("button", name="Show the timeline over the stages").click()
    page.tab.get_by_text("As numbers").click()
    assert violations(page) == []
    picture(page, f"panels-{colours}")
    asks = open_page(locked.url, wait=False, color_scheme=colours)
    asks.expected.append("status of 401")
    asks.tab.get_by_label("API key").fill("wrong")
    asks.tab.keyboard.press("Enter")
    asks.tab.locator("#key-wrong").wait_for()
    assert violations(asks) == []
    picture(asks, f"key-{colours}")


def test_it_fits_a_small_phone(open_page: Open, picture: Picture) -> None:
    page = open_page(**PHONE)
    picture(page, "phone-welcome")
    page.tab.get_by_role("button", name="Count the cars").click()
    page.answer()
    page.tab.get_by_role("button", name="Show the request as a program").click()
    page.tab.wait_for_selector(".snippets")
    picture(page, "phone-chat")
    assert overflow(page) == []
    page.tab.get_by_role("button", name="Show the timeline over the stages").click()
    page.tab.wait_for_selector(".timeline")
    picture(page, "phone-timeline")
    assert overflow(page) == []
    page.tab.get_by_role("button", name="Options").click()
    picture(page, "phone-options")
    assert overflow(page) == []
    page.tab.get_by_role("button", name="Done").click()
    page.tab.get_by_role("link", name="Pipeline").click()
    page.tab.wait_for_selector(".stage")
    picture(page, "phone-pipeline")
    assert overflow(page) == []


def overflow(page: OpenPage) -> list[str]:
    """The elements that make the page wider than the window."""
    return page.tab.evaluate("""() => document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll("main *")].filter((each) => each.getBoundingClientRect().right > innerWidth)
            .map((each) => each.outerHTML.slice(0, 100))""")


def test_a_keyboard_is_enough(open_page: Open) -> None:
    page = open_page()
    focused = page.tab.locator(":focus")
    assert focused.get_attribute("id") == "question"
    page.tab.keyboard.press("Tab")
    names = []
    for _ in range(6):
        names.append(focused.get_attribute("aria-label"))
        page.tab.keyboard.press("Tab")
    assert names[0] == "Attach a picture, a sound or a clip"
    assert {"Record a sound", "Camera", "Options", "Speak the answer", "Voice"} <= set(names)
    page.tab.get_by_label("Question").focus()
    page.tab.keyboard.type("Who are you?")
    page.tab.keyboard.press("Enter")
    assert page.answer()["text"] == "I am a small demo model. I know cars and simple shapes."
    assert focused.get_attribute("id") == "question"


# Stores the time, in ms since the navigation, at which the page is ready for a question.
_READY = """
new MutationObserver(() => {
  if (document.documentElement.dataset.ready) window.readyAt ??= performance.now();
}).observe(document, { attributeFilter: ["data-ready"], subtree: true });
"""


def test_the_page_is_light_and_quick(open_page: Open) -> None:
    page = open_page(script=_READY)
    size = page.tab.evaluate("""() => performance.getEntries()
        .filter((each) => each.encodedBodySize && each.name.includes("/playground"))
        .reduce((sum, each) => sum + each.encodedBodySize, 0)""")
    times = []
    for _ in range(5):
        page.tab.reload()
        page.ready()
        times.append(page.tab.evaluate("window.readyAt"))
    print(f"{size} bytes without the examples, ready after {[round(each) for each in times]} ms")
    assert 50_000 < size < 200 * 1024
    assert min(times) < 1000
