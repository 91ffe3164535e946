"""The files of the page: which clients get them, and with which headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gateway.playground
from tests.gateway.scripted import serving

PAGE = Path(gateway.playground.__file__).parent / "page"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("name", sorted(path.name for path in PAGE.iterdir()))
async def test_a_file_is_sent_with_a_strict_policy_and_never_twice(name: str) -> None:
    async with serving() as served:
        address = f"{served.url}/playground/{name}"
        async with served.session.get(address) as response:
            assert response.status == 200
            assert await response.read() == (PAGE / name).read_bytes()
            policy = response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        async with served.session.get(address, headers={"If-None-Match": response.headers["ETag"]}) as again:
            assert (again.status, await again.read()) == (304, b"")
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


async def test_a_browser_is_led_from_the_root_to_the_page_and_a_program_is_not() -> None:
    async with serving(api_keys=["k"]) as served:
        async with served.session.get(f"{served.url}/", headers=BROWSER) as response:
            assert (response.status, response.url.path) == (200, "/playground")
            assert await response.read() == (PAGE / "index.html").read_bytes()
        _, index = await served.get("/")
    assert index["name"] == "omni-pipeline"


@pytest.mark.parametrize(
    "path", ["/playground/..%2fpage_files.py", "/playground/page_files.py", "/playground/x/main.js"]
)
async def test_nothing_else_is_a_file_of_the_page(path: str) -> None:
    async with serving() as served:
        assert (await served.get(path))[0] == 404


async def test_it_can_be_turned_off() -> None:
    async with serving(playground=False) as served:
        assert [(await served.get(path))[0] for path in ("/playground", "/playground/main.js")] == [404, 404]
        async with served.session.get(f"{served.url}/", headers=BROWSER) as response:
            assert (response.status, response.content_type) == (200, "application/json")


def test_the_page_is_small_and_names_no_other_host() -> None:
    code = [path for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")]
    assert sum(path.stat().st_size for path in PAGE.iterdir()) <= 200 * 1024
    addresses = {found for path in code for found in re.findall(r"https?://[^\s\"'`)]+", path.read_text())}
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_every_file_of_the_page_that_a_module_names_is_there() -> None:
    for path in PAGE.glob("*.js"):
        for name in re.findall(r'"\./([\w-]+\.js)"', path.read_text()):
            assert (PAGE / name).is_file(), f"{path.name} names {name}"
