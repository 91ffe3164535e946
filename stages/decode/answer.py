"""Turns the tokens of one answer into messages: content, tool calls, and reports that say which tokens are spoken."""

from __future__ import annotations

from stages.decode.channels import CallSplitter, ContentOnly, Part, Splitter
from stages.decode.detokenize import TokenTable, Transcript
from stages.decode.reasoning_channel import ReasoningSplitter
from stages.decode.spoken import SpokenTokens
from stages.messages import (
    Certain,
    DecodeStart,
    FinishReason,
    StopGenerating,
    TextDelta,
    TextDone,
    TextOutput,
    TokenLogprob,
    TokenUsage,
)
from stages.reasoning_track import ReasoningTrack
from stages.sglang_engine.tool_calls import CallReader


class DecodedAnswer:
    """One answer while it is generated.

    Attributes:
        start: The thinker's first message about the request.
        choice: Index of this answer among the choices of its request.
        ended: Whether this stage has ended the text. It ends the text at a stop string, or after a call if only one
            call is allowed. After that, the stage must inform the thinker with `stop`, and must not call `push` any
            more.
        shown: Whether the client has received any part of the answer.
    """

    def __init__(self, start: DecodeStart, table: TokenTable, choice: int) -> None:
        options = start.text
        self.start = start
        self.choice = choice
        self.shown = False
        self._transcript = Transcript(table, stop=options.stop, skip_special=options.skip_special_tokens)
        self._splitter = _splitter(options)
        self._spoken = SpokenTokens() if start.awaited else None
        self._completion_tokens = 0
        self._reasoning = ReasoningTrack(options.reasoning) if options.reasoning is not None else None
        self._called = False
        self._next = TextDelta("", choice=choice)

    @property
    def ended(self) -> bool:
        return self._transcript.stopped or self._splitter.ended

    def push(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Add a generated token of the text."""
        self.count(token)
        if self._reasoning is not None:
            known = self._reasoning.tokens
            self._reasoning.read(token)
            if logprob is not None:
                logprob.reasoning = self._reasoning.tokens > known
        self._transcript.push(token, logprob)
        text = self._take_text()
        self._add(self._splitter.feed(text))

    def count(self, token: int) -> None:
        """Count a generated id, whether or not the id becomes text."""
        self._completion_tokens += 1
        if self.start.text.return_token_ids:
            self._next.ids.append(token)

    def finish(self) -> None:
        """End the text. The characters that were held back become part of the text."""
        if not self._splitter.ended:
            self._transcript.finish()
            text = self._take_text()
            self._add(self._splitter.feed(text))
        self._add(self._splitter.finish())

    def certain(self) -> Certain:
        """The next report to the thinker. It says which tokens are spoken."""
        assert self._spoken is not None
        silent = self._spoken.silent()
        return Certain(self._spoken.known, silent)

    def stop(self) -> StopGenerating:
        """The last report to the thinker about a text that this stage has ended (see `StopGenerating`)."""
        if self._spoken is None:
            return StopGenerating(0, choice=self.choice)
        certain = self.certain()
        return StopGenerating(certain.tokens, choice=self.choice, silent=certain.silent)

    def take(self) -> TextDelta | None:
        """The part of the answer that has not been taken yet; None if it is empty."""
        delta, self._next = self._next, TextDelta("", choice=self.choice)
        if not (delta.text or delta.reasoning or delta.logprobs or delta.ids or delta.calls):
            return None
        self.shown = True
        return delta

    def done(self, reason: FinishReason) -> TextDone:
        """The last message about a finished text. `reason` is the reason why the text ended."""
        usage = TokenUsage(
            prompt_tokens=self.start.prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self.start.cached_tokens,
            media_tokens=self.start.media_tokens,
            reasoning_tokens=0 if self._reasoning is None else self._reasoning.tokens,
        )
        return TextDone("tool_calls" if self._called and reason == "stop" else reason, usage, self.choice)

    def _take_text(self) -> str:
        text, logprobs = self._transcript.take()
        self._next.logprobs += logprobs
        return text

    def _add(self, parts: list[Part]) -> None:
        for part in parts:
            self._next.text += part.content
            self._next.reasoning += part.reasoning
            self._next.calls += part.calls
            self._called = self._called or bool(part.calls)
        if self._spoken is not None:
            self._spoken.add(self._transcript.certain(), parts)


def _splitter(options: TextOutput) -> Splitter:
    answer: Splitter = ContentOnly()
    if options.calls is not None:
        reader = CallReader(options.calls.parser, options.calls.names)
        answer = CallSplitter(reader.opening, reader.closing, reader.read, parallel=options.calls.parallel)
    if options.reasoning is None:
        return answer
    return ReasoningSplitter(options.reasoning, answer, separate=options.separate_reasoning)
