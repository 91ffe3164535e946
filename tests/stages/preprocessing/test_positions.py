"""For random conversations, the M-RoPE positions and the order of the rows equal the reference's results."""

import random
from typing import Any

import numpy
import pytest
import torch

from omni_pipeline.errors import OmniError
from stages.checkpoint.audio_lengths import audio_rows
from stages.preprocessing.layout import MediaTokens, MediumRows, PromptLayout, lay_out
from stages.preprocessing.positions import mrope_positions

FPS = (0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 7.3, 24.0, 29.97)


@pytest.fixture(scope="module")
def tokens(processor: Any) -> MediaTokens:
    names = ("image_token", "video_token", "audio_token", "audio_bos_token", "audio_eos_token")
    return MediaTokens(*(processor.tokenizer.convert_tokens_to_ids(getattr(processor, name)) for name in names))


class RandomPrompt:
    """A tokenised conversation of random text and media, as arguments of our functions and of the reference's."""

    def __init__(self, seed: int, tokens: MediaTokens, vision_borders: tuple[int, int]) -> None:
        draw = random.Random(seed)
        self.listen = draw.random() < 0.5
        self.media: list[MediumRows] = []
        self.mel_frames: list[int] = []
        self.grids: dict[str, list[list[int]]] = {"image": [], "video": []}
        self.seconds_per_step: list[float] = []
        fps = draw.choice(FPS)
        self.skeleton = self._text(draw)
        for _ in range(draw.randint(1, 5)):
            kind = draw.choice(["image", "video", "audio"])
            grid, audio, step = None, 0, 0.0
            if kind == "audio" or (kind == "video" and self.listen):
                self.mel_frames.append(draw.randint(2, 1200))
                audio = audio_rows(self.mel_frames[-1])
            if kind != "audio":
                grid = (draw.randint(1, 9) if kind == "video" else 1, draw.randint(1, 6), draw.randint(1, 6))
                self.grids[kind].append([grid[0], 2 * grid[1], 2 * grid[2]])
            if kind == "video":
                step = 2 / fps
                self.seconds_per_step.append(step)
            self.media.append(MediumRows(kind, grid, audio, step))
            opening, closing = (tokens.audio_start, tokens.audio_end) if kind == "audio" else vision_borders
            self.skeleton += [opening, getattr(tokens, kind), closing, *self._text(draw)]

    @staticmethod
    def _text(draw: random.Random) -> list[int]:
        return [draw.randint(10, 200) for _ in range(draw.choice([0, 0, 1, 2, 7, 300]))]

    def reference(self, layout: PromptLayout, thinker: Any) -> tuple[torch.Tensor, float]:
        """The reference's positions of the prompt, and the difference between the next position and the next index."""
        ids = torch.from_numpy(layout.ids)[None]
        image, video = (torch.tensor(self.grids[kind]) if self.grids[kind] else None for kind in ("image", "video"))
        positions, _ = thinker.get_rope_index(
            ids, image, video, torch.ones_like(ids), self.listen,
            torch.tensor(self.mel_frames), torch.tensor(self.seconds_per_step),
        )  # fmt: skip
        return positions[:, 0], float(positions[0, 0, -1] + 1 - ids.shape[1])


@pytest.mark.parametrize("seed", range(150))
def test_positions_equal_the_reference(seed: int, tokens: MediaTokens, processor: Any, thinker: Any) -> None:
    borders = [processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|vision_start|>", "<|vision_end|>")]
    prompt = RandomPrompt(seed, tokens, tuple(borders))
    layout = lay_out(prompt.skeleton, prompt.media, tokens, 13.0)
    expected, expected_delta = prompt.reference(layout, thinker)
    positions, delta = mrope_positions(layout.gaps, prompt.media, 13)
    if positions is None:
        positions = numpy.broadcast_to(numpy.arange(len(layout.ids), dtype=numpy.float32), (3, len(layout.ids)))
    assert numpy.array_equal(positions, expected.numpy())
    assert delta == expected_delta


def test_text_and_sound_need_no_positions() -> None:
    assert mrope_positions([5, 3], [MediumRows("audio", audio=40)], 13) == (None, 0.0)


@pytest.mark.parametrize(
    ("frames", "rows"), [(1, 1), (2, 1), (8, 1), (9, 2), (99, 13), (100, 13), (101, 14), (150, 20), (3000, 390)]
)
def test_rows_of_a_sound_follow_the_reference(frames: int, rows: int) -> None:
    assert audio_rows(frames) == rows


@pytest.mark.parametrize("step", [float("inf"), 1e38, float("nan")])
def test_positions_that_are_no_numbers_go_no_further(step: float) -> None:
    """Results for positions that are not finite would stay in the prefix cache, and make every prompt with the same
    beginning wrong.
    """
    with numpy.errstate(all="ignore"), pytest.raises(OmniError, match="too large for float32"):
        mrope_positions([5, 3], [MediumRows("video", (4, 2, 2), seconds_per_step=step)], 25.0)
