"""The text-mode examples of the usage guide work as printed: with curl, and with Python's `requests`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from gpu_check.questions import CARS, EXAMPLES

from tests.server import Server

COMMON = {"model": "qwen3-omni", "modalities": ["text"], "max_tokens": 16}

CURL = """\
curl -X POST http://localhost:{port}/v1/chat/completions \\
-H "Content-Type: application/json" \\
-d '{body}'
"""


def body(name: str) -> dict[str, Any]:
    return EXAMPLES[name] | COMMON


def check(result: dict[str, Any], name: str) -> None:
    """Check an answer: it has text, its length is within the requested limit, and its prompt contains all media."""
    [choice] = result["choices"]
    assert choice["message"]["content"]
    assert result["model"] == "qwen3-omni"
    usage = result["usage"]
    assert 0 < usage["completion_tokens"] <= 16
    assert choice["finish_reason"] == ("length" if usage["completion_tokens"] == 16 else "stop")
    for kind in ("image", "audio", "video"):
        assert (usage["prompt_tokens_details"][f"{kind}_tokens"] > 0) == (f"{kind}s" in EXAMPLES[name])


@pytest.mark.parametrize("name", EXAMPLES)
def test_curl(server: Server, repository: Path, name: str) -> None:
    command = CURL.format(port=server.url.rpartition(":")[2], body=json.dumps(body(name), indent=0))
    quietly = f"{command.strip()} --silent --show-error --write-out '\n%{{http_code}}'"
    done = subprocess.run(["sh", "-c", quietly], cwd=repository, capture_output=True, text=True, timeout=60, check=True)
    answer, _, status = done.stdout.rpartition("\n")
    assert status == "200"
    check(json.loads(answer), name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_python(server: Server, name: str) -> None:
    resp = requests.post(f"{server.url}/v1/chat/completions", json=body(name), timeout=60)
    resp.raise_for_status()
    result = resp.json()
    check(result, name)
    assert result["choices"][0]["message"]["content"] == server.post(body(name))[1]["choices"][0]["message"]["content"]


def test_every_parameter_of_the_guides_table_is_taken(server: Server) -> None:
    """Each field is sent with the default or the example in the table."""
    status, result = server.post(
        {
            "model": None,
            "messages": [{"role": "user", "content": CARS}],
            "modalities": ["text"],
            "images": None,
            "audios": None,
            "videos": None,
            "max_tokens": 16,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "repetition_penalty": None,
            "seed": None,
            "stream": False,
            "audio": {"voice": "default", "format": "wav"},
            "stage_sampling": {"thinker": {"temperature": 0.8}},
        }
    )
    assert status == 200, result
    assert result["choices"][0]["message"]["content"]
