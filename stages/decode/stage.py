"""The stage decode: turns token ids into text as they arrive, finds stop strings, and reports log-probabilities and
usage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from transformers import AutoTokenizer

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Chunk, End, Failed, Work
from stages.decode.detokenize import TokenTable, Transcript
from stages.messages import (
    Certain,
    DecodeStart,
    Finished,
    FinishReason,
    IdLogprob,
    StopGenerating,
    TextDelta,
    TextDone,
    TokenLogprob,
    Tokens,
    TokenUsage,
)

THINKER = "thinker"


class _DecodedText:
    """The text of one request so far."""

    __slots__ = ("completion_tokens", "ids", "shown", "start", "transcript")

    def __init__(self, start: DecodeStart, table: TokenTable) -> None:
        self.start = start
        self.transcript = Transcript(table, stop=start.text.stop, skip_special=start.text.skip_special_tokens)
        self.completion_tokens = 0
        self.shown = False
        self.ids: list[int] = []  # ids that have not been sent to the client yet

    def count(self, token: int) -> None:
        """Count a generated id, whether or not the id becomes text."""
        self.completion_tokens += 1
        if self.start.text.return_token_ids:
            self.ids.append(token)


class Decode:
    """Decodes all requests that have new tokens; see `contract.stage.Stage` for the methods."""

    def __init__(self, context: StageContext) -> None:
        self.name = context.name
        self._table = TokenTable.of(AutoTokenizer.from_pretrained(context.model_path))
        self._answers: dict[str, _DecodedText] = {}
        self._outbox: list[Work] = []
        self.batch: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self._outbox)

    def receive(self, message: Work) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, DecodeStart):
            self._answers[request_id] = _DecodedText(body, self._table)
            return
        answer = self._answers.get(request_id)
        if answer is None:  # the text has ended at a stop string, but the thinker did not know this yet
            return
        if isinstance(body, Tokens):
            self._extend(request_id, answer, body)
        elif isinstance(body, Finished):
            # The id that ended the text is not part of the text, but the id was generated and is counted.
            if body.matched is not None:
                answer.count(body.matched)
            answer.transcript.finish()
            if answer.start.awaited:
                certain = answer.transcript.certain()
                last = StopGenerating(certain) if answer.transcript.stopped else Certain(certain)
                self._outbox.append(End(request_id, self.name, THINKER, last))
            self._end(request_id, answer, "stop" if answer.transcript.stopped else body.reason)
        else:
            raise TypeError(f"decode cannot take a {type(body).__name__}")

    def step(self) -> Iterable[Work | Failed]:
        outbox, self._outbox = self._outbox, []
        self.batch = {message.request_id for message in outbox}
        return outbox

    def abort(self, request_id: str) -> None:
        self._answers.pop(request_id, None)
        self._outbox = [message for message in self._outbox if message.request_id != request_id]

    def live(self) -> Collection[str]:
        return self._answers.keys()

    def stats(self) -> dict[str, float]:
        return {"queued_requests": len({message.request_id for message in self._outbox})}

    def close(self) -> None:
        pass

    def _extend(self, request_id: str, answer: _DecodedText, tokens: Tokens) -> None:
        for index, token in enumerate(tokens.ids):
            answer.count(token)
            answer.transcript.push(token, self._logprob(tokens, index) if tokens.logprobs else None)
            if answer.transcript.stopped:
                said = StopGenerating(answer.transcript.certain())
                self._outbox.append(End(request_id, self.name, THINKER, said))
                self._end(request_id, answer, "stop")
                return
        if answer.start.awaited:
            self._outbox.append(Chunk(request_id, self.name, THINKER, Certain(answer.transcript.certain())))
        if answer.start.text.stream or not answer.shown:
            self._show(request_id, answer)

    def _show(self, request_id: str, answer: _DecodedText) -> None:
        text, logprobs = answer.transcript.take()
        ids, answer.ids = answer.ids, []
        if text or logprobs or ids:
            answer.shown = True
            self._outbox.append(Chunk(request_id, self.name, COLLECTOR, TextDelta(text, logprobs, ids)))

    def _end(self, request_id: str, answer: _DecodedText, reason: FinishReason) -> None:
        self._show(request_id, answer)
        del self._answers[request_id]
        usage = TokenUsage(
            prompt_tokens=answer.start.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cached_tokens=answer.start.cached_tokens,
            media_tokens=answer.start.media_tokens,
        )
        self._outbox.append(End(request_id, self.name, COLLECTOR, TextDone(reason, usage)))

    def _logprob(self, tokens: Tokens, index: int) -> TokenLogprob:
        return TokenLogprob(
            chosen=self._table.shown(IdLogprob(tokens.ids[index], tokens.logprobs[index])),
            top=[self._table.shown(alternative) for alternative in tokens.alternatives[index]],
        )
