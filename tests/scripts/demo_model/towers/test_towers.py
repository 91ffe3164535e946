"""The training recipe has faster versions of some of the reference's computations. They give the same results as the
reference.
"""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from demo_model.checkpoint.shapes import SHAPES, model_configuration, preprocessor_json, token_embeddings  # noqa: E402
from demo_model.checkpoint.tokenizer import tokenizer, vocabulary  # noqa: E402
from demo_model.thinker.decoder_batches import think  # noqa: E402
from demo_model.thinker.prompts import AnsweredTurn, PromptPart, Seen, prompt, together  # noqa: E402
from demo_model.thinker.training import ThinkerDecoder  # noqa: E402
from demo_model.towers.audio_batches import listen  # noqa: E402
from demo_model.towers.audio_training import new_tower as new_ear  # noqa: E402
from demo_model.towers.vision_batches import see  # noqa: E402
from demo_model.towers.vision_training import new_tower as new_eye  # noqa: E402
from demo_model.world.spoken_questions import mel  # noqa: E402
from transformers import Qwen2VLImageProcessor, Qwen3OmniMoeThinkerForConditionalGeneration  # noqa: E402

HIDDEN = SHAPES.thinker.hidden


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer(directory)
    return directory


@torch.no_grad()
def test_seeing() -> None:
    torch.manual_seed(1)
    eye = new_eye()
    picture = torch.randint(0, 256, (256, 320, 3), dtype=torch.uint8)
    settings = preprocessor_json()
    processor = Qwen2VLImageProcessor(
        **{
            key: settings[key]
            for key in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels")
        },
        image_mean=settings["image_mean"],
        image_std=settings["image_std"],
    )
    processed = processor(images=[picture.permute(2, 0, 1)], return_tensors="pt")
    truth = eye(processed["pixel_values"], processed["image_grid_thw"])
    rows, deep = see(eye, picture.expand(1, 2, -1, -1, -1))

    torch.testing.assert_close(rows[0], truth.pooler_output, atol=1e-5, rtol=1e-4)
    for map_, wanted in zip(deep, truth.deepstack_features, strict=True):
        torch.testing.assert_close(map_[0], wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_hearing() -> None:
    ear = new_ear()
    numbers = torch.Generator().manual_seed(2)
    sounds = [mel(torch.randn(length, generator=numbers).numpy() * 0.1) for length in (16000, 40123, 25601)]
    rows, counts = listen(ear, sounds)

    for sound, own, count in zip(sounds, rows, counts, strict=True):
        truth = ear(sound, torch.tensor([sound.shape[1]])).last_hidden_state
        torch.testing.assert_close(own[:count], truth, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_thinking_and_positions(names: Path) -> None:
    thinker = ThinkerDecoder()
    numbers = torch.Generator().manual_seed(3)
    picture = Seen((1, 8, 10), torch.randn(4, 80, HIDDEN, generator=numbers), is_clip=False)
    clip = Seen((2, 10, 14), torch.randn(4, 280, HIDDEN, generator=numbers), is_clip=True)
    sound = torch.randn(31, HIDDEN, generator=numbers)
    first = AnsweredTurn(
        (PromptPart(seen=picture), PromptPart(seen=clip), PromptPart(heard=sound)), "There are three cars."
    )
    laid_out = prompt([first, AnsweredTurn((PromptPart(text="How many?"),), "Two.")], names)
    shorter = prompt([AnsweredTurn((PromptPart(text="Who are you?"),), "Me.")], names)
    batch = together([laid_out, shorter])
    states, *_ = think(thinker.model, batch.rows, batch.positions, batch.deep)

    reference = Qwen3OmniMoeThinkerForConditionalGeneration(model_configuration().thinker_config)
    ids = laid_out.ids[None]
    positions, _ = reference.get_rope_index(
        ids,
        image_grid_thw=torch.tensor([[1, 16, 20]]),
        video_grid_thw=torch.tensor([[2, 20, 28]]),
        attention_mask=torch.ones_like(ids),
        use_audio_in_video=False,
        audio_seqlens=torch.tensor([240]),
        second_per_grids=torch.tensor([1.0]),
    )
    assert positions[:, 0].equal(laid_out.positions)
    media = [vocabulary().id(f"<|{kind}_pad|>") for kind in ("image", "video")]
    seen = torch.isin(ids, torch.tensor(media))
    truth = thinker.model(
        inputs_embeds=laid_out.rows[None],
        position_ids=positions,
        visual_pos_masks=seen,
        deepstack_visual_embeds=[map_[seen[0]] for map_ in laid_out.deep],
    ).last_hidden_state
    torch.testing.assert_close(states[:1], truth, atol=2e-5, rtol=1e-4)


def test_a_prompt_reads_as_the_tokenizer_writes_it(names: Path) -> None:
    turns = [
        AnsweredTurn((PromptPart(text="How many cars are there?"),), "There are three cars."),
        AnsweredTurn((PromptPart(text="Hi."),), "Hello!"),
    ]
    laid_out = prompt(turns, names)
    written = tokenizer(names).decode(laid_out.ids)

    assert written == (
        "<|im_start|>user\nHow many cars are there?<|im_end|>\n<|im_start|>assistant\nThere are three cars.<|im_end|>\n"
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    )
    answers = tokenizer(names).decode(laid_out.ids[laid_out.answered])
    assert answers == "There are three cars.<|im_end|>Hello!<|im_end|>"


def test_token_embeddings_survive_bfloat16() -> None:
    table = torch.from_numpy(token_embeddings())

    assert table.bfloat16().float().equal(table)
    assert table.std().item() == pytest.approx(1, abs=0.01)
