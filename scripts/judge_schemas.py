"""Asks a running server for answers that conform to random JSON schemas, and validates the answers.

    sgl-omni serve --model-path checkpoints/tiny --text-only --port 8008        # in another terminal
    python scripts/judge_schemas.py --url http://127.0.0.1:8008 --schemas 500

Every second answer is greedy, and the others are sampled. With `--tools`, each schema describes the arguments of a
strict tool that the model must call. The exit status is 1 if a schema was refused, or if an answer is invalid. An
answer is invalid if it is not JSON, or does not conform to its schema. Answers that were cut off do not count as
invalid. With `--first-use`, the script measures how much longer the first token takes when a schema is new.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jsonschema
from random_schemas import Schema, random_schema


@dataclass
class Verdict:
    """The result for one schema.

    Attributes:
        outcome: ``valid``, ``cut``, ``refused`` or ``invalid``.
        reason: Why the schema was refused, or what is wrong with the answer.
    """

    schema: Schema
    outcome: str
    reason: str = ""

    @property
    def wrong(self) -> bool:
        return self.outcome in ("refused", "invalid")


def judge(url: str, number: int, tokens: int, *, tools: bool = False) -> Verdict:
    """Ask for JSON that conforms to a random schema, and validate this JSON. The JSON is the answer itself or, with
    `tools`, the arguments of a tool.
    """
    schema = random_schema(random.Random(number))
    body = {
        "messages": [{"role": "user", "content": f"Describe thing {number} in JSON."}],
        **(_tool(schema) if tools else _response_format(schema)),
        "max_tokens": tokens,
        "seed": number,
        "temperature": (0.0, 1.0)[number % 2],
    }
    try:
        choice = _post(f"{url}/v1/chat/completions", body)["choices"][0]
    except urllib.error.HTTPError as error:
        return Verdict(schema, "refused", json.load(error)["error"]["message"])
    if choice["finish_reason"] == "length":
        return Verdict(schema, "cut")
    text = _written(choice, tools=tools)
    try:
        answer = json.loads(text)
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(answer)
    except (ValueError, jsonschema.ValidationError) as error:
        return Verdict(schema, "invalid", f"{str(error).splitlines()[0]} in {text!r}")
    return Verdict(schema, "valid")


def judge_many(url: str, numbers: range, tokens: int, concurrency: int, *, tools: bool = False) -> list[Verdict]:
    """The results for the random schemas with these numbers."""
    with ThreadPoolExecutor(concurrency) as clients:
        return list(clients.map(lambda number: judge(url, number, tokens, tools=tools), numbers))


def first_use_seconds(url: str, number: int) -> float:
    """How much longer the first token takes when a schema is new."""
    schema = random_schema(random.Random(number))
    body = {"messages": [{"role": "user", "content": "Hello"}], "guided_json": schema, "max_tokens": 1}
    times = []
    for _ in range(4):
        began = time.perf_counter()
        _post(f"{url}/v1/chat/completions", body)
        times.append(time.perf_counter() - began)
    return times[0] - statistics.median(times[1:])


def main(arguments: list[str] | None = None) -> int:
    """Judge the schemas and print a report. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8008", help="address of the server (%(default)s)")
    parser.add_argument("--schemas", type=int, default=500, help="number of schemas (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first schema (%(default)s)")
    parser.add_argument("--tokens", type=int, default=400, help="maximum number of tokens in an answer (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time (%(default)s)")
    parser.add_argument("--tools", action="store_true", help="use the schemas for arguments of tools, not for answers")
    parser.add_argument("--first-use", action="store_true", help="measure how long new schemas delay the first token")
    options = parser.parse_args(arguments)
    if options.first_use:
        delays = sorted(first_use_seconds(options.url, options.first + number) for number in range(options.schemas))
        print(
            f"first use of a schema, ms: median {1000 * delays[len(delays) // 2]:.1f}, largest {1000 * delays[-1]:.1f}"
        )
        return 0
    numbers = range(options.first, options.first + options.schemas)
    verdicts = judge_many(options.url, numbers, options.tokens, options.concurrency, tools=options.tools)
    for verdict in verdicts:
        if verdict.wrong:
            print(f"{verdict.outcome}: {verdict.reason}\n  {json.dumps(verdict.schema)}")
    counts = Counter(verdict.outcome for verdict in verdicts)
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("valid", "cut", "refused", "invalid")))
    return int(any(verdict.wrong for verdict in verdicts))


def _response_format(schema: Schema) -> dict[str, Any]:
    named = {"name": "thing", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _tool(schema: Schema) -> dict[str, Any]:
    function = {"name": "save_thing", "parameters": schema, "strict": True}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


def _written(choice: dict[str, Any], *, tools: bool) -> str:
    """The JSON text of an answer. If an answer should call a tool but does not, the text is empty."""
    message = choice["message"]
    if not tools:
        return str(message["content"])
    calls = message.get("tool_calls", [])
    return str(calls[0]["function"]["arguments"]) if len(calls) == 1 and choice["finish_reason"] == "tool_calls" else ""


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main())
