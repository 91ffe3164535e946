"""A person talks with the model. The server notices when the person has finished, and answers with speech. The person
can interrupt the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_model.judge.speech_recogniser import transcribe, word_errors

from tests.clients.playground.page import OpenPage

if TYPE_CHECKING:
    from playwright.sync_api import WebSocketRoute

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

RIGHT = "There are three cars."

_TURNS = """async () => {
  const { talk } = await import("/playground/main.js");
  return talk.turns.map(({ text, done, speaking, interrupted, latency, underruns }) =>
    ({ text, done, speaking, interrupted, latency, underruns }));
}"""
# A fake microphone. The test decides when it plays speech.
_MICROPHONE = """
const context = new AudioContext({ sampleRate: 16000 });
const microphone = context.createMediaStreamDestination();
navigator.mediaDevices.getUserMedia = async () => { await context.resume(); return microphone.stream.clone(); };
window.say = async (wav) => {
  const bytes = Uint8Array.from(atob(wav), (letter) => letter.charCodeAt(0));
  const source = context.createBufferSource();
  source.buffer = await context.decodeAudioData(bytes.buffer);
  source.connect(microphone);
  source.start();
  await new Promise((resolve) => { source.onended = resolve; });
};
"""

_TRANSCRIPT = "conversation.item.input_audio_transcription"
_TRANSCRIBED, _TRANSCRIPT_DELTA, _TRANSCRIPT_FAILED = (
    f"{_TRANSCRIPT}.{event}" for event in ("completed", "delta", "failed")
)


def turns(page: OpenPage) -> list[dict[str, Any]]:
    return page.tab.evaluate(_TURNS)


def begin(page: OpenPage, picture: Path) -> None:
    """Begin a conversation, and show a picture."""
    page.tab.get_by_role("link", name="Talk").click()
    page.tab.get_by_role("button", name="Start talking").click()
    page.until(lambda: page.tab.locator("#talk-show").is_enabled())
    page.tab.set_input_files("#talk-files", str(picture))
    page.tab.wait_for_selector("#talk-turns img")


def ended(page: OpenPage, count: int) -> dict[str, Any]:
    """Wait until there are this many answers, and the speech of the last answer has been played."""
    page.until(lambda: len(turns(page)) >= count and turns(page)[-1]["done"] and not turns(page)[-1]["speaking"])
    return turns(page)[-1]


def test_a_question_by_microphone_is_answered_when_the_person_has_finished(
    open_page: Open, picture: Picture, data: Path
) -> None:
    page = open_page(flags=(f"--use-file-for-fake-audio-capture={data / 'query_to_cars.wav'}%noloop",))
    page.listen()
    begin(page, data / "cars.jpg")
    answer = ended(page, 1)
    picture(page, "talk")
    assert answer["text"] == RIGHT
    assert answer["latency"] > 0.2
    errors, _ = word_errors(RIGHT, transcribe(page.heard(), 24000))
    assert errors <= 1, "speech is sampled without a seed here, and the recogniser is not perfect either"
    words = page.tab.locator(".question p")
    page.until(words.is_visible)
    picture(page, "talk-transcript")
    assert words.inner_text() != ""
    assert "has not learnt to transcribe" in page.tab.locator(".question small").inner_text()
    page.tab.get_by_role("button", name="End the conversation").click()


def test_the_page_says_why_a_question_has_no_transcript(open_page: Open, picture: Picture, data: Path) -> None:
    """On the way to the page, the event that reports the finished transcript is replaced by an event that reports a
    failed transcript.
    """

    def relay(page: WebSocketRoute) -> None:
        def pass_on(message: str | bytes) -> None:
            event = json.loads(message)
            if event["type"] == _TRANSCRIBED:
                error = {"type": "server_error", "code": "worker_lost", "message": "A worker ended.", "param": None}
                event |= {"type": _TRANSCRIPT_FAILED, "error": error}
            if event["type"] != _TRANSCRIPT_DELTA:
                page.send(json.dumps(event))

        page.connect_to_server().on_message(pass_on)

    page = open_page(flags=(f"--use-file-for-fake-audio-capture={data / 'query_to_cars.wav'}%noloop",))
    page.tab.route_web_socket("**/v1/realtime**", relay)
    page.tab.reload()
    page.ready()
    begin(page, data / "cars.jpg")
    assert ended(page, 1)["text"] == RIGHT
    note = page.tab.locator(".question small")
    page.until(lambda: note.inner_text() == "No transcript: A worker ended.")
    assert not page.tab.locator(".question p").is_visible()
    picture(page, "talk-transcript-failed")
    page.tab.get_by_role("button", name="End the conversation").click()


def test_a_person_interrupts_and_is_answered_again(open_page: Open, picture: Picture, data: Path) -> None:
    question = OpenPage.base64_of(data / "query_to_cars.wav")
    page = open_page(script=_MICROPHONE)
    begin(page, data / "cars.jpg")
    page.tab.evaluate("wav => window.say(wav)", question)
    for count in (1, 2, 3):  # on a busy machine, an answer may end before the server has noticed the next question
        page.until(lambda count=count: len(turns(page)) == count and turns(page)[-1]["speaking"])
        page.tab.evaluate("wav => window.say(wav)", question)
        page.until(lambda count=count: len(turns(page)) > count)
        if turns(page)[-2]["interrupted"]:
            break
    answer = ended(page, count + 1)
    picture(page, "talk-interrupted")
    assert turns(page)[-2]["interrupted"]
    assert (answer["text"], answer["interrupted"]) == (RIGHT, False)


def test_a_person_holds_a_button_to_speak(open_page: Open, data: Path) -> None:
    page = open_page(script=_MICROPHONE)
    page.tab.get_by_role("link", name="Talk").click()
    page.tab.get_by_label("Push to talk").check()
    begin(page, data / "cars.jpg")
    hold = page.tab.get_by_role("button", name="Hold to speak")
    hold.focus()
    page.tab.keyboard.down(" ")
    page.tab.evaluate("wav => window.say(wav)", OpenPage.base64_of(data / "query_to_cars.wav"))
    page.tab.wait_for_timeout(300)
    page.tab.keyboard.up(" ")
    assert ended(page, 1)["text"] == RIGHT
