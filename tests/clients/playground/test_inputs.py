"""A person adds pictures, sounds and clips to the page in every way that a browser offers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.playground.page import OpenPage

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

# Lets the page handle files as if a person had dropped or pasted them.
_GIVE = """async ([how, name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, { type }));
  const event = how === "drop"
    ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true });
  document.querySelector("#question").dispatchEvent(event);
}"""


def give(page: OpenPage, how: str, path: Path, media_type: str) -> None:
    page.tab.evaluate(_GIVE, [how, path.name, media_type, page.base64_of(path)])
    page.tab.wait_for_selector("#attached .item")


def test_a_spoken_question_is_recorded_from_the_microphone(open_page: Open, picture: Picture, data: Path) -> None:
    sound = data / "query_to_cars.wav"
    page = open_page(flags=(f"--use-file-for-fake-audio-capture={sound}%noloop",))
    page.attach(data / "cars.jpg")
    page.tab.get_by_role("button", name="Record a sound").click()
    page.until(lambda: float(page.tab.locator("#recorded").inner_text().removesuffix(" s") or 0) > 3.2)
    picture(page, "recording")
    page.tab.get_by_role("button", name="Stop the recording").click()
    page.tab.wait_for_selector("#attached .item.audio")
    page.tab.get_by_role("button", name="Send").click()
    assert page.answer()["text"] == "There are three cars."


def test_a_clip_is_dropped_and_a_picture_is_pasted(open_page: Open, data: Path) -> None:
    page = open_page()
    give(page, "drop", data / "draw.mp4", "video/mp4")
    page.ask("What is being drawn in the video?")
    assert page.answer()["text"] == "A house is being drawn."
    page.tab.get_by_role("button", name="New chat").click()
    give(page, "paste", data / "cars.jpg", "image/jpeg")
    page.ask("How many cars are there in the picture?")
    assert page.answer()["text"] == "There are three cars."


@pytest.mark.parametrize("button", ["Take a picture", "Film a clip"])
def test_the_camera_gives_pictures_and_clips(open_page: Open, picture: Picture, button: str) -> None:
    page = open_page()
    page.tab.get_by_role("button", name="Camera").click()
    page.until(lambda: page.tab.evaluate("document.getElementById('viewfinder').videoWidth") > 0)
    page.tab.get_by_role("button", name=button).click()
    if button == "Film a clip":
        page.tab.wait_for_timeout(1500)
        picture(page, "camera")
        page.tab.get_by_role("button", name="Use the clip").click()
    page.tab.wait_for_selector("#attached .item")
    page.ask("What do you see?")
    assert page.answer()["text"]  # the fake camera shows nothing that the demo model knows


def test_a_bad_file_gets_the_server_s_message_where_it_is_shown(
    open_page: Open, picture: Picture, data: Path, tmp_path: Path
) -> None:
    page = open_page()
    page.expected.append("status of 400")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((data / "cars.jpg").read_bytes()[:2000])
    page.attach(data / "cars.jpg", broken)
    page.ask("How many cars are there?")
    page.answer("failed")
    picture(page, "bad-file")
    good, bad = page.tab.locator(".question .item").all()
    message = bad.get_by_role("alert").inner_text()
    assert message == page.tab.locator(".answer .problem").inner_text()
    assert message.startswith("The image is damaged")
    assert not good.get_by_role("alert").is_visible()


def test_a_file_that_is_no_media_is_not_attached(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4")
    page.tab.set_input_files("#files", [str(tmp_path / "letter.pdf")])
    page.until(lambda: "only pictures, sounds and clips" in page.tab.locator("#notice").inner_text())
    assert page.tab.locator("#attached .item").count() == 0
