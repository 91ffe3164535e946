"""Fuzzes a running server with requests generated from its OpenAPI description, with damaged media of all kinds, with
forms that ask for transcripts, and with realtime sessions.

    sgl-omni serve --model-path checkpoints/tiny --port 8008 \\
        --set stages.preprocessing.options.max_resized_pixels=1000000        # in another terminal
    python scripts/fuzz.py --url http://127.0.0.1:8008 --part media --cases 10000 --seed 1

A generated request can ask for pictures of any size (`min_pixels`), and each case may take at most a minute. On a few
CPU cores, the encoder takes longer than a minute for a picture of the default maximum size. So the example sets a lower
limit.

The same seed makes the same cases, and `--first` starts at a later case. So a long run can be divided into parts, and a
single case can be repeated. (Hypothesis also puts constants from the project's sources into generated requests. So
generated requests are the same only if the sources are the same.) The script prints a report. With `--report`, the
script also writes the report to a file, as JSON. The exit status is 1 if an answer was wrong: a 5xx that is not a
deliberate 503, an answer that the API's description does not allow, or no answer at all. The status is also 1 if a
codec library crashed and the crash affected more requests than the request that caused the crash.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import re
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from fuzzing import conversations, forms, media, sending
from fuzzing.api import BATCH, ApiFuzzer
from fuzzing.findings import FuzzReport
from fuzzing.responses import ResponsesFuzzer
from fuzzing.seeds import Seed, seeds
from fuzzing.speech import SpeechFuzzer

FUZZERS = {"api": ApiFuzzer, "responses": ResponsesFuzzer, "speech": SpeechFuzzer}


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print a report. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8008", help="address of the server (%(default)s)")
    parser.add_argument(
        "--part",
        choices=("api", "responses", "speech", "media", "forms", "conversations"),
        required=True,
        help="kind of cases: generated chat requests, generated requests to the Responses API, generated texts to be "
        "read aloud, damaged media, forms with sounds, or realtime sessions with random events",
    )
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this time, even if cases are left"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the cases (%(default)s)")
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="number of the first case; for generated requests, number of the first batch of 50 cases",
    )
    parser.add_argument(
        "--concurrency", type=int, default=4, help="cases at a time; not for generated requests (%(default)s)"
    )
    parser.add_argument("--report", type=Path, help="file to write the report to, as JSON")
    options = parser.parse_args(arguments)

    report = FuzzReport(options.part, options.seed, options.first)
    before = restarts(options.url)
    began = time.monotonic()
    if options.part in ("media", "forms"):
        numbers = within(options.seconds, range(options.first, options.first + options.cases))
        made, files = (media, seeds()) if options.part == "media" else (forms, sounds())
        make = functools.partial(made.make, seed=options.seed, files=files)
        asyncio.run(sending.run(options.url, report, numbers, make, concurrency=options.concurrency))
    elif options.part == "conversations":
        numbers = within(options.seconds, range(options.first, options.first + options.cases))
        asyncio.run(conversations.run(options.url, report, numbers, concurrency=options.concurrency))
    else:
        batches = range(options.first, options.first + -(-options.cases // BATCH))
        FUZZERS[options.part](options.url, report).run(within(options.seconds, batches))
    report.seconds = round(time.monotonic() - began, 1)
    report.restarts = {name: count - before.get(name, 0) for name, count in restarts(options.url).items()}
    if options.report:
        options.report.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    print(shown(report))
    return 0 if report.good else 1


def sounds() -> list[Seed]:
    """The files that are sent in forms: all sound files, and a few other files."""
    return [file for index, file in enumerate(seeds()) if file.kind == "audio" or index % 8 == 0]


def within(seconds: float, numbers: Iterable[int]) -> Iterator[int]:
    """Yield `numbers` until `seconds` have passed."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda number: time.monotonic() < end, numbers)


def restarts(url: str) -> dict[str, float]:
    """The number of restarts of each worker so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        page = answer.read().decode()
    return {
        name: float(count) for name, count in re.findall(r'omni_worker_restarts_total\{worker="(\w+)"\} (\S+)', page)
    }


def shown(report: FuzzReport) -> str:
    """The report as text."""
    lines = [f"{report.cases} cases of part {report.part}, seed {report.seed}, in {report.seconds:.0f} s"]
    lines += [f"  {count:6} {outcome}" for outcome, count in sorted(report.outcomes.items())]
    lines += [
        "slowest:",
        *(f"  {seconds:6.2f} s  case {case}: {what[:160]}" for seconds, case, what in report.slowest[:5]),
    ]
    again = ", ".join(f"{name} {count:g}×" for name, count in report.restarts.items() if count) or "none"
    lines.append(f"workers restarted: {again}")
    for title, cases in (("crashes that ended one request each", report.crashes), ("wrong answers", report.findings)):
        lines.append(f"{title}: {len(cases)}")
        lines += [f"  case {found.case}: {found.problem}: {found.what[:400]}" for found in cases]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
