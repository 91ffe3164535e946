"""The limits for bfloat16 accept correct results and detect planted faults. The tests use the reference's own
modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from stages.preprocessing.features import Features
from tests.equality.conversations import Kit, all_conversations
from tests.reference import Conversation
from tests.rounding import cases, limits, stages
from tests.rounding.deviations import Answer, Texts
from tests.rounding.reference import RoundedReference
from tests.rounding.served import parse

MOST = {"x: median": 1.0, "tokens that differ": 0.1}


@pytest.mark.parametrize(
    ("figures", "wrong"),
    [
        ({"x: median": 1.0, "tokens that differ": 0.1}, []),
        ({"x: median": 1.01}, ["x: median is 1.01, and may be 1"]),
        ({"tokens that differ": float("nan")}, ["tokens that differ is nan, and may be 0.1"]),
    ],
)
def test_what_is_beyond_its_limit_is_named(figures: dict[str, float], wrong: list[str]) -> None:
    assert limits.too_large(figures, MOST) == wrong


@pytest.mark.parametrize(
    ("figure", "most"),
    [
        ("vision rows: median", 1.4),
        ("vision rows: median, clips", 1.7),
        ("vision rows: 90th percentile", 2.0),
        ("tokens that differ", 2.01),
        (limits.CHANGE, 3.0),
    ],
)
def test_each_kind_of_figure_has_its_factor(figure: str, most: float) -> None:
    assert limits.limit(figure, 1.0) == most


def test_an_answer_is_held_against_the_reference_that_is_forced_through_it() -> None:
    truth = torch.tensor([[3.0, 2.0, 0.0], [0.0, 2.0, 1.5], [1.0, 0.0, 0.0]])
    logprobs = truth.log_softmax(-1)
    texts = Texts()
    best = [
        # Each of the two log-probabilities has an error of 0.1, so the lead has an error of 0.2.
        {0: float(logprobs[0, 0]) + 0.1, 1: float(logprobs[0, 1]) - 0.1},
        # Both log-probabilities are right, but the less likely token was picked.
        {2: float(logprobs[1, 2]), 1: float(logprobs[1, 1])},
    ]
    texts.add("text", Answer([0, 2, 0], best), truth)
    assert texts.tokens == 3
    assert texts.others == 1
    assert texts.distances.values["text"] == pytest.approx([0.1, 0.0], abs=1e-6)
    assert texts.changes == pytest.approx([0.2, 0.0], abs=1e-6)


def test_alternatives_are_found_by_their_bytes_and_a_token_that_is_not_its_id_is_refused() -> None:
    def named(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(text.encode()), "logprob": logprob}

    content = [{**named("a", -0.1), "top_logprobs": [named("a", -0.1), named("é", -3.0), named("twice", -4.0)]}]
    ids = {b"a": 7, "é".encode(): 9}
    assert parse({"token_ids": [7, 2], "logprobs": {"content": content}}, ids) == Answer([7, 2], [{7: -0.1, 9: -3.0}])
    with pytest.raises(AssertionError):
        parse({"token_ids": [8], "logprobs": {"content": content}}, ids)


@pytest.fixture(scope="module")
def truth(truths: Callable[[str], RoundedReference]) -> RoundedReference:
    return truths("nano")


@pytest.fixture(scope="module")
def rounded() -> RoundedReference:
    return RoundedReference(cases.checkpoint("nano"), torch.bfloat16)


@pytest.fixture(scope="module")
def given(kit: Kit, truth: RoundedReference) -> stages.Media:
    """The inputs of the tests: the first three pictures or clips, and the first three sounds."""
    everything = stages.media(kit, Features(truth.processor))
    return stages.Media(everything.seen[:3], everything.heard[:3])


@contextmanager
def scaled(weight: torch.Tensor, factor: float) -> Iterator[None]:
    """Plants a fault: a weight is scaled, as if it had been loaded wrongly."""
    kept = weight.data.clone()
    weight.data.mul_(factor)
    yield
    weight.data.copy_(kept)


@contextmanager
def swapped(weight: torch.Tensor) -> Iterator[None]:
    """Plants a fault: two experts are swapped."""
    kept = weight.data.clone()
    weight.data[[0, 1]] = weight.data[[1, 0]]
    yield
    weight.data.copy_(kept)


@contextmanager
def rounded_angles(rotary: Any) -> Iterator[None]:
    """Plants a fault: rotary angles are computed in bfloat16, whose numbers near position 600 are 4 apart."""
    right = rotary.forward

    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = (position_ids[..., None].float() * rotary.inv_freq).to(torch.bfloat16).float()
        angles = rotary.recomposition_frequencies(angles)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    rotary.forward = forward
    yield
    rotary.forward = right


@contextmanager
def without_deepstack(model: Any) -> Iterator[None]:
    """Plants a fault: the rows for deeper layers are not added."""
    right = model._deepstack_process
    model._deepstack_process = lambda hidden, *others: hidden
    yield
    model._deepstack_process = right


def wrong(figures: dict[str, float]) -> list[str]:
    return limits.too_large(figures, limits.limits("nano"))


def test_encoders_with_two_mergers_swapped_are_seen(
    given: stages.Media, truth: RoundedReference, rounded: RoundedReference
) -> None:
    right, mergers = stages.ReferenceStages(truth), rounded.model.thinker.visual.merger_list
    compared = stages.compare_encoders(stages.ReferenceStages(rounded), right, given)
    assert wrong(compared) == []
    first, second = mergers[0], mergers[1]
    mergers[0], mergers[1] = second, first
    found = wrong(stages.compare_encoders(stages.ReferenceStages(rounded), right, given))
    mergers[0], mergers[1] = first, second
    assert any("deepstack rows" in one for one in found)
    assert not any("vision rows" in one for one in found)


def test_a_talker_with_two_experts_swapped_is_seen(
    kit: Kit, truth: RoundedReference, rounded: RoundedReference
) -> None:
    speeches = cases.record(truth, kit, step=20)
    end = truth.model.config.talker_config.codec_eos_token_id

    def found() -> list[str]:
        figures = stages.compare_talker(stages.ReferenceStages(rounded), speeches, end)
        return wrong({name: figures[name] for name in ("talker states: median", "talker log-probabilities: median")})

    assert found() == []
    with swapped(rounded.model.talker.model.layers[-1].mlp.experts.down_proj):
        assert len(found()) == 2


def test_a_thinker_with_faults_is_seen(kit: Kit, truth: RoundedReference, rounded: RoundedReference) -> None:
    thinker = rounded.model.thinker.model
    table = all_conversations(kit)
    long = [one for one in cases.conversations(kit) if cases.group(one) == "long"]

    def found(conversations: list[Conversation] = table[::6]) -> list[str]:
        figures = cases.compare_texts(rounded, truth, conversations)
        return wrong({"log-probabilities: median": figures["log-probabilities: median"]})

    assert found() == found(long) == []
    with swapped(thinker.layers[-1].mlp.experts.gate_up_proj):
        assert found()
    with without_deepstack(thinker):
        assert found()
    with rounded_angles(thinker.rotary_emb):
        assert found(long)
    with scaled(thinker.layers[0].self_attn.v_proj.weight, 1.05):
        assert found()
