"""The page sends the options that a person sets. It also shows each request as a program, and this program works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo_model.judge.speech_recogniser import transcribe, word_errors

from tests.clients.conftest import LIBRARIES
from tests.clients.playground.page import OpenPage

if TYPE_CHECKING:
    from playwright.sync_api import Route

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

STOCK = {
    "type": "function",
    "function": {
        "name": "in_stock",
        "parameters": {
            "type": "object",
            "properties": {"kind": {"type": "string", "enum": ["car"]}},
            "required": ["kind"],
            "additionalProperties": False,
        },
    },
}
COUNT = {
    "type": "object",
    "properties": {"cars": {"enum": [3]}},
    "required": ["cars"],
    "additionalProperties": False,
}


@pytest.fixture
def asked(open_page: Open, data: Path) -> OpenPage:
    """The page with a text answer to a question. The question has characters with a special meaning in a shell."""
    page = open_page()
    page.attach(data / "cars.jpg")
    page.ask("How many cars are there in the picture?")
    page.answer()
    page.tab.get_by_role("button", name="Show the request as a program").click()
    return page


def program(page: OpenPage, name: str) -> str:
    """The program that the page has copied to the clipboard."""
    page.tab.get_by_role("button", name=f"Copy the {name} program").click()
    return page.tab.evaluate("navigator.clipboard.readText()")


def test_the_curl_command_gets_the_same_answer(asked: OpenPage, picture: Picture, data: Path) -> None:
    picture(asked, "programs")
    done = subprocess.run(
        ["sh", "-c", program(asked, "curl")], cwd=data, capture_output=True, text=True, timeout=60, check=True
    )
    [choice] = json.loads(done.stdout)["choices"]
    assert choice["message"]["content"] == "There are three cars."
    assert choice["message"]["audio"]["data"]


def test_the_python_program_gets_the_same_answer(asked: OpenPage, data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "cars.jpg", tmp_path)
    done = subprocess.run(
        [f"{LIBRARIES}/bin/python", "-c", program(asked, "Python")],
        cwd=tmp_path,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("There are three cars.\n", "")
    assert (tmp_path / "answer.wav").read_bytes()[:4] == b"RIFF"


def test_a_schema_a_limit_and_sampling_are_sent(open_page: Open, picture: Picture) -> None:
    page = open_page()
    page.tab.get_by_label("Speak the answer").click()
    sent: list[str] = []
    page.tab.on("request", lambda request: sent.append(request.post_data or ""))
    page.tab.get_by_role("button", name="Options").click()
    page.tab.get_by_label("JSON schema").fill(json.dumps(COUNT))
    page.tab.get_by_label("Token limit").fill("64")
    page.tab.get_by_label("Seed").fill("7")
    page.tab.get_by_label("temperature of talker_ar").fill("0.5")
    picture(page, "options")
    page.tab.get_by_role("button", name="Done").click()
    page.ask("How many cars?")
    assert json.loads(page.answer()["text"]) == {"cars": 3}
    [body] = [json.loads(each) for each in sent if each]
    assert (body["seed"], body["max_tokens"]) == (7, 64)
    assert body["stage_sampling"] == {"talker_ar": {"temperature": 0.5}}


@pytest.mark.parametrize("audio_format", ["wav", "pcm16", "flac", "mp3", "opus", "aac"])
def test_the_speech_comes_in_the_chosen_format(open_page: Open, data: Path, tmp_path: Path, audio_format: str) -> None:
    page = open_page()
    page.set_seed(1)
    page.listen()
    page.tab.get_by_role("button", name="Options").click()
    page.tab.get_by_label("Format of the speech").select_option(audio_format)
    page.tab.get_by_role("button", name="Done").click()
    with page.tab.expect_request("**/v1/chat/completions") as sent:
        page.tab.get_by_role("button", name="Count the cars").click()
    answer = page.answer()
    assert json.loads(sent.value.post_data or "")["audio"]["format"] == audio_format
    assert page.tab.locator(".answer .problem").inner_text() == ""
    assert answer["played"] == pytest.approx(answer["soundSeconds"], abs=0.01)
    errors, _ = word_errors("There are three cars.", transcribe(page.heard(), 24000))
    assert errors == 0
    with page.tab.expect_download() as saved:
        page.tab.get_by_role("button", name="Save the speech").click()
    kept = tmp_path / saved.value.suggested_filename
    saved.value.save_as(kept)
    assert kept.suffix == (".wav" if audio_format == "pcm16" else f".{audio_format}")
    assert read_seconds(kept) == pytest.approx(answer["soundSeconds"], abs=0.1)
    page.tab.get_by_role("button", name="Show the request as a program").click()
    assert f'"format": "{audio_format}"' in program(page, "curl")
    assert f'"answer.{audio_format}"' in program(page, "Python")


def read_seconds(path: Path) -> float:
    """The length of a sound file in seconds, which is found by decoding the file."""
    import av

    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def test_a_wrong_option_gets_the_server_s_message(open_page: Open) -> None:
    page = open_page()
    page.expected.append("status of 400")
    page.tab.get_by_role("button", name="Options").click()
    page.tab.get_by_label("Tools").fill("{")
    page.tab.get_by_role("button", name="Done").click()
    assert page.tab.locator("#options-problem").inner_text().startswith("This is not JSON")
    page.tab.get_by_label("Tools").fill('[{"type": "function", "function": {}}]')
    page.tab.get_by_role("button", name="Done").click()
    page.ask("Hello")
    page.answer("failed")
    page.tab.get_by_role("button", name="Options").click()
    assert "tools[0].function" in page.tab.locator("#options-problem").inner_text()
    assert page.tab.get_by_label("Tools").get_attribute("aria-invalid") == "true"


def with_a_call(route: Route) -> None:
    """Force the model to call a tool, because the demo model was not trained to call tools."""
    body = json.loads(route.request.post_data or "")
    first = all(message["role"] != "tool" for message in body["messages"])
    route.continue_(post_data=json.dumps(body | {"tool_choice": "required" if first else "none"}))


def test_a_person_gives_the_result_of_a_tool(open_page: Open, picture: Picture) -> None:
    page = open_page()
    page.tab.get_by_role("button", name="Options").click()
    page.tab.get_by_label("Tools").fill(json.dumps([STOCK]))
    page.tab.get_by_role("button", name="Done").click()
    page.tab.route("**/v1/chat/completions", with_a_call)
    page.ask("Are there cars in stock?")
    page.answer()
    assert page.tab.locator(".call").inner_text() == 'in_stock({"kind": "car"})'
    page.tab.get_by_label("Result of in_stock").fill("3")
    picture(page, "tool")
    with page.tab.expect_request("**/v1/chat/completions") as sent:
        page.tab.get_by_role("button", name="Send the result").click()
    page.answer()
    _, called, result = json.loads(sent.value.post_data or "")["messages"]
    [call] = called["tool_calls"]
    assert (result["tool_call_id"], result["content"]) == (call["id"], "3")
