"""An utterance has the same codes, whatever other utterances are in progress. If the input of an utterance is late,
only this utterance waits. When an utterance has ended, the stage holds no data of the utterance.

A fixed table with a frame embedding for each code replaces the predictor. `tests/equality/test_spoken.py` uses the real
predictor, and shows that the codes equal the reference's codes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from omni_pipeline.errors import OmniError
from omni_pipeline.wire.messages import Advice, Chunk, End, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    Finished,
    FrameFeedback,
    FrameSeed,
    Playing,
    Sampling,
    SpeechFinished,
    SpeechOptions,
    TalkerPrompt,
    Tokens,
)
from stages.options import TalkerOptions
from stages.playback import FRAME_SECONDS
from stages.talker_ar.stage import Talker
from tests.stages.plans import engine_bytes, needs

FRAMES = 12
# The cache has room for about three utterances. SGLang also admits requests that may end early, even if they might not
# all fit, and later takes memory back.
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
        self.reasons: dict[str, str] = {}
        self.due: dict[str, int] = {}
        self.held: set[str] = set()  # answers whose text the thinker does not continue for now

    def begin(self, name: str, which: int, *, length: int = 24, streamed: bool = False, **sampling: Any) -> None:
        """Send a prompt of `length` tokens. Each value of `which` gives a different prompt."""
        ids = torch.randint(0, 2000, (length,), generator=torch.Generator().manual_seed(which))
        greedy = Sampling(**{"repetition_penalty": 1.05, "max_tokens": FRAMES + 1, "ignore_eos": True, **sampling})
        speech = SpeechOptions("ethan", greedy, greedy, streamed)
        prompt = TalkerPrompt(Tensor.of(ids), None, None, ids[:3].tolist(), None, 0.0, speech)
        self.codes[name] = []
        self.talker.receive(Start(name, "thinker", "talker_ar", prompt))

    def say(self, name: str, *ids: int, last: bool = True) -> None:
        """Send tokens of the text, and the end of the text if `last` is set."""
        if ids:
            self.talker.receive(Chunk(name, "thinker", "talker_ar", Tokens(list(ids))))
        if last:
            self.talker.receive(End(name, "thinker", "talker_ar", Finished("stop", None)))

    def turn(self, *names: str) -> None:
        """Send the predictor's replies to these utterances, or to all utterances if no names are given. Then step the
        stage once.
        """
        self.reply(*names or tuple(self.due))
        self.step()

    def reply(self, *names: str) -> None:
        """Send the predictor's replies to these utterances."""
        for name in names:
            frame = FrameFeedback(Tensor.of(self._table[self.due.pop(name)]))
            self.talker.receive(Chunk(name, "code_predictor", "talker_ar", frame))

    def step(self) -> None:
        """One step of the stage."""
        if not self.talker.has_work:
            return
        for message in self.talker.step():
            assert not isinstance(message, Failed), message
            if isinstance(message, Advice):
                self.held.update(message.body.hold)
                self.held.difference_update(message.body.resume)
            elif isinstance(message, End):
                assert isinstance(message.body, SpeechFinished)
                self.ended.add(message.request_id)
                self.reasons[message.request_id] = message.body.reason
            elif isinstance(message, Chunk) and isinstance(message.body, FrameSeed):
                self.codes[message.request_id].append(message.body.code)
                self.due[message.request_id] = message.body.code

    def run(self) -> dict[str, list[int]]:
        """Continue until there is nothing left to do."""
        while self.talker.has_work or self.due:
            self.turn()
        return self.codes

    def go_on(self, name: str) -> None:
        """Send the predictor's reply to an utterance. Then step until the next frame of the utterance is at the
        predictor, or until the stage has no work.
        """
        if name in self.due:
            self.turn(name)
        while name not in self.due and self.talker.has_work:
            self.step()

    def run_until(self, name: str, frames: int) -> None:
        """Continue until an utterance has this many frames. The predictor's reply to the last frame is not sent."""
        while len(self.codes[name]) < frames:
            self.turn()

    def hears(self, name: str, seconds: float, *, behind: bool = False) -> None:
        """Send the talker the number of seconds of generated sound that a listener has not heard yet."""
        since = time.monotonic() + seconds - FRAME_SECONDS * len(self.codes[name])
        self.talker.advise(Advice("code2wav", "talker_ar", Playing({name: since}, behind)))

    def leave(self, name: str) -> None:
        """Abort an utterance."""
        self.talker.abort(name)
        self.due.pop(name, None)

    @property
    def displaced(self) -> list[str]:
        """The names of the utterances that wait and have lost their memory."""
        return list(self.talker._engine._scheduler.displaced)


@pytest.fixture
def ring(talker: Talker) -> Iterator[Ring]:
    ring = Ring(talker)
    # Otherwise, the tracker would still be influenced by the lack of memory in earlier tests.
    talker._engine._scheduler.new_token_ratio_tracker.reset()
    yield ring
    for name in list(talker.live()):
        ring.leave(name)
    ring.run()
    assert not talker.live()
    stats = talker.stats()
    assert stats["running_requests"] == stats["queued_requests"] == stats["kv_tokens_used"] == 0


@pytest.fixture(scope="module")
def alone(talker: Talker) -> Callable[[int], list[int]]:
    """A function that returns the codes of an utterance when no other utterance is in progress."""

    def codes(which: int, **options: Any) -> list[int]:
        ring = Ring(talker)
        ring.begin("alone", which, **options)
        ring.say("alone", *range(which, which + 6))
        return ring.run()["alone"]

    return codes


def test_a_limit_of_tokens_is_one_frame_more(alone: Callable[..., list[int]]) -> None:
    assert len(alone(1)) == FRAMES


@pytest.mark.parametrize(("ends_itself", "reason"), [(False, "length"), (True, "stop")])
def test_the_end_says_whether_the_voice_ended_itself(
    ring: Ring, talker: Talker, ends_itself: bool, reason: str
) -> None:
    """The last token that the limit allows may be the code that ends the utterance."""
    bias = {talker._end: 1000.0 if ends_itself else -1000.0}
    ring.begin("v", 1, max_tokens=5, ignore_eos=False, min_tokens=4, logit_bias=bias)
    ring.say("v", *range(6))
    assert len(ring.run()["v"]) == 4
    assert ring.reasons == {"v": reason}


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
    """These utterances may end before their limits. SGLang takes memory back only from requests that may end before
    their limits.
    """
    endless = {"max_tokens": 40, "min_tokens": 40, "ignore_eos": False}
    before = ring.talker.stats()["preemptions"]
    for seed in range(6):
        ring.begin(f"v{seed}", seed, length=20 + seed, **endless)
        ring.say(f"v{seed}", *range(seed, seed + 6))
        ring.turn()
    codes = ring.run()
    assert ring.talker.stats()["preemptions"] > before
    assert codes == {f"v{seed}": alone(seed, length=20 + seed, **endless) for seed in range(6)}


# SGLang does not know the length of these utterances in advance. So it admits more utterances than fit when all of them
# reach their full lengths.
ENDLESS = {"max_tokens": 60, "min_tokens": 60, "ignore_eos": False}


def begin_endless(ring: Ring, which: int, **sampling: Any) -> str:
    """Begin an utterance (`ENDLESS`) that becomes longer than SGLang expects. Returns its name."""
    name = f"v{which}"
    ring.begin(name, which, length=20 + which % 4, **{**ENDLESS, **sampling})
    ring.say(name, *range(which, which + 6))
    return name


@pytest.fixture(scope="module")
def endless(alone: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """A function that returns the codes of an `ENDLESS` utterance when no other utterance is in progress."""
    return cache(lambda which, **sampling: alone(which, length=20 + which % 4, **{**ENDLESS, **sampling}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_voices_that_wait_lose_their_memory_to_one_that_goes_on(
    ring: Ring, endless: Callable[..., list[int]], temperature: float
) -> None:
    """All utterances wait for replies of the predictor. Then one utterance at a time continues, while the waiting
    utterances use most of the memory.
    """
    names = [begin_endless(ring, seed, temperature=temperature, seed=seed) for seed in range(5)]
    while ring.talker.has_work:
        ring.step()
    displaced: set[str] = set()
    while ring.due:
        for name in list(ring.due):
            for _ in range(25):
                ring.go_on(name)
                displaced.update(ring.displaced)
    assert displaced
    assert ring.ended == set(names)
    assert ring.run() == {name: endless(seed, temperature=temperature, seed=seed) for seed, name in enumerate(names)}


def test_a_new_voice_counts_the_voices_that_wait(ring: Ring, endless: Callable[..., list[int]]) -> None:
    """One utterance waits, and new utterances are about to begin. The talker computes a new prompt only if the waiting
    utterance can still continue with the memory that is left.
    """
    first = begin_endless(ring, 0)
    ring.run_until(first, 50)
    assert ring.talker.stats()["kv_tokens_used"] > KV_TOKENS * 0.4
    second = begin_endless(ring, 1)
    third = begin_endless(ring, 2)
    while ring.talker.has_work:
        ring.step()
    assert ring.talker.stats()["queued_requests"] == 1
    before = ring.talker.stats()["preemptions"]
    assert ring.run() == {name: endless(seed) for seed, name in enumerate((first, second, third))}
    assert ring.talker.stats()["preemptions"] == before


def displace_one(ring: Ring) -> list[str]:
    """Begin three utterances. Let only the first two continue, until the third one loses its memory while it waits."""
    names = [begin_endless(ring, seed) for seed in range(3)]
    while ring.talker.has_work:
        ring.step()
    for _ in range(FRAMES * 5):
        for name in names[:2]:
            if not ring.displaced:
                ring.go_on(name)
    assert ring.displaced == names[2:]
    return names


def test_a_voice_that_has_lost_its_memory_can_be_aborted(ring: Ring, endless: Callable[..., list[int]]) -> None:
    *stay, gone = displace_one(ring)
    ring.leave(gone)
    assert ring.displaced == []
    ring.run()
    assert ring.ended == set(stay)
    assert [ring.codes[name] for name in stay] == [endless(0), endless(1)]


def test_a_voice_that_waits_to_be_computed_again_can_be_aborted(ring: Ring, endless: Callable[..., list[int]]) -> None:
    *stay, gone = displace_one(ring)
    ring.turn(gone, stay[0])
    assert ring.displaced == []
    assert ring.talker.stats()["queued_requests"] > 0
    ring.leave(gone)
    ring.run()
    assert ring.ended == set(stay)
    assert [ring.codes[name] for name in stay] == [endless(0), endless(1)]


def test_new_voices_do_not_overtake_one_that_has_lost_its_memory(ring: Ring, endless: Callable[..., list[int]]) -> None:
    names = displace_one(ring)
    seed = len(names)
    while names[2] not in ring.ended:
        if len(ring.talker.live()) < 6:
            begin_endless(ring, seed)
            seed += 1
        ring.turn()
        assert seed < 20
    new = {name for name in ring.codes if name not in names}
    assert not new & ring.ended
    assert [ring.codes[name] for name in names] == [endless(seed) for seed in range(3)]


def test_memory_of_an_aborted_voice_is_free_at_once(ring: Ring) -> None:
    name = begin_endless(ring, 0)
    ring.run_until(name, 3)
    ring.leave(name)
    assert ring.talker.stats()["kv_tokens_used"] == 0
    assert not ring.talker.has_work


@pytest.mark.parametrize("ending", [{"ignore_eos": True}, {"min_tokens": KV_TOKENS, "ignore_eos": False}])
def test_a_voice_alone_may_fill_the_memory(ring: Ring, ending: dict[str, Any]) -> None:
    ring.begin("v", 1, length=100, **{"max_tokens": 1_000_000, **ending})
    ring.say("v", *range(6))
    frames = len(ring.run()["v"])
    assert ring.reasons == {"v": "length"}
    assert KV_TOKENS - 8 <= 100 + 9 + frames <= KV_TOKENS


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_a_prompt_that_never_fits_is_refused_and_the_longest_that_fits_is_spoken(ring: Ring, ignore_eos: bool) -> None:
    def outcome(length: int) -> bool:
        """Whether a prompt of this length is accepted. An accepted prompt must also be spoken to its end."""
        ring.begin("v", 1, length=length, ignore_eos=ignore_eos)
        try:
            ring.say("v", *range(6))
        except OmniError as error:
            refusals.append(error)
            ring.leave("v")
            return False
        assert ring.run()["v"]
        assert "v" in ring.ended
        return True

    refusals: list[OmniError] = []
    accepted = [outcome(length) for length in range(KV_TOKENS - 20, KV_TOKENS)]
    assert accepted == sorted(accepted, reverse=True)
    assert {(error.info.status, error.info.code) for error in refusals} == {(400, "context_length_exceeded")}
    assert 0 < len(refusals) < len(accepted)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_events_gives_every_voice_its_own_codes(
    ring: Ring, endless: Callable[..., list[int]], seed: int
) -> None:
    """Frames and words come late, and utterances begin and are aborted. The seed determines the order of these
    events.
    """
    chance = random.Random(seed)
    unsaid: dict[str, list[int]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    gone: set[str] = set()
    for turn in range(400):
        if turn % 12 == 0 and len(kinds) < 10:
            which = len(kinds)
            kinds[f"v{which}"] = chance.choice([{}, {"temperature": 1.0, "seed": which}, {"ignore_eos": True}])
            ring.begin(f"v{which}", which, length=20 + which % 4, **{**ENDLESS, **kinds[f"v{which}"]})
            unsaid[f"v{which}"] = [*range(which, which + 6)]
        for name, words in list(unsaid.items()):
            if chance.random() < 0.2:
                ring.say(name, *words[:2], last=not words[2:])
                unsaid[name] = words[2:]
                if not words[2:]:
                    del unsaid[name]
        if turn % 90 == 89 and ring.talker.live():
            leaver = chance.choice(sorted(ring.talker.live()))
            ring.leave(leaver)
            gone.add(leaver)
            unsaid.pop(leaver, None)
        back = [name for name in ring.due if chance.random() < 0.5]
        if back:
            ring.turn(*back)
        elif ring.talker.has_work:
            ring.step()
    for name, words in unsaid.items():
        ring.say(name, *words)
    ring.run()
    assert ring.ended | gone == set(kinds)
    for which, (name, options) in enumerate(kinds.items()):
        whole = endless(which, **options)
        assert ring.codes[name] == (whole[: len(ring.codes[name])] if name in gone else whole)


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
    assert ring.reasons == {"mute": "stop"}


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


# --- order ------------------------------------------------------------------------------------------------------------


def far_ahead(ring: Ring, name: str, frames: int = 4) -> None:
    """Let an utterance make some frames. Then report to the talker that the listener of this utterance has a minute of
    sound left.
    """
    ring.run_until(name, frames)
    ring.hears(name, 60.0)


def test_an_utterance_with_ample_speech_waits_for_one_that_is_short(ring: Ring) -> None:
    alone = Ring(ring.talker)
    alone.begin("a", 1, streamed=True)
    alone.say("a", *range(5, 15))
    expected = alone.run()["a"]
    ring.begin("a", 1, streamed=True)
    ring.say("a", *range(5, 15))
    far_ahead(ring, "a")
    ring.begin("b", 2, streamed=True)  # the listener of b has not heard anything yet
    ring.say("b", 3, 4, 5)
    made = len(ring.codes["a"])
    while len(ring.codes["b"]) < 5:
        ring.turn()
    assert len(ring.codes["a"]) <= made + 1  # a frame of a may have been on the way
    waiting = len(ring.codes["a"])
    assert ring.talker.wakes_at is not None
    ring.hears("b", 0.2)
    ring.turn()
    assert len(ring.codes["a"]) == waiting
    ring.hears("b", 0.9)  # the listener of b has enough sound again
    assert ring.run()["a"] == expected


def test_whole_answers_never_wait(ring: Ring) -> None:
    ring.begin("whole", 1)
    ring.say("whole", *range(5, 15))
    ring.run_until("whole", 4)
    ring.begin("b", 2, streamed=True)
    ring.say("b", 3, 4, 5)
    while len(ring.codes["b"]) < 3:
        ring.turn()
    assert len(ring.codes["whole"]) >= 6
    ring.run()


def test_it_is_urgent_while_a_player_is_about_to_run_dry_and_has_its_text(ring: Ring) -> None:
    ring.begin("a", 1, streamed=True)
    ring.say("a", *range(5, 15))
    ring.run_until("a", 4)
    assert not ring.talker.urgent, "nobody plays yet"
    ring.hears("a", 0.1)
    assert not ring.talker.urgent, "the frame is at the predictor"
    ring.reply("a")
    assert ring.talker.urgent
    ring.hears("a", 1.0)
    assert not ring.talker.urgent
    ring.begin("b", 2, streamed=True)
    ring.say("b", 3, 4, last=False)
    ring.run_until("b", 2)
    ring.hears("a", 0.1)
    ring.reply("a", "b")
    assert ring.talker.urgent, "b, which nobody plays yet, can wait for its text"
    ring.hears("b", 0.1)
    assert not ring.talker.urgent, "b needs a token of the text first"
    ring.say("b", 5)
    assert ring.talker.urgent
    ring.run()


def test_utterances_wait_while_the_vocoder_is_behind(ring: Ring) -> None:
    ring.begin("a", 1, streamed=True)
    ring.say("a", *range(5, 15))
    far_ahead(ring, "a")
    ring.hears("a", 60.0, behind=True)
    made = len(ring.codes["a"])
    ring.turn()
    assert not ring.talker.has_work
    assert len(ring.codes["a"]) == made
    ring.hears("a", 60.0, behind=False)
    assert len(ring.run()["a"]) == FRAMES


def test_an_utterance_wakes_when_its_lead_is_used_up(ring: Ring) -> None:
    ring.begin("a", 1, streamed=True)
    ring.say("a", *range(5, 15))
    ring.run_until("a", 4)
    ring.hears("a", 1.05, behind=True)  # a little more sound than is needed
    ring.turn()
    while not ring.talker.has_work:
        assert ring.talker.wakes_at is not None
        time.sleep(max(ring.talker.wakes_at - time.monotonic(), 0.0))
    ring.hears("a", 0.7)
    ring.run()


def test_a_waiting_utterance_can_be_aborted(ring: Ring) -> None:
    ring.begin("a", 1, streamed=True)
    ring.say("a", *range(5, 15))
    far_ahead(ring, "a")
    ring.hears("a", 60.0, behind=True)
    ring.turn()
    ring.leave("a")
    assert not ring.talker.live()
    assert not ring.talker.has_work
    assert ring.talker.wakes_at is None
    ring.hears("a", 60.0, behind=False)


def test_text_far_ahead_of_its_speech_waits_while_others_are_short(ring: Ring) -> None:
    ring.begin("a", 1, streamed=True, max_tokens=40)
    ring.say("a", *range(5, 25), last=False)
    ring.begin("b", 2, streamed=True)
    ring.say("b", 3, 4, 5, last=False)
    for _ in range(2):  # the first step only sends messages
        ring.turn()
    assert ring.held == {"a"}
    while len(ring.codes["a"]) < 16:
        ring.hears("a", 0.5)
        ring.turn()
    assert ring.held == set()  # the text is continued before all of it has been spoken
    ring.say("a", *range(5, 40))
    ring.say("b")
    assert ring.run().keys() == {"a", "b"}
    assert ring.ended == {"a", "b"}
    assert ring.held == set()


def test_text_goes_on_when_the_speech_has_ended_before_it(ring: Ring) -> None:
    ring.begin("a", 1, streamed=True, max_tokens=3)
    ring.say("a", *range(5, 25), last=False)
    ring.begin("b", 2, streamed=True)
    ring.say("b", 3, 4, 5)
    ring.run()
    assert ring.ended == {"a", "b"}
    assert ring.held == set()


def test_a_step_waits_for_half_of_the_frames(ring: Ring) -> None:
    names = "abcd"
    for which, name in enumerate(names):
        ring.begin(name, which)
        ring.say(name, 3, 4, 5)
    while len(ring.due) < len(names):
        ring.step()
    ring.reply("a")
    assert not ring.talker.has_work
    ring.reply("b")
    assert ring.talker.has_work
    ring.run()
    assert ring.ended == {*names}
