"""Starts the browser, opens the page, and checks after each test that the page has caused no errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.conftest import LIBRARIES
from tests.clients.playground.page import OpenPage
from tests.conftest import DEMO, ROOT
from tests.server import Server, fused

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# `make test-clients` sets this variable to the path that `scripts/install_browser.sh` prints.
BROWSER = os.environ.get("OMNI_BROWSER", "")
# Pictures of the page are kept here, so that a person can look at them after the run.
PICTURES = ROOT / "build" / "playground"

KEY = "a-secret-key"
FLAGS = [
    "--no-sandbox",  # Chromium's sandbox does not start for root, and the tests may run as root
    "--use-fake-ui-for-media-stream",  # allows microphone and camera without asking
    "--use-fake-device-for-media-stream",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = "the client libraries are" if not LIBRARIES else "Chromium is" if not BROWSER else ""
    if missing:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"{missing} not installed: run make test-clients"))


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Browser]]:
    """A function that starts a browser with further flags. The browsers run until the end of the session."""
    # The packages of the clients' environment come last in the path, so they do not hide packages of the tests'
    # environment.
    [packages] = Path(LIBRARIES).glob("lib/python*/site-packages")
    sys.path.append(str(packages))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started: dict[tuple[str, ...], Browser] = {}

        def browser(*flags: str) -> Browser:
            if flags not in started:
                started[flags] = playwright.chromium.launch(executable_path=BROWSER, args=[*FLAGS, *flags])
            return started[flags]

        yield browser
        for each in started.values():
            each.close()
    sys.path.remove(str(packages))


@pytest.fixture
def open_page(launch: Callable[..., Browser], demo_server: Server) -> Iterator[Callable[..., OpenPage]]:
    """A function that opens the page in a separate browser profile. At the end of the test, no page may have written an
    error to its console, broken its content security policy, or sent a request to another host.

    Args:
        url: Address of the server; by default the address of the server of the demo model.
        flags: Further flags of the browser.
        wait: Whether to wait until the page is ready for a question.
        script: A script that runs before the scripts of the page.
        options: Options of the browser's profile, such as `viewport`.
    """
    opened: list[OpenPage] = []

    def show(
        url: str = "", flags: tuple[str, ...] = (), wait: bool = True, script: str = "", **options: Any
    ) -> OpenPage:
        context = launch(*flags).new_context(**{"permissions": ["clipboard-read", "clipboard-write"], **options})
        page = OpenPage(context, url or demo_server.url)
        opened.append(page)
        page.tab.add_init_script(script)
        page.tab.goto(page.url)
        if wait:
            page.ready()
        return page

    yield show
    for page in opened:
        page.context.close()
    for page in opened:
        assert page.complaints == []
        assert {address for address in page.addresses if not address.startswith(page.url)} == set()


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without speech that has the key `KEY`."""
    server = Server(DEMO, tmp_path_factory.mktemp("locked"), fused(), arguments=["--api-key", KEY]).start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """A function that saves a picture of a page under a given name."""

    def keep(page: OpenPage, name: str) -> Path:
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        page.tab.screenshot(path=path)
        return path

    return keep
