"""Makes the contents of requests: random words and media. The same seed gives the same contents."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from gateway.bench.media import load_media
from gateway.bench.scenarios import KINDS, BenchPrompt, Scenario
from gateway.bench.variants import variant

# Common words. Most tokenisers have one token for each word.
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "question", "work", "number", "night", "point", "home", "water",
)  # fmt: skip


def make_prompts(scenario: Scenario, count: int, *, seed: int | str, directory: Path) -> list[BenchPrompt]:
    """The first `count` prompts of `endless_prompts`."""
    return list(itertools.islice(endless_prompts(scenario, seed=seed, directory=directory), count))


def endless_prompts(scenario: Scenario, *, seed: int | str, directory: Path) -> Iterator[BenchPrompt]:
    """Makes prompts from a seed. The words are random. If `same_media` is not set, every media item is a new variant.
    In this case, a server can reuse almost nothing from its prefix cache.

    Raises:
        StartupError: if `directory` does not contain the kinds of media that the scenario needs.
    """
    rng = random.Random(f"prompts {seed}")
    files = [load_media(directory, kind) for kind in KINDS[scenario.input]]
    for number in itertools.count():
        media = [choices[number % len(choices)] for choices in files]
        if not scenario.same_media:
            media = [variant(medium, rng) for medium in media]
        yield BenchPrompt(" ".join(rng.choices(_WORDS, k=scenario.prompt_words)), media)
