"""Makes prompts for the talker whose media rows are states of the trained thinker."""

from __future__ import annotations

from random import Random

import torch
from tqdm import tqdm

from demo_model.thinker.decoder_batches import think
from demo_model.thinker.prompts import prompt as read
from demo_model.thinker.prompts import together
from demo_model.thinker.training import ThinkerDecoder
from demo_model.towers.tower_outputs import Observed
from demo_model.voice.talker_batches import UserTurns
from demo_model.voice.talker_prompts import PromptMaker
from demo_model.world.conversations import LabelledConversation

_KINDS = (("picture", 300), ("clip", 80), ("nothing", 120))
_AT_ONCE = {"picture": 6, "clip": 2, "nothing": 12}


class Recalled:
    """Makes the user's turns of conversations about the media in `observed`. In these turns, each media row is the
    state that the trained thinker computes for this row.

    As in generation, these states are the inputs of the layer `accept_hidden_layer`.
    """

    def __init__(self, maker: PromptMaker, thinker: ThinkerDecoder, observed: Observed, seed: int, accept: int):
        self._maker = maker
        make = observed.source(most_turns=2)
        rng = Random(seed)
        self._prompts: list[UserTurns] = []
        for kind, number in _KINDS:
            for _ in tqdm(range(number // _AT_ONCE[kind]), desc=f"{kind}: states of the thinker", mininterval=5):
                self._prompts += self._heard(
                    thinker, [make(rng, kind) for _ in range(_AT_ONCE[kind])], observed, accept
                )

    def __call__(self, generator: torch.Generator) -> UserTurns:
        """Returns a random prompt."""
        return self._prompts[int(torch.randint(len(self._prompts), (), generator=generator))]

    def __len__(self) -> int:
        return len(self._prompts)

    @torch.no_grad()
    def _heard(
        self, thinker: ThinkerDecoder, several: list[LabelledConversation], observed: Observed, accept: int
    ) -> list[UserTurns]:
        laid_out = [read(one.turns, observed.names, one.system) for one in several]
        batch = together(laid_out)
        with torch.autocast("cpu", torch.bfloat16):
            *_, between = think(thinker.model, batch.rows, batch.positions, batch.deep)
        found = []
        for number, (one, conversation) in enumerate(zip(laid_out, several, strict=True)):
            media = self._maker.is_media(one.ids)
            states = between[accept - 1][number, : len(one.ids)][media].float()
            found.append(self._maker.said(conversation.turns, states))
        return found
