"""The examples on every page for users work as printed. Requests are sent to a server, and commands are checked with
`config check`.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from msgspec import Struct
from typer.testing import CliRunner

from omni_pipeline.cli import app
from tests.server import Server

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/quickstart.md", "docs/usage.md", "docs/realtime.md", "docs/migrating.md")
# GPUs that have enough memory for the commands of the pages. `ONE` is for commands with a colocated layout, which has
# all stages on one GPU.
SEVERAL, ONE = "4xH100-80GB", "1xH200-141GB"


class Block(Struct, frozen=True):
    """A fenced code block of a page, with the number of its first line."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(start: str) -> list[Block]:
    """Each command that begins with `start`, with continuation lines joined and comments removed."""
    return [
        Block(block.page, block.line, "sh", line)
        for block in BLOCKS
        if block.language == "sh"
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.startswith(start)
    ]


def ids(block: Block) -> str:
    return f"{block.page}:{block.line}"


def curls() -> list[Block]:
    """Each request in a block, from the word `curl` to the next `curl` or to the end of the block."""
    return [
        Block(block.page, block.line, "sh", command.strip())
        for block in BLOCKS
        if block.language == "sh"
        for command in re.split(r"^(?=curl )", block.text, flags=re.MULTILINE)
        if command.startswith("curl ")
    ]


def at(server: Server, text: str) -> str:
    assert "http://localhost:8008" in text
    return text.replace("http://localhost:8008", server.url)


@pytest.mark.parametrize("block", curls(), ids=ids)
def test_a_request_with_curl_is_answered(speaker: Server, data: Path, tmp_path: Path, block: Block) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(data)
    if "| jq" in block.text and subprocess.run(["sh", "-c", "command -v jq"], capture_output=True).returncode:
        block = Block(block.page, block.line, "sh", block.text.partition("| jq")[0])
    command = re.sub(r"^curl\b", "curl --fail-with-body --silent --show-error", at(speaker, block.text))
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    speaker: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """The blocks run as if a reader typed them: in one Python session, in the root of a checkout."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "python":
            source = block.text.replace("localhost:8008", speaker.url.removeprefix("http://"))
            code = compile("\n" * block.line + source, str(ROOT / page), "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, session)


SERVE = [*commands("sgl-omni serve"), *commands("python scripts/run_qwen3_omni_speech_server.py")]


@pytest.mark.parametrize("block", SERVE, ids=ids)
def test_a_command_that_serves_is_valid(monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(block.text, comments=True)
    gpus = ONE if "--colocate" in arguments else SEVERAL
    done = CliRunner().invoke(app, ["config", "check", *arguments[2:], "--gpus", gpus])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert "The configuration is valid" in done.output


@pytest.mark.parametrize("block", commands("sgl-omni plan"), ids=ids)
def test_a_command_that_plans_has_known_flags(monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    """The command's checkpoint does not exist on this machine. This must be the only error."""
    arguments = shlex.split(block.text, comments=True)
    done = CliRunner().invoke(app, ["plan", *arguments[2:]])
    assert "no such" not in done.output.lower()
    assert "directory" in done.output + str(done.exception)


def test_the_pages_show_something_of_each() -> None:
    assert len(curls()) >= 15
    assert len(SERVE) >= 12
    assert all(any(block.page == page and block.language == "python" for block in BLOCKS) for page in PAGES)


@pytest.mark.parametrize("page", [*PAGES, "docs/api.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target
