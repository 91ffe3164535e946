"""An utterance is the same whatever other utterances do. If its input is late, only this utterance waits. It leaves
nothing behind.

A fixed table from code to frame embedding plays the predictor's part. `tests/equality/test_spoken.py` has the real one
in the ring, and shows that the codes equal the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from omni_pipeline.wire.messages import Chunk, End, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import Finished, FrameFeedback, FrameSeed, Sampling, SpeechOptions, TalkerPrompt, Tokens
from stages.options import TalkerOptions
from stages.talker_ar.stage import Talker
from tests.stages.plans import engine_bytes, needs

FRAMES = 12
# Room for about three utterances. SGLang admits requests that may end early although not all might fit, and takes
# memory back later.
KV_TOKENS = 192
ENGINE = {"chunked_prefill_size": 16, "schedule_conservativeness": 0.1}


@pytest.fixture(scope="module")
def talker(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory, habits: bool) -> Iterator[Talker]:
    from omni_pipeline.contract.stage import StageContext

    options = TalkerOptions(max_total_tokens=KV_TOKENS, max_running_requests=8, engine=ENGINE)
    run_dir = str(tmp_path_factory.mktemp("run"))
    stage = Talker(StageContext("talker_ar", str(tiny_checkpoint), "cpu", options, frozenset({"talker_ar"}), run_dir))
    yield stage
    stage.close()


class Ring:
    """Drives the stage; a table replaces the code predictor."""

    def __init__(self, talker: Talker) -> None:
        self.talker = talker
        width = talker._engine.hidden_size
        self._table = torch.randn(2048, width, generator=torch.Generator().manual_seed(1))
        self.codes: dict[str, list[int]] = {}
        self.ended: set[str] = set()
        self._due: list[tuple[str, int]] = []

    def begin(self, name: str, which: int, *, length: int = 24, **sampling: Any) -> None:
        """Send one of many prompts; `length` is its number of tokens."""
        ids = torch.randint(0, 2000, (length,), generator=torch.Generator().manual_seed(which))
        greedy = Sampling(**{"repetition_penalty": 1.05, "max_tokens": FRAMES + 1, "ignore_eos": True, **sampling})
        speech = SpeechOptions("ethan", greedy, greedy)
        prompt = TalkerPrompt(Tensor.of(ids), None, None, ids[:3].tolist(), None, 0.0, speech)
        self.codes[name] = []
        self.talker.receive(Start(name, "thinker", "talker_ar", prompt))

    def say(self, name: str, *ids: int, last: bool = True) -> None:
        """Send text, and perhaps its end."""
        if ids:
            self.talker.receive(Chunk(name, "thinker", "talker_ar", Tokens(list(ids))))
        if last:
            self.talker.receive(End(name, "thinker", "talker_ar", Finished("stop", None)))

    def turn(self) -> None:
        """One step of the stage, after the predictor's replies to the last one."""
        due, self._due = self._due, []
        for name, code in due:
            self.talker.receive(Chunk(name, "code_predictor", "talker_ar", FrameFeedback(Tensor.of(self._table[code]))))
        if not self.talker.has_work:
            return
        for message in self.talker.step():
            assert not isinstance(message, Failed), message
            if isinstance(message, End):
                self.ended.add(message.request_id)
            elif isinstance(message, Chunk) and isinstance(message.body, FrameSeed):
                self.codes[message.request_id].append(message.body.code)
                self._due.append((message.request_id, message.body.code))

    def run(self) -> dict[str, list[int]]:
        """Go on until there is nothing left to do."""
        while self.talker.has_work or self._due:
            self.turn()
        return self.codes


@pytest.fixture
def ring(talker: Talker) -> Iterator[Ring]:
    ring = Ring(talker)
    yield ring
    for name in list(talker.live()):
        talker.abort(name)
    ring.run()
    assert not talker.live()
    assert talker.stats()["running_requests"] == talker.stats()["queued_requests"] == 0


@pytest.fixture(scope="module")
def alone(talker: Talker) -> Callable[[int], list[int]]:
    """The codes of one of the utterances when it is alone."""

    def codes(which: int, **options: Any) -> list[int]:
        ring = Ring(talker)
        ring.begin("alone", which, **options)
        ring.say("alone", *range(which, which + 6))
        return ring.run()["alone"]

    return codes


def test_a_limit_of_tokens_is_one_frame_more(alone: Callable[..., list[int]]) -> None:
    assert len(alone(1)) == FRAMES


def test_voices_depend_on_prompt_and_seed(alone: Callable[..., list[int]]) -> None:
    assert alone(1) != alone(2)
    assert alone(1, temperature=1.0, seed=3) == alone(1, temperature=1.0, seed=3) != alone(1, temperature=1.0, seed=4)


def test_many_voices_in_too_little_memory_say_what_they_say_alone(ring: Ring, alone: Callable[..., list[int]]) -> None:
    for seed in range(8):
        ring.begin(f"v{seed}", seed, length=20 + seed)
        ring.say(f"v{seed}", *range(seed, seed + 6))
        ring.turn()
    assert ring.run() == {f"v{seed}": alone(seed, length=20 + seed) for seed in range(8)}


def test_voices_survive_the_loss_of_their_memory(ring: Ring, alone: Callable[..., list[int]]) -> None:
    """SGLang takes memory back only from requests that may end before their limit."""
    endless = {"max_tokens": 40, "min_tokens": 40, "ignore_eos": False}
    before = ring.talker.stats()["preemptions"]
    for seed in range(6):
        ring.begin(f"v{seed}", seed, length=20 + seed, **endless)
        ring.say(f"v{seed}", *range(seed, seed + 6))
        ring.turn()
    codes = ring.run()
    assert ring.talker.stats()["preemptions"] > before
    assert codes == {f"v{seed}": alone(seed, length=20 + seed, **endless) for seed in range(6)}


def test_a_voice_without_text_waits_alone(ring: Ring, alone: Callable[..., list[int]]) -> None:
    ring.begin("late", 1)
    ring.say("late", 1, 2, last=False)
    ring.begin("other", 2)
    ring.say("other", *range(2, 8))
    ring.run()
    assert ring.ended == {"other"}
    assert ring.codes["other"] == alone(2)
    assert ring.codes["late"] == alone(1)[:2]  # the first token's text is enough for one frame
    ring.say("late", 3, 4, 5, 6)
    assert ring.run()["late"] == alone(1)


def test_words_that_drip_make_no_difference(ring: Ring, alone: Callable[..., list[int]]) -> None:
    ring.begin("slow", 4)
    for word in range(4, 10):
        ring.say("slow", word, last=False)
        ring.run()
    ring.say("slow")
    assert ring.run()["slow"] == alone(4)


def test_an_answer_without_words_is_silent(ring: Ring) -> None:
    ring.begin("mute", 1)
    ring.say("mute")
    assert ring.run() == {"mute": []}
    assert ring.ended == {"mute"}


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 9])
def test_abort_at_any_moment_disturbs_nobody(ring: Ring, alone: Callable[..., list[int]], turns: int) -> None:
    ring.begin("stays", 5)
    ring.say("stays", *range(5, 11))
    ring.begin("goes", 6, length=60)
    ring.say("goes", *range(6, 12))
    for _ in range(turns):
        ring.turn()
    ring.talker.abort("goes")
    ring.run()
    assert ring.codes["stays"] == alone(5)
    assert "goes" not in ring.ended


def test_cache_takes_what_the_plan_says(talker: Talker, tiny_checkpoint: Any) -> None:
    """The weights are not compared, because on a CPU SGLang pads experts of such a small width."""
    _, token = engine_bytes(talker._engine)
    cache = needs(tiny_checkpoint, "talker_ar", TalkerOptions()).cache
    assert cache is not None
    assert token == cache.token_bytes
