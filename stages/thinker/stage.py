"""The stage thinker: runs Qwen3-Omni's text model on SGLang, and turns prompt rows into streams of token ids.

One stream goes to decode. If the answer is spoken, a second stream goes to the talker: first the tapped states of the
prompt's media, then the same ids except the last id, which is never spoken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import unavailable
from omni_pipeline.wire.messages import Advice, Chunk, End, Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import read_config
from stages.messages import (
    Certain,
    DecodeStart,
    Finished,
    SpokenPrompt,
    StopGenerating,
    TalkerPrompt,
    TextPace,
    ThinkerRequest,
    Tokens,
)
from stages.options import ThinkerOptions
from stages.sglang_engine.engine import Broken, Done, Engine, Event, Generation, Prefilled, Token
from stages.sglang_engine.prompt_rows import PromptRows

ARCHITECTURE = "Qwen3OmniThinker"
TARGET = "decode"
TALKER = "talker_ar"


@dataclass(slots=True)
class _WrittenText:
    """The state of one answer's text while it is generated.

    Attributes:
        request: The stage's input for this answer.
        heard: The media rows that the talker gets, as indices into the rows of the user's turns: int64 [k], or None.
        held: Ids that the talker does not get yet, because a stop string may remove them.
        told: Number of ids that have been sent to the talker.
        finished: The way in which the text ended, if it has ended while ids are held.
    """

    request: ThinkerRequest
    heard: torch.Tensor | None
    held: list[int] = field(default_factory=list)
    told: int = 0
    finished: Finished | None = None

    @property
    def awaited(self) -> bool:
        """Whether ids are held until decode has looked for stop strings in them."""
        return self.request.spoken is not None and bool(self.request.text.stop)


class Thinker:
    """Runs all requests in one continuous batch; see `contract.stage.Stage` for the methods."""

    def __init__(self, context: StageContext) -> None:
        options: ThinkerOptions = context.options
        self.name = context.name
        self._default_max_tokens = options.default_max_tokens
        config = read_config(context.model_path)
        self._answers: dict[str, _WrittenText] = {}
        self._outbox: list[Work] = []
        self._engine = Engine(
            model_path=context.model_path,
            architecture=ARCHITECTURE,
            device=context.device,
            dtype=options.dtype,
            eos_ids=[end_of_turn_id(config)],
            max_total_tokens=options.max_total_tokens,
            max_running_requests=options.max_running_requests,
            ranks=context.ranks,
            static_bytes=context.static,
            options=options.engine,
            tap_layer=config["talker_config"]["accept_hidden_layer"] if TALKER in context.stages else None,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._outbox) or self._engine.has_work

    def receive(self, message: Work) -> None:
        body = message.body
        if isinstance(body, ThinkerRequest):
            self._begin(message.request_id, body)
        elif isinstance(body, StopGenerating):
            self._stop(message.request_id, body.tokens)
        elif isinstance(body, Certain):
            self._release(message.request_id, body.tokens, last=isinstance(message, End))
        else:
            raise TypeError(f"thinker cannot take a {type(body).__name__}")

    def step(self) -> Iterable[Work | Failed]:
        outbox, self._outbox = self._outbox, []
        yield from outbox
        fresh: dict[str, Tokens] = {}
        for event in self._engine.step() if self._engine.has_work else ():
            yield from self._tell(event, fresh)
        for request_id, tokens in fresh.items():
            yield Chunk(request_id, self.name, TARGET, tokens)
            yield from self._speak(request_id, self._answers[request_id], tokens.ids)

    def abort(self, request_id: str) -> None:
        self._answers.pop(request_id, None)
        self._engine.abort(request_id)
        self._outbox = [message for message in self._outbox if message.request_id != request_id]

    def advise(self, advice: Advice[TextPace]) -> None:
        """Leave out the answers whose speech is far behind their text."""
        self._engine.hold(advice.body.hold)
        self._engine.resume(advice.body.resume)

    def live(self) -> Collection[str]:
        return self._answers.keys()

    @property
    def batch(self) -> Collection[str]:
        return self._engine.batch

    def stats(self) -> dict[str, float]:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()

    def _begin(self, request_id: str, request: ThinkerRequest) -> None:
        sampling = request.thinker
        if sampling.max_tokens is None:
            sampling = msgspec.structs.replace(sampling, max_tokens=self._default_max_tokens)
        tapped, heard = _heard_rows(request)
        self._engine.add(
            Generation(
                request_id=request_id,
                cache_ids=request.cache_ids.torch(),
                rows=PromptRows(
                    ids=request.ids.torch(),
                    positions=_optional(request.positions),
                    delta=request.position_delta,
                    media_rows=_optional(request.media_rows),
                    media_embeds=_optional(request.media_embeds),
                    visual_rows=_optional(request.visual_rows),
                    deepstack=_optional(request.deepstack),
                ),
                sampling=sampling,
                logprobs=request.text.top_logprobs if request.text.logprobs else None,
                tapped_rows=tapped,
            )
        )
        self._answers[request_id] = _WrittenText(request, heard)

    def _stop(self, request_id: str, tokens: int) -> None:
        """End a text before the stop string that decode has found, unless the text has already ended."""
        answer = self._answers.get(request_id)
        if answer is None:
            return
        self._engine.abort(request_id)
        finished = Finished("stop", None)
        if answer.finished is None:
            self._outbox.append(End(request_id, self.name, TARGET, finished))
        answer.finished = finished
        self._release(request_id, tokens, last=True)

    def _release(self, request_id: str, tokens: int, *, last: bool) -> None:
        """Send the talker the held ids among the first `tokens` ids, which are now certain. If `last` is set, also send
        the end of the text.
        """
        answer = self._answers.get(request_id)
        if answer is None:
            return
        ids = answer.held[: tokens - answer.told]
        if ids:
            del answer.held[: len(ids)]
            answer.told += len(ids)
            self._outbox.append(Chunk(request_id, self.name, TALKER, Tokens(ids)))
        if last:
            del self._answers[request_id]
            if answer.request.spoken is not None:
                self._outbox.append(End(request_id, self.name, TALKER, answer.finished))

    def _speak(self, request_id: str, answer: _WrittenText, ids: list[int]) -> Iterable[Work]:
        """Send new ids of the text to the talker, or hold them."""
        if answer.awaited:
            answer.held += ids
        elif ids and answer.request.spoken is not None:
            yield Chunk(request_id, self.name, TALKER, Tokens(list(ids)))

    def _tell(self, event: Event, fresh: dict[str, Tokens]) -> Iterable[Work | Failed]:
        """The messages for one event of the engine. Tokens are first collected in `fresh`, so that each request gets
        one chunk per step.
        """
        request_id = event.request_id
        if isinstance(event, Token):
            tokens = fresh.setdefault(request_id, Tokens([]))
            tokens.ids.append(event.id)
            if event.logprob is not None:
                tokens.logprobs.append(event.logprob)
                tokens.alternatives.append(event.alternatives)
        elif isinstance(event, Prefilled):
            answer = self._answers[request_id]
            request = answer.request
            started = DecodeStart(
                prompt_tokens=request.ids.shape[0],
                cached_tokens=event.cached_tokens,
                media_tokens=request.media_tokens,
                text=request.text,
                awaited=answer.awaited,
            )
            yield Start(request_id, self.name, TARGET, started)
            if request.spoken is not None:
                prompt = _talker_prompt(request, request.spoken, answer.heard, event.tapped)
                yield Start(request_id, self.name, TALKER, prompt)
        elif isinstance(event, Done):
            answer = self._answers[request_id]
            answer.finished = Finished(event.reason, event.matched)
            tokens = fresh.pop(request_id, Tokens([]))
            yield from self._speak(request_id, answer, tokens.ids[:-1])
            if event.matched is not None:
                for column in (tokens.ids, tokens.logprobs, tokens.alternatives):
                    del column[-1:]
            if tokens.ids:
                yield Chunk(request_id, self.name, TARGET, tokens)
            yield End(request_id, self.name, TARGET, answer.finished)
            if not answer.awaited:
                del self._answers[request_id]
                if answer.request.spoken is not None:
                    yield End(request_id, self.name, TALKER, answer.finished)
        elif isinstance(event, Broken):
            fresh.pop(request_id, None)
            del self._answers[request_id]
            error = unavailable(event.message, code="engine", retry_after=None)
            yield Failed(request_id, self.name, error.info)


def end_of_turn_id(config: dict[str, Any]) -> int:
    """Id of `<|im_end|>`, the only token that ends the thinker's text (the reference ignores
    generation_config.json).
    """
    return int(config["im_end_token_id"])


def _heard_rows(request: ThinkerRequest) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The media rows of the user's turns, as two int64 [k]: their indices in the prompt, and their indices in the user
    rows.
    """
    if request.spoken is None or request.media_rows is None:
        return None, None
    user = request.spoken.user_rows.torch()
    among = torch.isin(user, request.media_rows.torch()).nonzero()[:, 0]
    return user[among], among


def _talker_prompt(
    request: ThinkerRequest, spoken: SpokenPrompt, heard: torch.Tensor | None, tapped: torch.Tensor | None
) -> TalkerPrompt:
    ids = request.ids.torch()
    return TalkerPrompt(
        ids=Tensor.of(ids[spoken.user_rows.torch()]),
        media_rows=None if heard is None else Tensor.of(heard),
        media_hidden=None if tapped is None else Tensor.of(tapped),
        assistant_ids=ids[-3:].tolist(),
        positions=spoken.positions,
        position_delta=spoken.position_delta,
        speech=spoken.speech,
    )


def _optional(tensor: Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.torch()
