"""Tests the precedence of defaults, top-level fields, `stage_sampling` and seeds for each stage."""

from __future__ import annotations

import json

import pytest

from gateway.api.sampling import predictor_sampling, talker_sampling, thinker_sampling
from omni_pipeline.config.schema import Limits
from stages.messages import Sampling
from tests.gateway.json_bodies import parse


def sampled(**fields) -> dict[str, Sampling]:
    request = parse(json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}).encode())
    talker = talker_sampling(request, Limits())
    return {
        "thinker": thinker_sampling(request, Limits()),
        "talker_ar": talker,
        "code_predictor": predictor_sampling(request, talker),
    }


def different(**fields) -> dict[str, dict]:
    """The sampling parameters that `fields` change, by stage."""
    default = sampled()
    return {
        stage: changes
        for stage, sampling in sampled(**fields).items()
        if (
            changes := {
                name: getattr(sampling, name)
                for name in Sampling.__struct_fields__
                if getattr(sampling, name) != getattr(default[stage], name)
            }
        )
    }


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        ({"temperature": 0.5}, {"thinker": {"temperature": 0.5}}),
        ({"top_p": 0.5, "top_k": 7}, {"thinker": {"top_p": 0.5, "top_k": 7}}),
        ({"max_tokens": 9, "repetition_penalty": 1.2}, {"thinker": {"max_tokens": 9, "repetition_penalty": 1.2}}),
        ({"talker_temperature": 0.5}, {"talker_ar": {"temperature": 0.5}}),
        ({"talker_top_p": 0.5, "talker_top_k": 7}, {"talker_ar": {"top_p": 0.5, "top_k": 7}}),
        ({"talker_top_k": -1}, {"talker_ar": {"top_k": 0}}),
        ({"talker_repetition_penalty": 1}, {"talker_ar": {"repetition_penalty": 1.0}}),
        ({"talker_max_new_tokens": 5}, {"talker_ar": {"max_tokens": 5}}),
        ({"stage_sampling": {"thinker": {"min_p": 0.1}}}, {"thinker": {"min_p": 0.1}}),
        ({"stage_sampling": {"talker_ar": {"min_p": 0.1}}}, {"talker_ar": {"min_p": 0.1}}),
        ({"stage_sampling": {"code_predictor": {"top_k": 1}}}, {"code_predictor": {"top_k": 1}}),
        ({"stage_sampling": {"talker_ar": {}}}, {}),
        (
            {"temperature": 1, "stage_sampling": {"thinker": {"temperature": 0.5}}},
            {"thinker": {"temperature": 0.5}},
        ),
        (
            {"talker_temperature": 1, "talker_top_k": 3, "stage_sampling": {"talker_ar": {"temperature": 0.5}}},
            {"talker_ar": {"temperature": 0.5, "top_k": 3}},
        ),
        (
            {"talker_max_new_tokens": 3, "stage_sampling": {"talker_ar": {"max_tokens": 8}}},
            {"talker_ar": {"max_tokens": 8}},
        ),
        ({"ignore_eos": True}, {"thinker": {"ignore_eos": True}, "talker_ar": {"ignore_eos": True}}),
    ],
)
def test_a_field_changes_its_stage_and_no_other(fields, changes):
    assert different(**fields) == changes


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({"talker_temperature": 0}, 0.0),
        ({"stage_sampling": {"talker_ar": {"temperature": 0}}}, 0.0),
        ({"talker_temperature": 0, "stage_sampling": {"talker_ar": {"temperature": 0.5}}}, 1.0),
        ({"talker_temperature": 0, "stage_sampling": {"code_predictor": {"top_k": 3}}}, 0.0),
        ({"talker_temperature": 0, "stage_sampling": {"code_predictor": {"temperature": 0.7}}}, 0.7),
        ({"temperature": 0}, 1.0),
    ],
)
def test_a_greedy_talker_has_a_greedy_predictor_unless_that_has_its_own_temperature(fields, temperature):
    assert sampled(**fields)["code_predictor"].temperature == temperature


class TestSeed:
    @staticmethod
    def seeds(**fields) -> list[int | None]:
        return [sampling.seed for sampling in sampled(**fields).values()]

    def test_is_nobodys_without_one(self):
        assert self.seeds() == [None, None, None]

    def test_of_the_request_gives_each_stage_another(self):
        thinker, talker, predictor = self.seeds(seed=42)
        assert thinker == 42
        assert len({thinker, talker, predictor}) == 3

    def test_of_the_request_gives_the_documented_ones(self):
        # These seeds are from sha256("talker_ar:42") and sha256("code_predictor:42"). If they change, clients hear
        # other speech for the same seed.
        assert self.seeds(seed=42)[1:] == [3417599083167817286, 3356734774968194441]

    @pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
    def test_fits_63_bits(self, seed):
        assert all(0 <= drawn < 2**63 for drawn in self.seeds(seed=seed))

    def test_of_a_stage_wins_and_is_taken_as_it_is(self):
        others = self.seeds(seed=42)
        assert self.seeds(seed=42, stage_sampling={"talker_ar": {"seed": 7}}) == [others[0], 7, others[2]]

    def test_of_a_stage_is_its_own_alone(self):
        assert self.seeds(stage_sampling={"thinker": {"seed": 7}}) == [7, None, None]
