"""Controls one open page for a test, and records what the page does."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Request

# Maximum seconds for an answer, on a machine that also runs the server and a browser.
ANSWER_SECONDS = 60.0

_REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => console.error("CSP", event.violatedDirective, event.blockedURI));
"""
# Records the sound that the page's own audio graph sends to the loudspeaker.
_TAP = """async () => {
  const { player } = await import("/playground/player.js");
  await player.prepare();
  const tap = new AudioWorkletNode(player.context, "capture", { numberOfOutputs: 0 });
  window.heard = [];
  tap.port.onmessage = ({ data }) => window.heard.push(data);
  player.output.connect(tap);
}"""
_HEARD = """() => {
  const all = new Float32Array(window.heard.reduce((sum, each) => sum + each.length, 0));
  let at = 0;
  for (const each of window.heard) { all.set(each, at); at += each.length; }
  const bytes = new Uint8Array(all.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}"""
_LAST = """async () => {
  const { conversation } = await import("/playground/main.js");
  const last = conversation.turns.at(-1);
  return last?.role === "assistant" ? { text: last.text, ...last.measured } : null;
}"""


class OpenPage:
    """The page in one tab of a separate browser profile.

    Args:
        url: Address of the server.

    Attributes:
        tab: Playwright's page.
        complaints: Errors and warnings that the browser has written to the page's console.
        expected: Parts of complaints that the test causes on purpose; they are left out of `complaints`.
        addresses: Every URL that the page has requested, except data URLs and blob URLs.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.complaints: list[str] = []
        self.expected: list[str] = []
        self.addresses: list[str] = []
        self.tab = context.new_page()
        self.tab.add_init_script(_REPORT_VIOLATIONS)
        self.tab.on("console", self._take_message)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", self._take_request)

    def ready(self) -> None:
        """Wait until the page is ready for a question."""
        self.tab.wait_for_selector("html[data-ready]")

    def ask(self, text: str) -> None:
        """Type a question and send it."""
        self.tab.get_by_label("Question").fill(text)
        self.tab.get_by_label("Question").press("Enter")

    def attach(self, *paths: Path) -> None:
        """Choose files, and wait until they are attached."""
        self.tab.set_input_files("#files", [str(path) for path in paths])
        self.until(lambda: self.tab.locator("#attached .item").count() == len(paths))

    @staticmethod
    def base64_of(path: Path) -> str:
        """The content of a file in base64."""
        return base64.b64encode(path.read_bytes()).decode()

    def answer(self, state: str = "complete") -> dict[str, Any]:
        """Wait until the last answer has ended in `state`, and its speech has been played. Returns the values that the
        page has measured.
        """
        self.until(lambda: (last := self.last()) is not None and last["state"] not in ("asking", "streaming"))
        found = self.last()
        assert found is not None
        assert found["state"] == state, self.tab.locator(".answer").last.inner_text()
        self.until(lambda: (last := self.last()) is not None and last["over"])
        return self.last() or {}

    def last(self) -> dict[str, Any] | None:
        """The last answer as it is now; None if there is none."""
        return self.tab.evaluate(_LAST)

    def set_seed(self, seed: int) -> None:
        """Let all answers from now on be sampled with this seed, so that the same speech is made in each run."""
        self.tab.get_by_role("button", name="Options").click()
        self.tab.get_by_label("Seed").fill(str(seed))
        self.tab.get_by_role("button", name="Done").click()

    def listen(self) -> None:
        """Begin to record what the page plays."""
        self.tab.evaluate(_TAP)

    def heard(self) -> numpy.ndarray:
        """The sound that the page has played since `listen`, as samples at 24 kHz."""
        return numpy.frombuffer(base64.b64decode(self.tab.evaluate(_HEARD)), "<f4")

    def until(self, condition: Callable[[], Any], seconds: float = ANSWER_SECONDS) -> None:
        """Wait until `condition` is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the page never got there"
            self.tab.wait_for_timeout(50)  # lets Playwright handle events

    def _take_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in self.expected):
            self.complaints.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _take_request(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.addresses.append(request.url)
