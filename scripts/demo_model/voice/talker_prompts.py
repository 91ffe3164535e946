"""Makes the user's turns for the talker's prompts: real questions with random media rows.

An answer must sound the same after any question and any media. So the talker is first trained with random media rows of
many magnitudes, from tiny values to values far larger than the states of a thinker. At the end, it is trained with the
states of a trained thinker: see `thinker_states`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor
from transformers import Qwen2Tokenizer
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

from demo_model.thinker.prompts import AnsweredTurn
from demo_model.voice.talker_batches import Talker, UserTurns
from demo_model.world import grammar

Make = Callable[[torch.Generator], UserTurns]

_PICTURE_GRIDS = ((1, 16, 20), (1, 18, 18), (1, 14, 24), (1, 20, 16))
_CLIP_GRIDS = ((4, 20, 28), (2, 20, 28), (4, 24, 24))
_SECONDS_PER_STEP = 1.0  # seconds between two steps of a clip; a step is two frames, sampled at two frames per second
_SOFTEST, _LOUDEST = 0.3, 6.0


class PromptMaker:
    """Makes prompts that fit the talker's configuration. Each prompt is made with a given generator of random
    numbers.
    """

    def __init__(self, talker: Talker, config: Qwen3OmniMoeConfig, tokenizer: Qwen2Tokenizer):
        self._talker = talker
        self._tokenizer = tokenizer
        self._hidden = config.thinker_config.text_config.hidden_size
        self._merge = config.talker_config.spatial_merge_size**2
        self._n_window = config.thinker_config.audio_config.n_window
        self._media_ids = torch.tensor(
            [tokenizer.convert_tokens_to_ids(token) for token in ("<|audio_pad|>", "<|image_pad|>", "<|video_pad|>")]
        )
        # The talker needs `audio_config` for audio beside a picture, but the talker's configuration does not declare
        # that field.
        talker.config.audio_config = config.thinker_config.audio_config

    def kind(self, generator: torch.Generator) -> Make:
        """Choose the method that makes the prompts of a step. Prompts of one method have about the same length. Typed
        prompts are chosen most often, because they take the least time.
        """
        kinds = (self.typed, self.picture, self.spoken, self.picture_spoken, self.clip)
        weights = torch.tensor([0.65, 0.15, 0.1, 0.08, 0.02])
        return kinds[int(torch.multinomial(weights, 1, generator=generator))]

    def none(self, generator: torch.Generator) -> UserTurns:
        """An empty prompt, for a talker that must first learn to speak the text of its answer. In the server, a prompt
        is never empty.
        """
        return self._prompt("", generator)

    def typed(self, generator: torch.Generator) -> UserTurns:
        """A typed question, or two typed questions in two turns."""
        turns = 1 if torch.rand((), generator=generator) < 0.8 else 2
        return self._prompt("".join(_turn(self._question(generator)) for _ in range(turns)), generator)

    def picture(self, generator: torch.Generator) -> UserTurns:
        grid = _chosen(_PICTURE_GRIDS, generator)
        parts = [self._visual("image", grid), self._question(generator)]
        if torch.rand((), generator=generator) < 0.3:
            parts.reverse()
        return self._prompt(_turn("".join(parts)), generator, images=[grid])

    def spoken(self, generator: torch.Generator) -> UserTurns:
        length = self._length(generator)
        return self._prompt(_turn(self._spoken(length)), generator, audios=[length])

    def picture_spoken(self, generator: torch.Generator) -> UserTurns:
        grid, length = _chosen(_PICTURE_GRIDS, generator), self._length(generator)
        text = _turn(self._visual("image", grid) + self._spoken(length))
        return self._prompt(text, generator, images=[grid], audios=[length])

    def clip(self, generator: torch.Generator) -> UserTurns:
        grid = _chosen(_CLIP_GRIDS, generator)
        return self._prompt(_turn(self._visual("video", grid) + self._question(generator)), generator, videos=[grid])

    def said(self, turns: Sequence[AnsweredTurn], states: Tensor) -> UserTurns:
        """The user's messages in `turns`. `states` [rows, hidden] are the thinker's states for the media in these
        messages.
        """
        text = ""
        images: list[tuple[int, int, int]] = []
        videos: list[tuple[int, int, int]] = []
        audios: list[int] = []
        for turn in turns:
            content = ""
            for part in turn.parts:
                if part.seen is not None:
                    steps, rows, columns = part.seen.grid
                    side = math.isqrt(self._merge)
                    grid = steps, rows * side, columns * side
                    (videos if part.seen.is_clip else images).append(grid)
                    content += self._visual("video" if part.seen.is_clip else "image", grid)
                elif part.heard is not None:
                    audios.append(self._frames(len(part.heard)))
                    content += _audio(len(part.heard))
                else:
                    content += part.text or ""
            text += _turn(content)
        ids, positions = self._laid_out(text, images, videos, audios)
        return UserTurns(ids, states, positions)

    def is_media(self, ids: Tensor) -> Tensor:
        """A mask of the media placeholders among `ids`."""
        return torch.isin(ids, self._media_ids)

    def _frames(self, rows: int) -> int:
        """The smallest number of mel frames from which the audio tower makes `rows` rows."""
        counts = _get_feat_extract_output_lengths(torch.arange(8 * rows + 100), self._n_window)
        return int((counts == rows).nonzero()[0])

    def _prompt(
        self,
        text: str,
        generator: torch.Generator,
        images: list[tuple[int, int, int]] | None = None,
        videos: list[tuple[int, int, int]] | None = None,
        audios: list[int] | None = None,
    ) -> UserTurns:
        ids, positions = self._laid_out(text, images, videos, audios)
        return UserTurns(ids, _noise(int(self.is_media(ids).sum()), self._hidden, generator), positions)

    def _laid_out(
        self,
        text: str,
        images: list[tuple[int, int, int]] | None,
        videos: list[tuple[int, int, int]] | None,
        audios: list[int] | None,
    ) -> tuple[Tensor, Tensor]:
        """The token ids [rows] and rotary positions [3, rows] of a prompt."""
        ids = torch.tensor(self._tokenizer(text).input_ids, dtype=torch.long)
        positions = torch.arange(len(ids)).float().expand(3, -1)
        if images or videos:
            positions, _ = self._talker.get_rope_index(
                ids[None],
                torch.tensor(images) if images else None,
                torch.tensor(videos) if videos else None,
                torch.ones(1, len(ids), dtype=torch.long),
                False,
                torch.tensor(audios) if audios else None,
                torch.full((len(videos),), _SECONDS_PER_STEP) if videos else None,
            )
            positions = positions[:, 0]
        return ids, positions

    def _question(self, generator: torch.Generator) -> str:
        rng = Random(int(torch.randint(2**31, (), generator=generator)))
        return grammar.ask(grammar.facts(rng), rng).question

    def _visual(self, kind: str, grid: tuple[int, int, int]) -> str:
        return f"<|vision_start|>{f'<|{kind}_pad|>' * (math.prod(grid) // self._merge)}<|vision_end|>"

    def _spoken(self, length: int) -> str:
        return _audio(int(_get_feat_extract_output_lengths(torch.tensor(length), self._n_window)))

    def _length(self, generator: torch.Generator) -> int:
        """A random length of a spoken question, in mel frames of 10 ms."""
        return int(torch.randint(80, 360, (), generator=generator))


def _turn(content: str) -> str:
    return f"<|im_start|>user\n{content}<|im_end|>\n"


def _audio(rows: int) -> str:
    return f"<|audio_start|>{'<|audio_pad|>' * rows}<|audio_end|>"


def _noise(rows: int, size: int, generator: torch.Generator) -> Tensor:
    """Random rows. Each row is the sum of two random parts. The first part is the same for all rows. The second part is
    different for each row.
    """
    shared = torch.randn(1, size, generator=generator)
    own = torch.randn(rows, size, generator=generator)
    share = torch.rand((), generator=generator)
    loudness = _SOFTEST * (_LOUDEST / _SOFTEST) ** torch.rand((), generator=generator)
    return loudness * (share.sqrt() * shared + (1 - share).sqrt() * own)


def _chosen(choices: tuple[tuple[int, int, int], ...], generator: torch.Generator) -> tuple[int, int, int]:
    return choices[int(torch.randint(len(choices), (), generator=generator))]
