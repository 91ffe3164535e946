#!/usr/bin/env python3
"""Ask a running server questions that the demo model was not trained on, and report how many answers are correct.

    .venv/bin/sgl-omni serve --model-path checkpoints/qwen3-omni-demo --port 8008     # in another terminal
    .venv/bin/python scripts/judge_demo_model.py --url http://127.0.0.1:8008 --examples 400 --speech 60

An answer counts as correct only if its text is exactly the expected text. Whisper tiny.en transcribes the speech,
without any hint about the words. The word error rate compares the transcript with the text of the same answer.
"""

import argparse
import asyncio
import base64
import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import soundfile
from demo_model.judge.held_out import Example, examples
from demo_model.judge.speech_recogniser import stops_early, transcribe, word_errors, words
from tqdm import tqdm

SEED = 20_260
_SPEAKERS = ("ethan", "chelsie", "aiden")


@dataclass
class Verdict:
    """An example, the text of its answer, and the transcript of the answer's speech. There is no transcript if the
    answer has no speech.
    """

    example: Example
    text: str
    heard: str | None = None

    @property
    def right(self) -> bool:
        return self.text == self.example.answer


@dataclass
class Score:
    right: int = 0
    of: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.right:4} of {self.of:4}  {100 * self.right / max(1, self.of):5.1f} %"


async def judge(url: str, asked: Sequence[Example], aloud: int, streams: int) -> list[Verdict]:
    """Send all examples, `streams` examples at a time. The first `aloud` examples ask for speech too."""
    free = asyncio.Semaphore(streams)
    bar = tqdm(total=len(asked), desc="questions", mininterval=2)

    async def one(session: aiohttp.ClientSession, number: int, example: Example) -> Verdict:
        async with free:
            verdict = await ask(session, url, example, _SPEAKERS[number % 3] if number < aloud else None)
        bar.update()
        return verdict

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        return list(await asyncio.gather(*(one(session, number, example) for number, example in enumerate(asked))))


async def ask(session: aiohttp.ClientSession, url: str, example: Example, speaker: str | None) -> Verdict:
    body: dict[str, Any] = {"messages": example.messages, "max_tokens": 32}
    if speaker:
        body |= {"modalities": ["text", "audio"], "audio": {"voice": speaker, "format": "wav"}}
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"the server answered with status {response.status}: {await response.text()}")
        message = (await response.json())["choices"][0]["message"]
    if not speaker:
        return Verdict(example, message["content"])
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(message["audio"]["data"])), dtype="float32")
    return Verdict(example, message["content"], transcribe(sound, rate))


def scores(verdicts: Iterable[Verdict]) -> dict[str, Score]:
    """The scores by form of the question, by kind of media, and by task."""
    table: dict[str, Score] = defaultdict(Score)
    for verdict in verdicts:
        example = verdict.example
        groups = [f"all {example.how}", f"{example.shown}, {example.how}", f"task {example.task}", "all"]
        if example.second:
            groups.append("second question")
        if example.shown == "clip":
            groups.append("all clips")
        for group in groups:
            table[group].of += 1
            table[group].right += verdict.right
            if not verdict.right:
                table[group].wrong.append((example.answer, verdict.text))
    return dict(sorted(table.items()))


def speech(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The word error rate, and three shares of the spoken answers.

    The shares count the answers that Whisper heard exactly, the answers whose last word it heard right, and the answers
    whose last word is missing.
    """
    pairs = [(verdict.text, verdict.heard) for verdict in verdicts if verdict.heard is not None]
    if not pairs:
        return {}
    counts = [word_errors(said, heard) for said, heard in pairs]
    ends = [bool(words(heard)) and words(heard)[-1] == words(said)[-1] for said, heard in pairs if words(said)]
    return {
        "word error rate": sum(errors for errors, _ in counts) / max(1, sum(total for _, total in counts)),
        "answers heard exactly": sum(not errors for errors, _ in counts) / len(counts),
        "last word heard": sum(ends) / max(1, len(ends)),
        "last word missing": sum(stops_early(said, heard) for said, heard in pairs) / len(pairs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Judge the demo model behind a running server.")
    parser.add_argument("--url", default="http://127.0.0.1:8008", help="address of the server")
    parser.add_argument("--examples", type=int, default=400, help="number of questions")
    parser.add_argument("--speech", type=int, default=60, help="number of questions to be answered in speech too")
    parser.add_argument("--streams", type=int, default=4, help="number of questions at a time")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the questions")
    parser.add_argument("--wrong", action="store_true", help="list the wrong answers")
    parser.add_argument("--out", type=Path, help="file to write the scores to, as JSON")
    options = parser.parse_args()

    made = tqdm(islice(examples(options.seed), options.examples), total=options.examples, desc="made", mininterval=2)
    verdicts = asyncio.run(judge(options.url, list(made), options.speech, options.streams))
    table, voice = scores(verdicts), speech(verdicts)
    for name, score in table.items():
        print(f"{name:28}{score}")
    for name, value in voice.items():
        print(f"{name:28}{100 * value:17.1f} %")
    if options.wrong:
        for right, said in table["all"].wrong:
            print(f"  wanted {right!r}, got {said!r}")
        for verdict in verdicts:
            if verdict.heard is not None and word_errors(verdict.text, verdict.heard)[0]:
                print(f"  said {verdict.text!r}, heard {verdict.heard!r}")
    if options.out:
        figures = {name: {"right": score.right, "of": score.of} for name, score in table.items()}
        options.out.write_text(json.dumps({"answers": figures, "speech": voice}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
