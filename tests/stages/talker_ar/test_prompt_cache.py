"""The talker computes only the new rows of a conversation, and speaks the same codes as without its prefix cache. The
cache keeps prompts, and never generated frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from test_talker_ar import Ring

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Chunk, End, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import ASSISTANT_ROWS, Passage, Sampling, SpeechOptions, TalkerPrompt
from stages.options import TalkerOptions
from stages.talker_ar.cache_ids import FIRST_CACHE_ID
from stages.talker_ar.stage import Talker

FRAMES = 10
KV_TOKENS = 320
TURN = 20  # rows of a user's turn: text, and a media item of ten rows
MEDIA = range(5, 15)
WIDTH = 128
PAGE = 4
TEXT = [3, 4, 5, 6]
OPENING = 3  # the tokens that open the assistant's turn

# Settings of the engine. With the settings `in pages`, several prompts are computed together, and memory is managed in
# pages.
ENGINES = {
    "": {},
    "in pages": {"page_size": PAGE, "prefill_max_requests": 8},
}


@dataclass
class Talk:
    """The user's turns of a conversation.

    Attributes:
        turns: Number of turns.
        context: A number that stands for text that only the thinker has read, such as the thinker's own answers. This
            text changes the states of media rows from turn `changed` on.
    """

    turns: int
    which: int = 0
    context: int = 0
    changed: int = 0
    speaker: str = "ethan"
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return TURN * self.turns

    def prompt(self) -> TalkerPrompt:
        random = torch.Generator().manual_seed(self.which)
        ids = torch.randint(0, 2000, (self.rows,), generator=random)
        heard = torch.tensor([TURN * turn + row for turn in range(self.turns) for row in MEDIA])
        states = [self._states(turn) for turn in range(self.turns)]
        speech = Sampling(**{"repetition_penalty": 1.05, "max_tokens": FRAMES + 1, "ignore_eos": True, **self.sampling})
        return TalkerPrompt(
            ids=Tensor.of(ids[: self.rows]),
            media_rows=Tensor.of(heard),
            media_hidden=Tensor.of(torch.cat([states for _, states in states])),
            assistant_ids=[1, 2, 3],
            positions=None,
            position_delta=0.0,
            speech=SpeechOptions(self.speaker, speech, speech),
            media_ids=Tensor.of(torch.cat([ids for ids, _ in states])),
        )

    def _states(self, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids and the states of a turn's media rows."""
        seed = 10_000 * self.which + 100 * turn + (self.context if turn >= self.changed else 0)
        states = torch.randn(len(MEDIA), WIDTH, generator=torch.Generator().manual_seed(seed))
        return FIRST_CACHE_ID + 1000 * seed + torch.arange(len(MEDIA)), states


class Speaking(Ring):
    """Drives the stage with conversations."""

    def start(self, name: str, talk: Talk, text: list[int] = TEXT) -> None:
        self.codes[name] = []
        self.talker.receive(Start(name, "thinker", "talker_ar", talk.prompt()))
        self.say(name, *text)

    def speak(self, talk: Talk, text: list[int] = TEXT) -> list[int]:
        """The codes of one utterance."""
        self.start("spoken", talk, text)
        return self.run()["spoken"]

    def cached(self) -> int:
        """Number of rows, in all prompts so far, that were found in the prefix cache."""
        return int(self.talker.stats()["prompt_tokens_cached"])

    def speak_and_count(self, talk: Talk, text: list[int] = TEXT) -> tuple[list[int], int]:
        """The codes of one utterance, and the number of rows of its prompt that were found in the prefix cache."""
        before = self.cached()
        return self.speak(talk, text), self.cached() - before


MakeTalker = Callable[..., Talker]


@pytest.fixture(scope="module")
def make_talker(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory, habits: bool) -> Iterator[MakeTalker]:
    made = []

    def make(**engine: Any) -> Talker:
        options = TalkerOptions(
            max_total_tokens=KV_TOKENS,
            max_running_requests=8,
            engine={"chunked_prefill_size": 16, "schedule_conservativeness": 0.1, **engine},
        )
        scratch = str(tmp_path_factory.mktemp("run"))
        made.append(
            Talker(StageContext("talker_ar", str(tiny_checkpoint), "cpu", options, frozenset({"talker_ar"}), scratch))
        )
        return made[-1]

    yield make
    for talker in made:
        talker.close()


@pytest.fixture(scope="module", params=ENGINES)
def form(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def talker(make_talker: MakeTalker, form: str) -> Talker:
    return make_talker(**ENGINES[form])


@pytest.fixture(scope="module")
def page(form: str) -> int:
    return PAGE if form else 1


@pytest.fixture(scope="module")
def uncached(make_talker: MakeTalker) -> Speaking:
    """A talker without a prefix cache."""
    return Speaking(make_talker(disable_radix_cache=True))


@pytest.fixture
def keys(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All ids that enter the prefix cache during a test."""
    cache = talker._engine._scheduler.tree_cache
    insert = cache.insert
    ids: list[int] = []

    def noted(params: Any) -> Any:
        ids.extend(params.key.raw_token_ids())
        return insert(params)

    monkeypatch.setattr(cache, "insert", noted)
    return ids


@pytest.fixture
def speaking(talker: Talker, keys: list[int]) -> Iterator[Speaking]:
    talker._engine._scheduler.tree_cache.reset()
    talker._engine._scheduler.token_to_kv_pool_allocator.clear()
    talker._engine._scheduler.new_token_ratio_tracker.reset()
    speaking = Speaking(talker)
    yield speaking
    for name in list(talker.live()):
        speaking.leave(name)
    speaking.run()
    stats = talker.stats()
    assert stats["running_requests"] == stats["queued_requests"] == stats["kv_tokens_used"] == 0
    assert keys
    assert min(keys) >= FIRST_CACHE_ID, "a generated frame has entered the prefix cache"


def test_the_next_turn_computes_only_its_own_rows(speaking: Speaking, uncached: Speaking) -> None:
    for turns in (1, 2, 3):
        codes, cached = speaking.speak_and_count(Talk(turns))
        assert codes == uncached.speak(Talk(turns))
        assert cached == TURN * (turns - 1)


def test_the_next_turn_makes_only_its_own_rows(speaking: Speaking, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"text": 0, "media": 0}

    def count(kind: str) -> None:
        make = getattr(speaking.talker._rows, kind)

        def counted(values: torch.Tensor) -> torch.Tensor:
            made[kind] += len(values)
            return make(values)

        monkeypatch.setattr(speaking.talker._rows, kind, counted)

    count("text")
    count("media")
    for turns in (1, 2, 3):
        made.update(text=0, media=0)
        speaking.speak(Talk(turns))
        assert made == {"text": TURN - len(MEDIA) + OPENING + len(TEXT), "media": len(MEDIA)}


def test_the_same_prompt_again_computes_its_last_row_only(speaking: Speaking, uncached: Speaking, page: int) -> None:
    first, _ = speaking.speak_and_count(Talk(2))
    again, cached = speaking.speak_and_count(Talk(2))
    assert first == again == uncached.speak(Talk(2))
    assert cached == (2 * TURN + ASSISTANT_ROWS - 1) // page * page


def test_another_first_token_shares_all_rows_but_the_last(speaking: Speaking, uncached: Speaking, page: int) -> None:
    speaking.speak(Talk(2))
    codes, cached = speaking.speak_and_count(Talk(2), [99, *TEXT])
    assert codes == uncached.speak(Talk(2), [99, *TEXT]) != uncached.speak(Talk(2))
    assert cached == (2 * TURN + ASSISTANT_ROWS - 1) // page * page


def test_another_voice_shares_the_rows_before_the_voice(speaking: Speaking, uncached: Speaking, page: int) -> None:
    speaking.speak(Talk(2))
    other = Talk(2, speaker="chelsie")
    codes, cached = speaking.speak_and_count(other)
    assert codes == uncached.speak(other)
    assert cached == (2 * TURN + 6) // page * page


@pytest.mark.parametrize("changed", [0, 1])
def test_another_answer_before_the_same_media_shares_nothing_after_it(
    speaking: Speaking, uncached: Speaking, page: int, changed: int
) -> None:
    """The talker gets the same tokens, but the thinker has read something else before the media."""
    speaking.speak(Talk(2))
    other = Talk(2, context=7, changed=changed)
    assert torch.equal(other.prompt().ids.torch(), Talk(2).prompt().ids.torch())
    codes, cached = speaking.speak_and_count(other)
    assert codes == uncached.speak(other) != uncached.speak(Talk(2))
    assert cached == (TURN * changed + MEDIA[0]) // page * page


def test_equal_prompts_at_the_same_time(speaking: Speaking, uncached: Speaking) -> None:
    """The frames of the utterances differ, because they are drawn from different seeds."""
    talks = {f"v{seed}": Talk(1, sampling={"temperature": 1.0, "seed": seed}) for seed in range(4)}
    for name, talk in talks.items():
        speaking.start(name, talk)
    assert speaking.run() == {name: uncached.speak(talk) for name, talk in talks.items()}
    assert len({tuple(codes) for codes in speaking.codes.values()}) == len(talks)


@pytest.mark.parametrize("ending", ["limit", "aborted", "aborted at once"])
def test_only_the_prompt_stays_in_memory(speaking: Speaking, talker: Talker, page: int, ending: str) -> None:
    speaking.start("v", Talk(1))
    frames = {"limit": FRAMES, "aborted": FRAMES // 2, "aborted at once": 1}[ending]
    speaking.run_until("v", frames)
    if ending != "limit":
        speaking.leave("v")
    speaking.run()
    assert talker.stats()["kv_tokens_cached"] == (TURN + ASSISTANT_ROWS) // page * page


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_prompt_that_was_aborted_half_way_can_be_spoken(speaking: Speaking, uncached: Speaking, steps: int) -> None:
    """A prompt of 69 rows is computed in chunks of 16 rows."""
    speaking.start("gone", Talk(3))
    for _ in range(steps + 1):  # the first step only sends messages
        speaking.step()
    speaking.leave("gone")
    speaking.run()
    assert speaking.speak(Talk(3)) == uncached.speak(Talk(3))


def test_a_prompt_that_was_evicted_is_computed_again(speaking: Speaking, talker: Talker, uncached: Speaking) -> None:
    first = speaking.speak(Talk(3))
    for which in range(1, 8):
        assert speaking.speak(Talk(3, which)) == uncached.speak(Talk(3, which))
        stats = talker.stats()
        assert stats["kv_tokens_cached"] <= KV_TOKENS
    codes, cached = speaking.speak_and_count(Talk(3))
    assert codes == first == uncached.speak(Talk(3))
    assert cached < TURN


def test_cached_prompts_leave_the_whole_memory_to_new_ones(speaking: Speaking) -> None:
    for which in range(6):
        speaking.speak(Talk(3, which))
    speaking.start("v", Talk(3, 9, sampling={"max_tokens": 1_000_000}), TEXT)
    frames = len(speaking.run()["v"])
    assert KV_TOKENS - 16 <= 3 * TURN + ASSISTANT_ROWS + frames <= KV_TOKENS


def test_utterances_of_one_conversation_survive_the_loss_of_their_memory(
    speaking: Speaking, uncached: Speaking
) -> None:
    """All utterances have the same prompt, and their first codes are equal. But their later texts differ, so their
    frames must not be shared when they are computed again.
    """
    endless = {"max_tokens": 60, "min_tokens": 60, "ignore_eos": False}
    talk = Talk(1, sampling=endless)
    texts = {f"v{index}": [*TEXT, *range(index, index + 30)] for index in range(8)}
    # if a cache kept generated tokens, the frames of this utterance would stay in the cache
    assert speaking.speak(talk, texts["v0"]) == uncached.speak(talk, texts["v0"])
    before = speaking.talker.stats()["preemptions"]
    for name, text in texts.items():
        speaking.start(name, talk, text)
    codes = speaking.run()
    assert speaking.talker.stats()["preemptions"] > before
    codes.pop("spoken")
    assert codes == {name: uncached.speak(talk, text) for name, text in texts.items()}
    assert len({tuple(spoken) for spoken in codes.values()}) == len(texts)


def test_passages_of_a_text_share_their_prompt(speaking: Speaking, page: int) -> None:
    greedy = Sampling(repetition_penalty=1.05)
    ids = torch.arange(TURN)
    prompt = TalkerPrompt(Tensor.of(ids), None, None, [0, 1, 2], None, 0.0, SpeechOptions("ethan", greedy, greedy))
    speaking.talker._default_max_tokens, default = FRAMES, speaking.talker._default_max_tokens
    before = speaking.cached()
    speaking.codes["text"] = []
    speaking.talker.receive(Start("text", "preprocessing", "talker_ar", prompt))
    speaking.talker.receive(Chunk("text", "preprocessing", "talker_ar", Passage([1, 2, 3])))
    speaking.talker.receive(End("text", "preprocessing", "talker_ar", Passage([4, 5])))
    while speaking.talker.has_work or speaking.due:
        speaking.turn()
        speaking.talker.grant("text")
    speaking.talker._default_max_tokens = default
    assert speaking.ended == {"text"}
    assert speaking.cached() - before == (TURN + ASSISTANT_ROWS - 1) // page * page


def test_a_cache_that_is_switched_off_keeps_nothing(uncached: Speaking) -> None:
    assert uncached.speak(Talk(1)) == uncached.speak(Talk(1))
    stats = uncached.talker.stats()
    assert (stats["prompt_tokens_cached"], stats["kv_tokens_cached"], stats["kv_tokens_used"]) == (0, 0, 0)
