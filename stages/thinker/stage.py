"""The stage thinker: runs Qwen3-Omni's text model on SGLang, and turns prompt rows into streams of token ids.

One stream goes to the stage `decode`. If the answer is spoken, a second stream goes to the talker. The second stream
has the hidden states of the prompt's media rows, and then the ids of the text. It does not have the last id, which is
never spoken.

If a request asks for several choices, the engine first gets only choice 0. When the prompt of choice 0 has been
computed, the engine gets the other choices. They find the prompt in the prefix cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from transformers import AutoTokenizer

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import OmniError
from omni_pipeline.wire.messages import Advice, Chunk, End, Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import read_config
from stages.grammars.grammar_cache import GrammarCompiler
from stages.grammars.matcher import Matcher
from stages.grammars.vocabulary import Vocabulary
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
from stages.thinker.choices import engine_id, request_and_choice, sampling_of

ARCHITECTURE = "Qwen3OmniThinker"
TARGET = "decode"
TALKER = "talker_ar"


@dataclass(slots=True)
class _WrittenText:
    """The state of one answer, with one or more texts, while it is generated.

    Attributes:
        request: The stage's input for this answer.
        generation: The engine's request for choice 0.
        heard: int64 [k], the media rows that the talker receives, as indices into the rows of the user's turns. None if
            the talker receives no media rows.
        held: Ids that have not been sent to the talker yet, because it is not known whether they are spoken.
        judged: Number of ids for which it is known whether they are spoken. The held ids follow these ids.
        finished: The message that ends the text, if the text has ended while ids were held. Otherwise None.
        open: The choices whose texts have not ended.
    """

    request: ThinkerRequest
    generation: Generation
    heard: torch.Tensor | None
    held: list[int] = field(default_factory=list)
    judged: int = 0
    finished: Finished | None = None
    open: set[int] = field(default_factory=set)

    @property
    def awaited(self) -> bool:
        """Whether ids are held until the stage `decode` reports which of them are spoken."""
        return self.request.spoken is not None and self.request.text.judged


class Thinker:
    """Runs all requests in one continuous batch; see `contract.stage.Stage` for the methods."""

    def __init__(self, context: StageContext) -> None:
        options: ThinkerOptions = context.options
        self.name = context.name
        self._default_max_tokens = options.default_max_tokens
        config = read_config(context.model_path)
        end = end_of_turn_id(config)
        self._answers: dict[str, _WrittenText] = {}
        self._compiling: dict[str, ThinkerRequest] = {}  # requests whose grammars are being compiled
        self._ranks = context.ranks
        self._outbox: list[Work] = []
        self._engine = Engine(
            model_path=context.model_path,
            architecture=ARCHITECTURE,
            device=context.device,
            dtype=options.dtype,
            eos_ids=[end],
            max_total_tokens=options.max_total_tokens,
            max_running_requests=options.max_running_requests,
            ranks=context.ranks,
            static_bytes=context.static,
            options=options.engine,
            tap_layer=config["talker_config"]["accept_hidden_layer"] if TALKER in context.stages else None,
        )
        self._grammars = GrammarCompiler(
            Vocabulary.of(AutoTokenizer.from_pretrained(context.model_path), self._engine.vocabulary, end)
        )

    @property
    def has_work(self) -> bool:
        return bool(self._outbox) or self._engine.has_work or self._grammars.has_news

    @property
    def waits_on(self) -> int:
        return self._grammars.waits_on

    @property
    def patient(self) -> bool:
        """Whether the next step may wait while the talker works for a listener. This delay cannot block the talker,
        because the talker is not urgent while its utterances lack text.
        """
        return not self._outbox

    def receive(self, message: Work) -> None:
        body = message.body
        if isinstance(body, ThinkerRequest):
            self._take(message.request_id, body)
        elif isinstance(body, StopGenerating):
            self._stop(message.request_id, body)
        elif isinstance(body, Certain):
            self._release(message.request_id, body, last=isinstance(message, End))
        elif body is None:  # decode's reports may end after the answer is complete
            return
        else:
            raise TypeError(f"thinker does not accept messages of the type {type(body).__name__}")

    def step(self) -> Iterable[Work | Failed]:
        outbox, self._outbox = self._outbox, []
        yield from outbox
        yield from self._begin_compiled()
        fresh: dict[str, Tokens] = {}
        for event in self._engine.step() if self._engine.has_work else ():
            yield from self._tell(event, fresh)
        for name, tokens in fresh.items():
            request_id, _ = request_and_choice(name)
            yield Chunk(request_id, self.name, TARGET, tokens)
            yield from self._speak(request_id, self._answers[request_id], tokens.ids)

    def abort(self, request_id: str) -> None:
        if self._compiling.pop(request_id, None) is not None:
            self._grammars.cancel(request_id)
        answer = self._answers.pop(request_id, None)
        for choice in answer.open if answer is not None else ():
            self._engine.abort(engine_id(request_id, choice))
        self._outbox = [message for message in self._outbox if message.request_id != request_id]

    def advise(self, advice: Advice[TextPace]) -> None:
        """Pause the answers whose text is far ahead of their speech."""
        self._engine.hold(advice.body.hold)
        self._engine.resume(advice.body.resume)

    def live(self) -> Collection[str]:
        return [*self._answers, *self._compiling]

    @property
    def batch(self) -> Collection[str]:
        return [request_and_choice(name)[0] for name in self._engine.batch]

    def stats(self) -> dict[str, float]:
        return self._engine.stats()

    def close(self) -> None:
        self._grammars.close()
        self._engine.close()

    def _take(self, request_id: str, request: ThinkerRequest) -> None:
        """Begin a request, or order the compilation of its grammar first."""
        grammar = request.thinker.grammar
        if grammar is None or self._ranks.rank:  # the other ranks use the picks of rank 0
            self._begin(request_id, request, None)
        elif self._ranks.size > 1:  # all ranks must begin the request at the same time
            self._begin(request_id, request, self._grammars.compile(grammar))
        elif (matcher := self._grammars.kept(grammar)) is not None:
            self._begin(request_id, request, matcher)
        else:
            self._compiling[request_id] = request
            self._grammars.order(request_id, grammar)

    def _begin_compiled(self) -> Iterable[Failed]:
        """Begin the requests whose grammars have been compiled."""
        for request_id, result in self._grammars.collect() if self._grammars.has_news else ():
            request = self._compiling.pop(request_id)
            try:
                if isinstance(result, OmniError):
                    raise result
                self._begin(request_id, request, result)
            except OmniError as error:
                yield Failed(request_id, self.name, error.info)

    def _begin(self, request_id: str, request: ThinkerRequest, matcher: Matcher | None) -> None:
        sampling = request.thinker
        if sampling.max_tokens is None:
            sampling = msgspec.structs.replace(sampling, max_tokens=self._default_max_tokens)
        tapped, heard = _heard_rows(request)
        generation = Generation(
            request_id=engine_id(request_id, 0),
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
            matcher=matcher,
        )
        self._engine.add(generation)
        self._answers[request_id] = _WrittenText(request, generation, heard, open={*range(request.text.choices)})

    def _begin_others(self, request_id: str, answer: _WrittenText) -> None:
        """Begin all choices except choice 0. Their prompt is now in the prefix cache."""
        first = answer.generation
        for choice in range(1, answer.request.text.choices):
            self._engine.add(
                msgspec.structs.replace(
                    first,
                    request_id=engine_id(request_id, choice),
                    sampling=sampling_of(first.sampling, choice),
                    matcher=None if first.matcher is None else first.matcher.again(),
                )
            )

    def _stop(self, request_id: str, stop: StopGenerating) -> None:
        """End a text at the token that the stage `decode` reports, unless the text has already ended."""
        answer = self._answers.get(request_id)
        if answer is None:
            return
        finished = Finished("stop", None, stop.choice)
        if stop.choice in answer.open:
            self._engine.abort(engine_id(request_id, stop.choice))
            self._outbox.append(self._ending(request_id, answer, finished))
        if answer.awaited:
            answer.finished = finished
            self._release(request_id, stop, last=True)

    def _ending(self, request_id: str, answer: _WrittenText, finished: Finished) -> Work:
        """The message that ends a choice. After the last choice, the record of the answer is deleted. If the answer is
        `awaited`, `_release` deletes the record later.
        """
        answer.open.remove(finished.choice)
        if answer.open:
            return Chunk(request_id, self.name, TARGET, finished)
        if not answer.awaited:
            del self._answers[request_id]
        return End(request_id, self.name, TARGET, finished)

    def _release(self, request_id: str, report: Certain | StopGenerating, *, last: bool) -> None:
        """Read a report from the stage `decode`, which says which held ids are spoken. Send these ids to the talker. If
        `last` is set, also send the end of the text.
        """
        answer = self._answers.get(request_id)
        if answer is None:
            return
        judged = answer.held[: report.tokens - answer.judged]
        silent = set(report.silent)
        ids = [id_ for index, id_ in enumerate(judged, answer.judged) if index not in silent]
        del answer.held[: len(judged)]
        answer.judged += len(judged)
        if ids:
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
        """The messages for one event of the engine. Tokens are first collected in `fresh`, keyed by the engine's ids,
        so that each choice gets one chunk per step.
        """
        request_id, choice = request_and_choice(event.request_id)
        answer = self._answers.get(request_id)
        if answer is None:  # another choice of the request has failed in this step
            return
        if isinstance(event, Token):
            tokens = fresh.setdefault(event.request_id, Tokens([], choice=choice))
            tokens.ids.append(event.id)
            if event.logprob is not None:
                tokens.logprobs.append(event.logprob)
                tokens.alternatives.append(event.alternatives)
        elif isinstance(event, Prefilled):
            if choice:
                return
            self._begin_others(request_id, answer)
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
                prompt = _talker_prompt(request, request.spoken, answer.heard, event)
                yield Start(request_id, self.name, TALKER, prompt)
        elif isinstance(event, Done):
            answer.finished = Finished(event.reason, event.matched, choice)
            tokens = fresh.pop(event.request_id, Tokens([], choice=choice))
            yield from self._speak(request_id, answer, tokens.ids[:-1])
            if event.matched is not None:
                for column in (tokens.ids, tokens.logprobs, tokens.alternatives):
                    del column[-1:]
            if tokens.ids:
                yield Chunk(request_id, self.name, TARGET, tokens)
            yield self._ending(request_id, answer, answer.finished)
            if answer.request.spoken is not None and not answer.awaited:
                yield End(request_id, self.name, TALKER, answer.finished)
        elif isinstance(event, Broken):
            for other in answer.open:
                fresh.pop(engine_id(request_id, other), None)
            answer.open.discard(choice)  # the engine no longer has this choice
            self.abort(request_id)
            yield Failed(request_id, self.name, event.error)


def end_of_turn_id(config: dict[str, Any]) -> int:
    """Id of `<|im_end|>`, the only token that ends the thinker's text (the reference ignores
    generation_config.json).
    """
    return int(config["im_end_token_id"])


def _heard_rows(request: ThinkerRequest) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The media rows of the user's turns, as two tensors int64 [k]: their indices in the prompt, and their indices
    among the user rows.
    """
    if request.spoken is None or request.media_rows is None:
        return None, None
    user = request.spoken.user_rows.torch()
    among = torch.isin(user, request.media_rows.torch()).nonzero()[:, 0]
    return user[among], among


def _talker_prompt(
    request: ThinkerRequest, spoken: SpokenPrompt, heard: torch.Tensor | None, prefilled: Prefilled
) -> TalkerPrompt:
    ids = request.ids.torch()
    return TalkerPrompt(
        ids=Tensor.of(ids[spoken.user_rows.torch()]),
        media_rows=None if heard is None else Tensor.of(heard),
        media_hidden=None if prefilled.tapped is None else Tensor.of(prefilled.tapped),
        assistant_ids=ids[-3:].tolist(),
        positions=spoken.positions,
        position_delta=spoken.position_delta,
        speech=spoken.speech,
        media_ids=None if prefilled.tapped_ids is None else Tensor.of(prefilled.tapped_ids),
    )


def _optional(tensor: Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.torch()
