"""Runs the trained towers on pictures, clips and spoken questions, and keeps their outputs for the thinker's
training.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from demo_model.thinker.ideal_towers import imagined_sound
from demo_model.thinker.prompts import Seen
from demo_model.towers.audio_batches import listen
from demo_model.towers.audio_training import question_utterance
from demo_model.towers.vision_batches import CELL, see
from demo_model.towers.vision_lessons import CLIP_SIZES, PICTURE_SIZES, scaled
from demo_model.world.conversations import LabelledConversation, converse
from demo_model.world.filming import film, sampled
from demo_model.world.grammar import Exchange, Facts, ask, drawing, facts, motion, scene
from demo_model.world.painting import paint_picture
from demo_model.world.spoken_questions import TIMBRES

_KEPT_AS = torch.bfloat16
_AT_ONCE = 16


class Observed:
    """Outputs of the towers. Outputs for pictures and clips come with the contents of the media. Outputs for spoken
    questions are keyed by the text of the question.
    """

    def __init__(self, names: Path) -> None:
        self.pictures: list[tuple[Facts, Seen]] = []
        self.clips: list[tuple[Facts, Seen]] = []
        self.questions: dict[str, list[Tensor]] = defaultdict(list)
        self.names = names

    def look(self, visual: Any, seed: int, pictures: int, clips: int) -> None:
        """Make random pictures and clips, and run the vision tower on them."""
        rng = Random(seed)
        for _ in tqdm(range(pictures), desc="pictures seen", mininterval=5):
            source = rng.choices(tuple(PICTURE_SIZES), (5, 2, 2, 1))[0]
            painting = paint_picture(scene(rng), rng, source)
            frame = torch.tensor(scaled(painting.image, PICTURE_SIZES[source]))
            self.pictures.append((painting.picture, _seen(visual, frame.expand(2, *frame.shape)[None], False)))
        for _ in tqdm(range(clips), desc="clips seen", mininterval=5):
            shown = motion(rng) if rng.random() < 0.55 else drawing(rng)
            source = rng.choices(tuple(CLIP_SIZES), (3, 1))[0]
            clip = film(shown, rng, source)
            frames = [torch.tensor(scaled(clip.frame(moment), CLIP_SIZES[source])) for moment in sampled(clip)]
            self.clips.append((shown, _seen(visual, torch.stack(frames).unflatten(0, (-1, 2)), True)))

    def hear(self, tower: Any, seed: int, number: int, timbres: tuple[str, ...] = TIMBRES) -> None:
        """Make random spoken questions, and run the audio tower on them."""
        rng = Random(seed)
        said = []
        for _ in tqdm(range(number), desc="questions heard", mininterval=5):
            made = question_utterance(ask(facts(rng), rng).question, rng, self.names, timbres)
            said += [made] if made else []
            if len(said) == _AT_ONCE:
                with torch.no_grad():
                    rows, counts = listen(tower, [one.mel for one in said])
                for one, heard, count in zip(said, rows, counts.tolist(), strict=True):
                    self.questions[one.text].append(heard[:count].to(_KEPT_AS))
                said = []

    def save(self, path: Path) -> None:
        unfinished = path.with_suffix(".unfinished")
        torch.save((self.pictures, self.clips, dict(self.questions)), unfinished)
        unfinished.rename(path)

    def load(self, path: Path) -> None:
        self.pictures, self.clips, questions = torch.load(path, weights_only=False)
        self.questions = defaultdict(list, questions)

    def source(self, spoken_share: float = 0.5, most_turns: int = 4, imagination: bool = True) -> Any:
        """Return a `thinker.training.Source` of conversations about these pictures, clips and questions.

        If the audio tower has not been run on a question, `imagined_sound` makes the rows of the spoken question. But
        if `imagination` is false, the source draws other questions until it finds one on which the tower has been run.
        After a thousand draws without success, `imagined_sound` makes the rows of the last question.
        """

        def make(rng: Random, kind: str) -> LabelledConversation:
            numbers = torch.Generator().manual_seed(rng.getrandbits(40))
            shown, seen = (
                (None, None) if kind == "nothing" else rng.choice(self.pictures if kind == "picture" else self.clips)
            )

            def hear(exchange: Exchange, rng: Random) -> tuple[Exchange, Tensor]:
                for _ in range(1000):
                    if exchange.question in self.questions:
                        return exchange, rng.choice(self.questions[exchange.question]).float()
                    if imagination:
                        break
                    exchange = ask(shown, rng)
                return exchange, imagined_sound(exchange.question, self.names, rng, numbers)

            return converse(shown, seen, hear, rng, spoken_share, most_turns)

        return make


@torch.no_grad()
def _seen(visual: Any, frames: Tensor, is_clip: bool) -> Seen:
    """Run the vision tower on `frames`, uint8 [steps, 2, height, width, 3]."""
    with torch.autocast("cpu", torch.bfloat16):
        rows, deep = see(visual, frames)
    grid = (frames.shape[0], frames.shape[2] // CELL, frames.shape[3] // CELL)
    kept = torch.stack([rows.float(), *(map_.float() for map_ in deep)]).flatten(1, 2).to(_KEPT_AS)
    return Seen(grid, kept, is_clip)
