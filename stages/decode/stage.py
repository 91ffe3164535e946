"""The stage decode: turns token ids into text and calls as they arrive, finds stop strings, and reports
log-probabilities and usage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from transformers import AutoTokenizer

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Chunk, End, Failed, Work
from stages.decode.answer import DecodedAnswer
from stages.decode.detokenize import TokenTable
from stages.messages import (
    Certain,
    DecodeStart,
    Finished,
    FinishReason,
    IdLogprob,
    StopGenerating,
    TokenLogprob,
    Tokens,
)

THINKER = "thinker"


class _Choices:
    """The choices of one request. A choice that has ended is removed.

    Attributes:
        answers: The choices by index.
        reported: Whether the stream of reports to the thinker has begun but not ended.
    """

    __slots__ = ("answers", "reported")

    def __init__(self, start: DecodeStart, table: TokenTable) -> None:
        self.answers = {choice: DecodedAnswer(start, table, choice) for choice in range(start.text.choices)}
        self.reported = False


class Decode:
    """Decodes all requests that have new tokens; see `contract.stage.Stage` for the methods."""

    def __init__(self, context: StageContext) -> None:
        self.name = context.name
        self._table = TokenTable.of(AutoTokenizer.from_pretrained(context.model_path))
        self._open: dict[str, _Choices] = {}
        self._outbox: list[Work] = []
        self.batch: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self._outbox)

    def receive(self, message: Work) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, DecodeStart):
            self._open[request_id] = _Choices(body, self._table)
            return
        if not isinstance(body, Tokens | Finished):
            raise TypeError(f"decode does not accept messages of the type {type(body).__name__}")
        choices = self._open.get(request_id)
        answer = None if choices is None else choices.answers.get(body.choice)
        # This stage has already ended the text. The thinker sent these tokens before it was informed of the end.
        if answer is None:
            return
        if isinstance(body, Tokens):
            self._extend(request_id, answer, body)
            return
        # The id that ended the text is not part of the text, but the id was generated and is counted.
        if body.matched is not None:
            answer.count(body.matched)
        answer.finish()
        if answer.start.awaited:
            self._report(request_id, answer.stop() if answer.ended else answer.certain(), last=True)
        self._end(request_id, answer, "stop" if answer.ended else body.reason)

    def step(self) -> Iterable[Work | Failed]:
        outbox, self._outbox = self._outbox, []
        self.batch = {message.request_id for message in outbox}
        return outbox

    def abort(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        self._outbox = [message for message in self._outbox if message.request_id != request_id]

    def live(self) -> Collection[str]:
        return self._open.keys()

    def stats(self) -> dict[str, float]:
        return {"queued_requests": len({message.request_id for message in self._outbox})}

    def close(self) -> None:
        pass

    def _extend(self, request_id: str, answer: DecodedAnswer, tokens: Tokens) -> None:
        for index, token in enumerate(tokens.ids):
            answer.push(token, self._logprob(tokens, index) if tokens.logprobs else None)
            if answer.ended:
                answer.finish()
                self._report(request_id, answer.stop(), last=len(self._open[request_id].answers) == 1)
                self._end(request_id, answer, "stop")
                return
        if answer.start.awaited:
            self._report(request_id, answer.certain())
        if answer.start.text.stream or not answer.shown:
            self._show(request_id, answer)

    def _report(self, request_id: str, body: StopGenerating | Certain | None, *, last: bool = False) -> None:
        """Send the thinker a report. The last report ends the stream of reports."""
        self._open[request_id].reported = not last
        message = End if last else Chunk
        self._outbox.append(message(request_id, self.name, THINKER, body))

    def _show(self, request_id: str, answer: DecodedAnswer) -> None:
        delta = answer.take()
        if delta is not None:
            self._outbox.append(Chunk(request_id, self.name, COLLECTOR, delta))

    def _end(self, request_id: str, answer: DecodedAnswer, reason: FinishReason) -> None:
        self._show(request_id, answer)
        done = answer.done(reason)
        choices = self._open[request_id]
        del choices.answers[answer.choice]
        if choices.answers:
            self._outbox.append(Chunk(request_id, self.name, COLLECTOR, done))
            return
        if choices.reported:
            self._report(request_id, None, last=True)
        del self._open[request_id]
        self._outbox.append(End(request_id, self.name, COLLECTOR, done))

    def _logprob(self, tokens: Tokens, index: int) -> TokenLogprob:
        return TokenLogprob(
            chosen=self._table.shown(IdLogprob(tokens.ids[index], tokens.logprobs[index])),
            top=[self._table.shown(alternative) for alternative in tokens.alternatives[index]],
        )
