"""The talker gets each token of a text as soon as it is certain that no stop string removes it, and finally the end of
the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Chunk, End, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.decode.stage import Decode
from stages.messages import Finished, Sampling, SpeechOptions, SpokenPrompt, TextDelta, TextOutput, ThinkerRequest
from stages.options import DecodeOptions, ThinkerOptions
from stages.thinker.stage import Thinker

TOKENS = 12


class Writers:
    """Drives a thinker together with the decode stage that gets its tokens.

    Attributes:
        text: The text that clients have got, by request.
        told: The ids that the talker has got, as one list for each message, by request.
        ends: The bodies of the messages that ended the talker's streams, by request.
    """

    def __init__(self, thinker: Thinker, decode: Decode) -> None:
        self._stages: dict[str, Any] = {"thinker": thinker, "decode": decode}
        self.text: dict[str, str] = {}
        self.told: dict[str, list[list[int]]] = {}
        self.ends: dict[str, Finished] = {}

    def ask(self, name: str, *, stop: list[str], limit: int = TOKENS) -> None:
        ids = torch.randint(2, 2000, (20,), generator=torch.Generator().manual_seed(4))
        greedy = Sampling(max_tokens=limit, ignore_eos=True)
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
            thinker=greedy,
            text=TextOutput(stop=stop),
            spoken=SpokenPrompt(Tensor.of(torch.arange(20)), None, 0.0, speech),
        )
        self.text[name], self.told[name] = "", []
        self._stages["thinker"].receive(Start(name, "mm_aggregate", "thinker", request))

    def words(self, name: str) -> list[int]:
        """All ids of an answer that the talker got."""
        return [token for ids in self.told[name] for token in ids]

    def run(self) -> Writers:
        """Go on until there is nothing left to do."""
        while any(stage.has_work for stage in self._stages.values()):
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
        elif isinstance(message, Chunk) and isinstance(message.body, TextDelta):
            self.text[message.request_id] += message.body.text


@pytest.fixture(scope="module")
def stages(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Thinker, Decode]]:
    scratch = str(tmp_path_factory.mktemp("scratch"))
    names = frozenset({"thinker", "decode", "talker_ar"})

    def context(name: str, options: Any) -> StageContext:
        return StageContext(name, str(tiny_checkpoint), "cpu", options, names, scratch)

    thinker = Thinker(context("thinker", ThinkerOptions(max_total_tokens=4096, max_running_requests=8)))
    yield thinker, Decode(context("decode", DecodeOptions()))
    thinker.close()


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
