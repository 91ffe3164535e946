"""The talker is trained on the same rows that the reference uses when it generates. The codes that our code generates
equal the reference's codes.
"""

import pytest
import torch
from demo_model.voice import talker_training
from demo_model.voice.free_running import generate
from demo_model.voice.talker_batches import (
    Reply,
    TalkerInputs,
    UserTurns,
    positions,
    residual_logits,
    states,
)
from tiny_checkpoint.config import model_config
from tiny_checkpoint.shapes import PRESETS
from tiny_checkpoint.tokenizer import cut_vocabulary
from tiny_checkpoint.weights import random_model

from stages.messages import ASSISTANT_ROWS

USER = [5, 6, 7]


@pytest.fixture(scope="module")
def vocabulary():
    return cut_vocabulary(1500)


@pytest.fixture(scope="module")
def model(vocabulary):
    return random_model(model_config(PRESETS["nano"], vocabulary, "float32"), vocabulary, seed=1).eval()


@pytest.fixture(scope="module")
def inputs(model, vocabulary) -> TalkerInputs:
    embeddings = model.thinker.get_input_embeddings().weight.detach()
    return TalkerInputs(model.talker, model.config, embeddings, vocabulary.id("\n"))


@pytest.fixture(scope="module")
def prompt(model, vocabulary) -> UserTurns:
    """A prompt for the talker: a user's turn with three rows of a picture."""
    picture = model.config.thinker_config.image_token_id
    ids = [vocabulary.id(token) for token in ("<|im_start|>", "user", "\n", "<|vision_start|>")]
    ids += [picture] * 3 + [vocabulary.id("<|vision_end|>"), *USER, vocabulary.id("<|im_end|>"), vocabulary.id("\n")]
    media = torch.randn(3, model.config.thinker_config.text_config.hidden_size)
    return UserTurns(torch.tensor(ids), media, torch.arange(len(ids)).float().expand(3, -1))


@pytest.fixture(scope="module")
def reply() -> Reply:
    return Reply(torch.tensor([11, 12, 13, 14]), "aiden")


def test_user_rows_are_the_references(model, inputs: TalkerInputs, prompt: UserTurns) -> None:
    media = prompt.ids == model.config.thinker_config.image_token_id
    hidden = torch.randn(1, len(prompt.ids), prompt.media.shape[1])
    hidden[0, media] = prompt.media

    embedded = inputs.embeddings[prompt.ids][None]
    truth = model._get_talker_user_parts(0, len(prompt.ids), media[None], hidden, embedded)

    torch.testing.assert_close(inputs.user_rows(prompt), truth[0])


def test_assistant_and_trailing_rows_are_the_references(model, inputs: TalkerInputs, reply: Reply, vocabulary) -> None:
    config = model.config
    end = vocabulary.id("<|im_end|>")
    opening = [config.im_start_token_id, config.assistant_token_id, vocabulary.id("\n")]
    # The reference gets the ids whose embeddings the thinker has read. The last generated id is not among them.
    embedded = inputs.embeddings[torch.tensor([*opening, *reply.ids.tolist()])][None]
    special = torch.tensor([config.tts_bos_token_id, config.tts_eos_token_id, config.tts_pad_token_id, end])
    begin, finish, pad, _ = inputs.text(special)[None].split(1, dim=1)

    rows, ids, trailing = model._get_talker_assistant_parts(
        0, embedded.shape[1], config.talker_config.speaker_id["aiden"], embedded, pad, begin, finish
    )

    assert rows.shape[1] == ids.shape[1] == ASSISTANT_ROWS
    torch.testing.assert_close(inputs.assistant_rows(reply), rows[0])
    ours = inputs.trailing_rows(reply, 6)
    torch.testing.assert_close(ours[: trailing.shape[1]], trailing[0])
    torch.testing.assert_close(ours[trailing.shape[1] :], pad[0].expand(6 - trailing.shape[1], -1))


def test_free_running_greedy_codes_are_the_references(
    model, inputs: TalkerInputs, prompt: UserTurns, reply: Reply
) -> None:
    longer = Reply(torch.tensor([21, 22, 23, 24, 25, 26]), "ethan")
    truth = [_reference_codes(model, inputs, prompt, each) for each in (reply, longer)]

    ours = generate(inputs, prompt, [reply, longer], sampled=False, seed=0)

    for codes, reference in zip(ours, truth, strict=True):
        frames = min(codes.shape[1], reference.shape[1])
        assert frames > 3
        assert torch.equal(codes[:, :frames], reference[:, :frames])


def test_teaching_sees_the_states_that_generation_chose_from(
    model, inputs: TalkerInputs, prompt: UserTurns, reply: Reply
) -> None:
    (codes,) = generate(inputs, prompt, [reply], sampled=False, seed=0)
    codes = codes.T[:6]
    nowhere = torch.zeros(3 * len(codes), dtype=torch.long)
    lesson = talker_training.TalkerLesson(reply, codes, nowhere[: len(codes)])
    # With two lengths, the shorter sequence is padded.
    longer = talker_training.TalkerLesson(reply, codes.repeat(3, 1), nowhere)
    with torch.no_grad():
        rows = [torch.cat([inputs.assistant_rows(reply), inputs.frame_rows(each.codes)]) for each in (lesson, longer)]
        for row, each in zip(rows, (lesson, longer), strict=True):
            row[-len(each.codes) :] += inputs.trailing_rows(reply, len(each.codes))
        places = positions(prompt, len(prompt.ids) + len(rows[1]))
        hidden = states(model.talker, inputs.user_rows(prompt), rows, places)[-1][0]
        chose = hidden[ASSISTANT_ROWS - 1 :][: len(codes)]
        residual = residual_logits(model.talker, chose, codes)

    assert torch.equal(torch.stack([logits.argmax(dim=-1) for logits in residual], dim=1), codes[:, 1:])


def test_a_taught_talker_has_learnt(inputs: TalkerInputs, prompt: UserTurns, reply: Reply, model) -> None:
    talker = talker_training.new_talker(model.config.talker_config, seed=0)
    pupil = TalkerInputs(talker, model.config, inputs.embeddings, int(prompt.ids[2]))
    codes = torch.randint(128, (8, 8), generator=torch.Generator().manual_seed(0))
    lesson = talker_training.TalkerLesson(reply, codes, said=torch.arange(8).clamp(max=len(reply.ids)))
    questions = talker_training.TalkerInTraining(talker)
    optimizer = torch.optim.Adam(questions.parameters(), lr=1e-2)

    right = []
    for _ in range(60):
        losses = talker_training.losses(pupil, [lesson], prompt, [lesson.codes], pupil=questions)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        right.append(float(losses["right"]))

    assert right[-1] == 1
    assert float(losses["reading"].detach()) < 0.3
    (codes,) = generate(pupil, prompt, [reply], sampled=False, seed=0)
    assert torch.equal(codes[0], lesson.codes[:, 0])  # the speech also ends at the right frame


def _reference_codes(model, inputs: TalkerInputs, prompt: UserTurns, reply: Reply) -> torch.Tensor:
    """Codes [groups, frames] of the reference's own greedy loop."""
    with torch.no_grad():
        rows = torch.cat([inputs.user_rows(prompt), inputs.assistant_rows(reply)])[None]
        codec = model.config.talker_config
        result = model.talker.generate(
            inputs_embeds=rows,
            trailing_text_hidden=inputs.trailing_rows(reply, len(reply.ids))[None],
            tts_pad_embed=inputs.text(torch.tensor([model.config.tts_pad_token_id]))[None],
            talker_input_ids=torch.zeros(1, rows.shape[1], dtype=torch.long),
            attention_mask=torch.ones(1, rows.shape[1], dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            repetition_penalty=1.05,
            suppress_tokens=[
                code
                for code in range(codec.text_config.vocab_size - 1024, codec.text_config.vocab_size)
                if code != codec.codec_eos_token_id
            ],
            eos_token_id=codec.codec_eos_token_id,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    return torch.stack([hidden[-1] for hidden in result.hidden_states if hidden[-1] is not None], dim=1)[0].T
