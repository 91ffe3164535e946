"""Prompts for the talker have a media row for every placeholder, and positions as the reference gives them."""

import pytest
import torch
from demo_model.checkpoint.shapes import model_configuration
from demo_model.checkpoint.tokenizer import tokenizer
from demo_model.voice import talker_training
from demo_model.voice.talker_prompts import PromptMaker

KINDS = ("none", "typed", "picture", "spoken", "picture_spoken", "clip")


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> PromptMaker:
    config = model_configuration()
    talker = talker_training.new_talker(config.talker_config, seed=0)
    return PromptMaker(talker, config, tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_placeholder_has_a_row_and_every_row_a_position(maker: PromptMaker, kind: str) -> None:
    thinker = model_configuration().thinker_config
    media = [thinker.audio_token_id, thinker.image_token_id, thinker.video_token_id]

    prompt = getattr(maker, kind)(torch.Generator().manual_seed(0))

    assert prompt.positions.shape == (3, len(prompt.ids))
    assert len(prompt.media) == int(torch.isin(prompt.ids, torch.tensor(media)).sum())
    assert (len(prompt.media) > 0) == (kind not in ("none", "typed"))
    assert prompt.next_position == (int(prompt.positions.max()) + 1 if kind != "none" else 0)


def test_the_same_random_numbers_make_the_same_prompt(maker: PromptMaker) -> None:
    first, second = (maker.picture(torch.Generator().manual_seed(3)) for _ in range(2))

    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.media, second.media)


def test_a_picture_takes_fewer_positions_than_rows(maker: PromptMaker) -> None:
    prompt = maker.picture(torch.Generator().manual_seed(0))

    assert prompt.next_position < len(prompt.ids)
