"""A text that is read aloud is spoken passage by passage. Each passage is spoken like a separate answer, but all
passages are one utterance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_talker_ar import Ring, talker  # noqa: F401 (a fixture)

from omni_pipeline.wire.messages import Chunk, End, Failed, Paused, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import FrameSeed, Passage, PredictorStart, Sampling, SpeechFinished, SpeechOptions, TalkerPrompt
from stages.talker_ar.stage import Talker

PASSAGES = ([1, 2, 3, 4, 5, 6], [9], [20, 21, 22, 23])
FRAMES = 7


class Reader(Ring):
    """Drives the stage with texts that are read aloud.

    Attributes:
        pauses: Names of utterances: one name for each message with which an utterance asks to continue.
        starts: Names of utterances: one name for each message with which an utterance begins at the predictor.
        read: For each utterance that has ended, the number of its text tokens.
    """

    def __init__(self, stage: Talker) -> None:
        super().__init__(stage)
        self.pauses: list[str] = []
        self.starts: list[str] = []
        self.read: dict[str, int] = {}
        self.goes_on = True

    def begin_text(self, name: str, *passages: list[int], last: bool = True, **sampling: Any) -> None:
        ids = torch.arange(5)
        greedy = Sampling(**{"repetition_penalty": 1.05, **sampling})
        prompt = TalkerPrompt(Tensor.of(ids), None, None, [0, 1, 2], None, 0.0, SpeechOptions("ethan", greedy, greedy))
        self.codes[name] = []
        self.talker.receive(Start(name, "preprocessing", "talker_ar", prompt))
        for index, passage in enumerate(passages):
            kind = End if last and index == len(passages) - 1 else Chunk
            self.talker.receive(kind(name, "preprocessing", "talker_ar", Passage(passage)))

    def step(self) -> None:
        if not self.talker.has_work:
            return
        for message in list(self.talker.step()):
            assert not isinstance(message, Failed), message
            match message:
                case Paused():
                    self.pauses.append(message.request_id)
                    if self.goes_on:
                        self.talker.grant(message.request_id)
                case Start(body=PredictorStart()):
                    self.starts.append(message.request_id)
                case End(body=SpeechFinished()):
                    self.ended.add(message.request_id)
                    self.reasons[message.request_id] = message.body.reason
                    self.read[message.request_id] = message.body.text_tokens
                case Chunk(body=FrameSeed()):
                    self.codes[message.request_id].append(message.body.code)
                    self.due[message.request_id] = message.body.code


@pytest.fixture
def reader(talker: Talker) -> Iterator[Reader]:  # noqa: F811
    reader = Reader(talker)
    default, talker._default_max_tokens = talker._default_max_tokens, FRAMES + 1
    yield reader
    talker._default_max_tokens = default
    for name in list(talker.live()):
        reader.leave(name)
    reader.run()
    assert not talker.live()
    assert not talker._order._voices
    assert talker.stats()["kv_tokens_used"] == 0


def spoken(reader: Reader, name: str, *passages: list[int], **sampling: Any) -> list[int]:
    reader.begin_text(name, *passages, **sampling)
    return reader.run()[name]


def test_a_text_of_one_passage_is_an_answer_with_these_words(reader: Reader) -> None:
    ids = torch.arange(5)
    greedy = Sampling(repetition_penalty=1.05, max_tokens=FRAMES + 1)
    prompt = TalkerPrompt(Tensor.of(ids), None, None, [0, 1, 2], None, 0.0, SpeechOptions("ethan", greedy, greedy))
    reader.codes["answer"] = []
    reader.talker.receive(Start("answer", "thinker", "talker_ar", prompt))
    reader.say("answer", *PASSAGES[0])
    assert spoken(reader, "text", PASSAGES[0]) == reader.codes["answer"]
    assert reader.reasons == {"answer": "length", "text": "length"}


def test_each_passage_is_spoken_as_if_it_were_alone_and_all_are_one_utterance(reader: Reader) -> None:
    alone = [spoken(reader, f"p{index}", passage) for index, passage in enumerate(PASSAGES)]
    assert spoken(reader, "all", *PASSAGES) == [code for codes in alone for code in codes]
    assert reader.starts.count("all") == 1
    assert reader.pauses == ["all"] * 2
    assert reader.read["all"] == 5 + sum(map(len, PASSAGES))


def test_texts_in_company_are_spoken_as_alone(reader: Reader) -> None:
    texts = {f"t{index}": [[index + 1, 2, 3], [index + 40] * 5, [7, index]] for index in range(8)}
    alone = {name: spoken(reader, f"alone-{name}", *passages) for name, passages in texts.items()}
    for name, passages in texts.items():
        reader.begin_text(name, *passages)
        reader.turn()
    together = reader.run()
    assert {name: together[name] for name in texts} == alone


def test_a_passage_waits_until_the_client_has_read(reader: Reader) -> None:
    reader.goes_on = False
    reader.begin_text("t", *PASSAGES)
    reader.run()
    assert (len(reader.codes["t"]), reader.pauses, reader.ended) == (FRAMES, ["t"], set())
    assert list(reader.talker.live()) == ["t"]
    reader.talker.grant("t")
    reader.run()
    assert (len(reader.codes["t"]), reader.pauses) == (2 * FRAMES, ["t", "t"])
    reader.talker.grant("t")
    reader.run()
    assert (len(reader.codes["t"]), reader.ended) == (3 * FRAMES, {"t"})


def test_a_text_that_waits_for_its_client_makes_nobody_wait(reader: Reader) -> None:
    reader.goes_on = False
    reader.begin_text("t", *PASSAGES)
    reader.run()
    reader.hears("t", -5.0)
    order = reader.talker._order
    assert order.sufficient_lead(0.0) == float("inf")
    assert reader.talker.wakes_at is None


def test_a_passage_that_comes_late_is_spoken_when_it_comes(reader: Reader) -> None:
    expected = spoken(reader, "early", *PASSAGES)
    reader.begin_text("late", PASSAGES[0], last=False)
    reader.run()
    assert reader.ended == {"early"}
    reader.talker.receive(Chunk("late", "preprocessing", "talker_ar", Passage(PASSAGES[1])))
    reader.run()
    reader.talker.receive(End("late", "preprocessing", "talker_ar", Passage(PASSAGES[2])))
    assert reader.run()["late"] == expected


@pytest.mark.parametrize("limit", [2, 5, FRAMES + 1, FRAMES + 4, 3 * FRAMES, 3 * FRAMES + 1, 100])
def test_the_clients_limit_holds_for_all_passages_together(reader: Reader, talker: Talker, limit: int) -> None:  # noqa: F811
    """`logit_bias` makes the talker end each passage after `FRAMES` frames, unless the client's limit ends the speech
    earlier.
    """
    ends = {"min_tokens": FRAMES, "logit_bias": {talker._end: 1000.0}}
    codes = spoken(reader, "t", *PASSAGES, max_tokens=limit, **ends)
    assert len(codes) == min(limit - 1, 3 * FRAMES)
    assert reader.reasons == {"t": "stop" if limit > 3 * FRAMES else "length"}


def test_an_abort_between_passages_leaves_nothing(reader: Reader) -> None:
    reader.goes_on = False
    reader.begin_text("t", *PASSAGES)
    reader.run()
    reader.leave("t")
    reader.talker.grant("t")
    assert not reader.talker.has_work
