"""Web pages of other origins may use the API only if the operator lists their origin."""

from __future__ import annotations

import pytest

from tests.gateway.scripted import HELLO, serving

PAGE = "https://app.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


async def headers(served, method: str, path: str, sent: dict[str, str], **options) -> tuple[int, dict[str, str]]:
    """The status and the CORS headers of a response."""
    async with served.session.request(method, served.url + path, headers=sent, **options) as response:
        await response.read()
        told = {name: value for name, value in response.headers.items() if name.startswith(("Access-", "Vary"))}
        return response.status, told


@pytest.mark.parametrize(("method", "sent"), [("GET", {"Origin": PAGE}), ("OPTIONS", PREFLIGHT)])
async def test_no_page_is_told_that_it_may(method, sent):
    async with serving() as served:
        status, told = await headers(served, method, "/v1/models", sent)
    assert (status, told) == (200 if method == "GET" else 405, {})


async def test_a_page_cannot_post_without_asking_first():
    """Without a preflight request, browsers send only forms and plain text. The server accepts neither."""
    async with serving() as served:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            sent = {"Origin": PAGE, "Content-Type": kind}
            assert (await headers(served, "POST", "/v1/chat/completions", sent, data=b"{}"))[0] == 415


async def test_a_listed_page_may_ask_and_read():
    async with serving(allowed_origins=[PAGE], api_keys=["k"]) as served:
        status, told = await headers(served, "OPTIONS", "/v1/chat/completions", PREFLIGHT)
        assert status == 204
        assert told["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in told["Access-Control-Allow-Methods"]
        assert told["Access-Control-Allow-Headers"].startswith("Authorization")
        assert "Access-Control-Allow-Credentials" not in told
        key = {"Origin": PAGE, "Authorization": "Bearer k"}
        for body in (HELLO, HELLO | {"stream": True}):
            status, told = await headers(served, "POST", "/v1/chat/completions", key, json=body)
            assert (status, told["Access-Control-Allow-Origin"], told["Vary"]) == (200, PAGE, "Origin")
            assert "X-Request-Id" in told["Access-Control-Expose-Headers"]


async def test_a_listed_page_can_read_errors():
    async with serving(allowed_origins=[PAGE], api_keys=["k"]) as served:
        status, told = await headers(served, "POST", "/v1/chat/completions", {"Origin": PAGE}, json=HELLO)
    assert (status, told["Access-Control-Allow-Origin"]) == (401, PAGE)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example", "https://app.example.evil.example", "null", PAGE + ":444"]
)
async def test_another_page_is_not_told_that_it_may(origin):
    async with serving(allowed_origins=[PAGE]) as served:
        status, told = await headers(served, "OPTIONS", "/v1/chat/completions", PREFLIGHT | {"Origin": origin})
        assert (status, told) == (405, {"Vary": "Origin"})
        status, told = await headers(served, "GET", "/v1/models", {"Origin": origin})
        assert (status, told) == (200, {"Vary": "Origin"})


async def test_all_pages_may_where_the_operator_says_so():
    async with serving(allowed_origins=["*"]) as served:
        status, told = await headers(served, "OPTIONS", "/v1/chat/completions", PREFLIGHT)
        assert (status, told["Access-Control-Allow-Origin"]) == (204, "*")
        assert (await headers(served, "GET", "/v1/models", {}))[1]["Access-Control-Allow-Origin"] == "*"
