"""The talker gets each spoken token of a text as soon as it is certain that the token is spoken. Finally, the talker
gets the end of the text. A request for several choices gets several texts, but its prompt is computed only once.
"""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Chunk, End, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.decode.stage import Decode
from stages.messages import (
    CallParsing,
    Finished,
    Grammar,
    Sampling,
    SpeechOptions,
    SpokenPrompt,
    TalkerPrompt,
    TextDelta,
    TextDone,
    TextOutput,
    ThinkerRequest,
    ToolCall,
)
from stages.options import DecodeOptions, ThinkerOptions
from stages.thinker.stage import Thinker

TOKENS = 12
NO_STOP: list[str] = []
PROMPT = 20
MOST_CHOICES = 16


class Writers:
    """Drives a thinker together with the stage `decode`, which gets the thinker's tokens.

    The keys of all attributes are the names of requests.

    Attributes:
        text: The text of choice 0 that the client has got.
        choices: The texts of all choices that the client has got.
        ids: The ids of choice 0 that the client has got.
        calls: The calls that the client has got.
        done: The ends of the texts that the client has got, in order.
        told: The ids that the talker has got, as one list for each message.
        ends: The body of the message that ended the talker's stream.
    """

    def __init__(self, thinker: Thinker, decode: Decode) -> None:
        self._stages: dict[str, Any] = {"thinker": thinker, "decode": decode}
        self.choices: dict[str, list[str]] = {}
        self.ids: dict[str, list[int]] = {}
        self.calls: dict[str, list[ToolCall]] = {}
        self.done: dict[str, list[TextDone]] = {}
        self.told: dict[str, list[list[int]]] = {}
        self.ends: dict[str, Finished] = {}

    @property
    def text(self) -> dict[str, str]:
        return {name: texts[0] for name, texts in self.choices.items()}

    def ask(
        self,
        name: str,
        *,
        stop: list[str] = NO_STOP,
        limit: int = TOKENS,
        choices: int = 1,
        seed: int | None = None,
        spoken: bool = True,
        prompt: int = 4,
        written: str | None = None,
        calls: CallParsing | None = None,
    ) -> None:
        """Send a request. If `written` is set, a grammar forces the answer to be this text. The model still chooses how
        the text is divided into tokens.
        """
        ids = torch.randint(2, 2000, (PROMPT,), generator=torch.Generator().manual_seed(prompt))
        greedy = Sampling(max_tokens=limit, ignore_eos=True)
        if written is not None:
            form = {"type": "const_string", "value": written}
            greedy.grammar = Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": form}))
        drawn = Sampling(max_tokens=limit, ignore_eos=True, temperature=1.0, seed=seed)
        speech = SpeechOptions("ethan", greedy, greedy)
        request = ThinkerRequest(
            ids=Tensor.of(ids),
            cache_ids=Tensor.of(ids),
            positions=None,
            position_delta=0.0,
            media_rows=None,
            media_embeds=None,
            visual_rows=None,
            deepstack=None,
            media_tokens={},
            thinker=greedy if seed is None else drawn,
            text=TextOutput(stop=stop, choices=choices, calls=calls, return_token_ids=True),
            spoken=SpokenPrompt(Tensor.of(torch.arange(PROMPT)), None, 0.0, speech) if spoken else None,
        )
        self.choices[name], self.done[name], self.told[name] = [""] * choices, [], []
        self.ids[name], self.calls[name] = [], []
        self._stages["thinker"].receive(Start(name, "mm_aggregate", "thinker", request))

    def words(self, name: str) -> list[int]:
        """All ids that the talker has got for one answer."""
        return [token for ids in self.told[name] for token in ids]

    def run(self) -> Writers:
        """Continue until there is nothing left to do."""
        while any(stage.has_work or stage.live() for stage in self._stages.values()):
            if not any(stage.has_work for stage in self._stages.values()):
                assert select.select([self._stages["thinker"].waits_on], [], [], 60)[0], "a grammar is not compiled"
            for stage in self._stages.values():
                for message in list(stage.step()) if stage.has_work else ():
                    self._pass_on(message)
        assert not any(stage.live() for stage in self._stages.values())
        return self

    def _pass_on(self, message: Any) -> None:
        assert not isinstance(message, Failed), message
        if message.target in self._stages:
            self._stages[message.target].receive(message)
        elif message.target == "talker_ar" and isinstance(message, Chunk):
            self.told[message.request_id].append(message.body.ids)
        elif message.target == "talker_ar" and isinstance(message, End):
            assert message.request_id not in self.ends
            self.ends[message.request_id] = message.body
        elif isinstance(message.body, TextDelta):
            self.choices[message.request_id][message.body.choice] += message.body.text
            self.ids[message.request_id] += [] if message.body.choice else message.body.ids
            self.calls[message.request_id] += message.body.calls
        elif isinstance(message.body, TextDone):
            done = self.done[message.request_id]
            done.append(message.body)
            assert isinstance(message, End) == (len(done) == len(self.choices[message.request_id]))


@pytest.fixture(scope="module")
def stages(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Thinker, Decode]]:
    scratch = str(tmp_path_factory.mktemp("scratch"))
    names = frozenset({"thinker", "decode", "talker_ar"})

    def context(name: str, options: Any) -> StageContext:
        return StageContext(name, str(tiny_checkpoint), "cpu", options, names, scratch)

    thinker = Thinker(context("thinker", ThinkerOptions(max_total_tokens=4096, max_running_requests=MOST_CHOICES)))
    yield thinker, Decode(context("decode", DecodeOptions()))
    thinker.close()


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture
def writers(stages: tuple[Thinker, Decode]) -> Writers:
    return Writers(*stages)


def test_a_text_without_stop_strings_is_told_token_by_token_but_for_its_last(writers: Writers) -> None:
    writers.ask("plain", stop=[])
    writers.run()
    assert [len(ids) for ids in writers.told["plain"]] == [1] * (TOKENS - 1)
    assert writers.ends["plain"] == Finished("length", None)


def test_a_stop_string_that_does_not_come_changes_nothing_that_is_told(writers: Writers) -> None:
    writers.ask("plain", stop=[])
    writers.ask("warned", stop=["\x00"])
    writers.run()
    assert writers.told["warned"] == writers.told["plain"]
    assert writers.ends["warned"] == writers.ends["plain"]


def test_words_that_may_begin_a_stop_string_are_told_when_they_do_not(writers: Writers) -> None:
    writers.ask("plain", stop=[])
    writers.run()
    writers.ask("warned", stop=[f"{writers.text['plain'][-12:]}\x00"])
    writers.run()
    assert writers.words("warned") == writers.words("plain")
    assert len(writers.told["warned"]) < len(writers.told["plain"])


@pytest.mark.parametrize("at", [0, 1, 5, TOKENS - 1])
@pytest.mark.parametrize("length", [3, 9])
def test_of_a_stop_string_and_what_follows_nothing_is_told(at: int, length: int, writers: Writers) -> None:
    writers.ask("plain", stop=[])
    writers.ask("before", stop=[], limit=max(1, at))
    writers.run()
    begin = len(writers.text["before"]) if at else 0
    stop = writers.text["plain"][begin:][:length]
    assert stop
    assert writers.text["plain"].index(stop) == begin
    writers.ask("stopped", stop=[stop])
    writers.run()
    assert writers.text["stopped"] == writers.text["plain"][:begin]
    assert writers.words("stopped") == writers.words("plain")[:at]
    assert writers.ends["stopped"] == Finished("stop", None)


def test_a_text_that_sglang_ends_with_an_error_takes_no_other_text_with_it(
    stages: tuple[Thinker, Decode], writers: Writers
) -> None:
    """SGLang may give the last token and the error in one step."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    thinker, _ = stages
    for name in ("broken", "plain"):
        writers.ask(name, stop=[])
    list(thinker.step())
    [req] = [req for req in thinker._engine._scheduler.last_batch.reqs if req.rid == "broken"]
    req.to_finish = FINISH_ABORT("the text has gone wrong")
    messages = list(thinker.step())
    assert [message.request_id for message in messages if isinstance(message, Failed)] == ["broken"]
    assert [message.request_id for message in messages if not isinstance(message, Failed)] == ["plain", "plain"]
    for name in ("broken", "plain"):
        thinker.abort(name)
    writers.run()


def test_an_aborted_text_is_forgotten(stages: tuple[Thinker, Decode], writers: Writers) -> None:
    writers.ask("gone", stop=["never to be seen"])
    for stage in stages:
        list(stage.step())
        stage.abort("gone")
    writers.run()
    assert "gone" not in writers.ends


def test_the_talker_recognises_the_media_rows_of_an_earlier_turn(stages: tuple[Thinker, Decode]) -> None:
    thinker, _ = stages
    width = thinker._engine.hidden_size

    def prompt(ids: torch.Tensor) -> TalkerPrompt:
        """The talker's part of a prompt whose rows 3 to 6 belong to a sound."""
        media = torch.arange(3, 7)
        greedy = Sampling(max_tokens=1)
        request = ThinkerRequest(
            ids=Tensor.of(ids),
            cache_ids=Tensor.of(ids),
            positions=None,
            position_delta=0.0,
            media_rows=Tensor.of(media),
            media_embeds=Tensor.of(torch.ones(4, width)),
            visual_rows=None,
            deepstack=None,
            media_tokens={},
            thinker=greedy,
            text=TextOutput(),
            spoken=SpokenPrompt(Tensor.of(torch.arange(2, 9)), None, 0.0, SpeechOptions("ethan", greedy, greedy)),
        )
        thinker.receive(Start("m", "mm_aggregate", "thinker", request))
        while True:
            for message in thinker.step():
                if isinstance(message, Start) and isinstance(message.body, TalkerPrompt):
                    thinker.abort("m")
                    return message.body

    ids = torch.arange(100, 120)
    first, longer, other = prompt(ids), prompt(torch.cat([ids, ids])), prompt(torch.cat([ids[:1], ids[1:] + 1]))
    for each in (first, longer, other):
        assert each.media_rows is not None
        assert each.media_ids is not None
        assert each.media_rows.torch().tolist() == [1, 2, 3, 4]
        assert each.media_ids.shape == each.media_rows.shape
    assert longer.media_ids.torch().tolist() == first.media_ids.torch().tolist()
    assert longer.media_hidden.torch().equal(first.media_hidden.torch())
    assert not {*other.media_ids.torch().tolist()} & {*first.media_ids.torch().tolist()}


# --- several choices --------------------------------------------------------------------------------------------------


def counts(thinker: Thinker) -> tuple[float, float]:
    """Tokens of prompts so far, and how many of them were found in the prefix cache."""
    stats = thinker.stats()
    return stats["prompt_tokens"], stats["prompt_tokens_cached"]


def step_until(thinker: Thinker, batch: list[str]) -> None:
    """Run a limited number of steps, until a step has this batch."""
    for _ in range(TOKENS // 2):
        list(thinker.step())
        if sorted(thinker.batch) == batch:
            return
    raise AssertionError(thinker.batch)


def test_the_prompt_of_several_choices_is_computed_once(stages: tuple[Thinker, Decode], writers: Writers) -> None:
    before = counts(stages[0])
    writers.ask("many", stop=[], choices=MOST_CHOICES, spoken=False, prompt=77)
    writers.run()
    prompt, cached = (after - earlier for after, earlier in zip(counts(stages[0]), before, strict=True))
    assert prompt == MOST_CHOICES * PROMPT
    assert cached == (MOST_CHOICES - 1) * (PROMPT - 1)  # the last token is always computed: its logits are needed


def test_greedy_choices_are_equal(writers: Writers) -> None:
    writers.ask("one", stop=[], spoken=False)
    writers.ask("many", stop=[], choices=MOST_CHOICES, spoken=False)
    writers.run()
    assert writers.choices["many"] == writers.choices["one"] * MOST_CHOICES
    assert sorted(done.choice for done in writers.done["many"]) == [*range(MOST_CHOICES)]
    assert {done.usage.completion_tokens for done in writers.done["many"]} == {TOKENS}


def test_each_choice_repeats_by_its_seed_alone_and_among_others(writers: Writers) -> None:
    writers.ask("one", stop=[], seed=5, spoken=False)
    writers.ask("few", stop=[], choices=3, seed=5, spoken=False)
    writers.run()
    for seed in (5, 6):
        writers.ask(f"many {seed}", stop=[], choices=8, seed=seed, spoken=False)
    writers.run()
    many = writers.choices["many 5"]
    assert len(set(many)) == len(many)
    assert writers.choices["few"] == many[:3]
    assert writers.choices["one"] == many[:1]
    assert not set(writers.choices["many 6"]) & set(many)


def test_a_stop_string_ends_only_the_choice_in_which_it_comes(writers: Writers) -> None:
    writers.ask("plain", stop=[], choices=4, seed=5, spoken=False)
    writers.run()
    plain = writers.choices["plain"]
    for choice, text in enumerate(plain):
        stop = text[4:10]
        assert stop
        writers.ask("stopped", stop=[stop], choices=4, seed=5, spoken=False)
        writers.run()
        assert writers.choices["stopped"] == [other.partition(stop)[0] for other in plain]
        reasons = {done.choice: done.finish_reason for done in writers.done["stopped"]}
        assert reasons == {i: "stop" if stop in other else "length" for i, other in enumerate(plain)}
        assert reasons[choice] == "stop"


@pytest.mark.parametrize("limit", [1, 2])
def test_choices_may_end_with_their_first_tokens(limit: int, writers: Writers) -> None:
    writers.ask("short", stop=[], choices=5, limit=limit, spoken=False)
    writers.run()
    assert [done.usage.completion_tokens for done in writers.done["short"]] == [limit] * 5


def test_if_one_choice_fails_all_end(stages: tuple[Thinker, Decode], writers: Writers) -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    thinker, decode = stages
    writers.ask("broken", stop=[], choices=3, spoken=False)
    writers.ask("plain", stop=[], spoken=False)
    step_until(thinker, ["broken"] * 3 + ["plain"])
    [req] = [req for req in thinker._engine._scheduler.last_batch.reqs if req.rid == "1#broken"]
    req.to_finish = FINISH_ABORT("the text has gone wrong")
    messages = list(thinker.step())
    assert [message.request_id for message in messages if isinstance(message, Failed)] == ["broken"]
    step_until(thinker, ["plain"])  # SGLang drops a running request in the next step
    for stage in (thinker, decode):
        stage.abort("plain")
    writers.run()


def test_an_abort_ends_all_choices(stages: tuple[Thinker, Decode], writers: Writers) -> None:
    thinker, decode = stages
    writers.ask("gone", stop=[], choices=3, spoken=False)
    step_until(thinker, ["gone"] * 3)
    for stage in (thinker, decode):
        stage.abort("gone")
    list(thinker.step())
    assert not thinker.has_work
    assert thinker.stats()["running_requests"] == 0


OPEN, CLOSE = "<tool_call>", "</tool_call>"
CALLED = f'{OPEN}\n{{"name": "f", "arguments": {{"a": "{{é}}"}}}}\n{CLOSE}'
MALFORMED = f'{OPEN}\n{{"name": "g", "arguments": {{}}}}\n{CLOSE}'
SEVERAL = CallParsing("hermes", ["f"])
ONE = CallParsing("hermes", ["f"], parallel=False)


@pytest.mark.parametrize(
    ("written", "parsing", "content", "calls", "spoken"),
    [
        (f"Let me see.\n{CALLED}", SEVERAL, "Let me see.", 1, "Let me see."),
        (CALLED, SEVERAL, "", 1, ""),
        (f"{CALLED}\n{CALLED}", SEVERAL, "", 2, ""),
        (f"One.\n{CALLED}\nTwo — 二.\n{CALLED}", SEVERAL, "One.\nTwo — 二.", 2, "One.\nTwo — 二."),
        (f"One.\n{MALFORMED}\nTwo.", SEVERAL, f"One.\n{MALFORMED}\nTwo.", 0, "One.\nTwo."),
        (f"The marker {OPEN} begins it.", SEVERAL, f"The marker {OPEN} begins it.", 0, "The marker begins it."),
        (f"One.\n{CALLED}\n{CALLED}", ONE, "One.", 1, "One."),
        (f"One. {OPEN}\n{{", SEVERAL, f"One. {OPEN}\n{{", 0, "One."),
        (f"One. {CALLED}", None, f"One. {CALLED}", 0, f"One. {CALLED}"),
        ("One < two, <tool, and three.", SEVERAL, "One < two, <tool, and three.", 0, "One < two, <tool, and three."),
    ],
)
def test_the_talker_gets_the_tokens_outside_of_calls(
    writers: Writers,
    tokenizer: Any,
    written: str,
    parsing: CallParsing | None,
    content: str,
    calls: int,
    spoken: str,
) -> None:
    writers.ask("answer", written=written, calls=parsing, limit=400)
    writers.ask("silent", written=written, calls=parsing, limit=400, spoken=False)
    writers.run()
    for name in ("answer", "silent"):
        assert writers.text[name] == content
        assert writers.calls[name] == [ToolCall("f", '{"a": "{é}"}')] * calls
        assert [done.finish_reason for done in writers.done[name]] == ["tool_calls" if calls else "stop"]
    words = writers.words("answer")
    assert " ".join(tokenizer.decode(words).split()) == " ".join(spoken.split())
    remaining = iter(writers.ids["answer"])
    assert all(word in remaining for word in words)  # the words are some of the ids, in their order
    assert writers.ends["answer"].reason == "stop"


def test_a_text_that_is_cut_off_in_a_call_is_silent_from_the_call_on(writers: Writers, tokenizer: Any) -> None:
    written = f"Let me see.\n{CALLED}"
    writers.ask("whole", written=written, calls=SEVERAL, limit=400)
    writers.run()
    writers.ask("cut", written=written, calls=SEVERAL, limit=len(writers.ids["whole"]) - 4)
    writers.run()
    assert writers.words("cut") == writers.words("whole")
    assert written.startswith(writers.text["cut"])
    assert OPEN in writers.text["cut"]
    assert (writers.done["cut"][0].finish_reason, writers.calls["cut"]) == ("length", [])
    assert writers.ends["cut"].reason == "length"


def test_words_before_a_call_are_told_before_the_call_is_written(writers: Writers) -> None:
    writers.ask("answer", written=f"One two three four.\n{CALLED}", calls=SEVERAL, limit=400)
    writers.run()
    assert {len(ids) for ids in writers.told["answer"]} <= {1, 2}  # a space comes with the word after it


def test_a_stop_string_in_a_call_ends_the_text_there(writers: Writers, tokenizer: Any) -> None:
    written = f"One.\n{CALLED}"
    writers.ask("stopped", written=written, calls=SEVERAL, limit=400, stop=['"arguments"'])
    writers.ask("closed", written=f"{written}\n{CALLED}", calls=SEVERAL, limit=400, stop=[CLOSE])
    writers.run()
    assert writers.text["stopped"] == written[: written.index('"arguments"')]
    assert (writers.text["closed"], len(writers.calls["closed"])) == ("One.", 1)
    for name in ("stopped", "closed"):
        assert tokenizer.decode(writers.words(name)).strip() == "One."
        assert writers.ends[name] == Finished("stop", None)


def test_calls_among_many_answers_at_a_time(writers: Writers) -> None:
    texts = [f"Text {index}.\n{CALLED if index % 2 else ''}" for index in range(8)]
    for index, written in enumerate(texts):
        writers.ask(f"alone {index}", written=written, calls=SEVERAL, limit=400, prompt=index)
        writers.run()
    for index, written in enumerate(texts):
        writers.ask(f"together {index}", written=written, calls=SEVERAL, limit=400, prompt=index)
    writers.run()
    for index in range(8):
        assert writers.words(f"together {index}") == writers.words(f"alone {index}")
        assert writers.text[f"together {index}"] == writers.text[f"alone {index}"]


def test_each_choice_has_calls_of_its_own(writers: Writers) -> None:
    written = f"Hm.\n{CALLED}\n{CALLED}"
    writers.ask("three", written=written, calls=ONE, choices=3, spoken=False, limit=400)
    writers.run()
    assert writers.choices["three"] == ["Hm."] * 3
    assert len(writers.calls["three"]) == 3
    assert [done.finish_reason for done in writers.done["three"]] == ["tool_calls"] * 3
