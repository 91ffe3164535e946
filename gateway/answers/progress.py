"""Records times and counts of one request, for the metrics and the log."""

from __future__ import annotations

import time

from gateway.answers.collector import Body
from gateway.api.speech_format import SAMPLE_RATE
from gateway.metrics import Metrics
from gateway.playback import Player
from gateway.traces.request_timeline import Timeline
from omni_pipeline.errors import ErrorInfo
from stages.messages import AudioDelta, AudioDone, RecordingCut, TextDelta, TextDone, TokenUsage


class RequestProgress:
    """The progress of one request.

    Args:
        timeline: Records the work on the request, with its times.

    Attributes:
        outcome: Outcome of the request; ``cancelled`` until another outcome is known.
        streamed: Whether the client gets pieces as they are generated. If False, the time between texts is not
            measured.
        figures: Values for the log line and the trace. Each key is the name of a value. Values in seconds have six
            decimals.
    """

    def __init__(self, metrics: Metrics, timeline: Timeline) -> None:
        self.outcome = "cancelled"
        self.streamed = False
        self.began = time.monotonic()
        self.timeline = timeline
        self.figures: dict[str, object] = {}
        self._metrics = metrics
        self._in_pieces = False
        self._prompt_tokens = self._cached_tokens = 0
        self._completion_tokens = 0
        self._last_texts: dict[int, float] = {}  # for each choice, the time at which its latest text arrived
        self._last_audio: float | None = None
        self._player = Player()

    def failed(self, info: ErrorInfo) -> None:
        """Record that the request ended with an error."""
        self.outcome = "refused" if info.status < 500 else "failed"
        self.figures["code"] = info.code
        self._metrics.errors.labels(info.code or "none").inc()

    def saw(self, bodies: list[Body]) -> None:
        """Record the arrival of a part of the answer."""
        self.timeline.read()
        now = time.monotonic()
        deltas = [body for body in bodies if isinstance(body, TextDelta)]
        new = [delta for delta in deltas if delta.text or delta.reasoning or delta.calls]
        for choice in {body.choice for body in new}:
            self._saw_text(now, choice)
        for body in bodies:
            if isinstance(body, RecordingCut):
                self._saw_cut(body)
            elif isinstance(body, TextDone):
                self._saw_end(body.usage)
            elif isinstance(body, AudioDone):
                self._metrics.codec_frames.inc(body.frames)
                self.figures["codec_frames"] = body.frames
                if body.text_tokens:
                    self._metrics.count_prompt(TokenUsage(body.text_tokens, 0, 0, {}))
                    self.figures["prompt_tokens"] = body.text_tokens
            elif isinstance(body, AudioDelta):
                self._saw_audio(now, body.samples.shape[0] / SAMPLE_RATE)

    def ended(self) -> None:
        """Record that the request has ended, with or without an error."""
        self.figures["outcome"] = self.outcome
        self._metrics.requests.labels(self.outcome).inc()
        self._metrics.request_seconds.observe(time.monotonic() - self.began)
        if self._last_audio is not None:
            factor = (self._last_audio - self.began) / self._player.seconds
            self.figures |= {"audio_seconds": round(self._player.seconds, 6), "real_time_factor": round(factor, 6)}
            self.figures["playback_underruns"] = len(self._player.underruns)
            self._metrics.real_time_factor.observe(factor)
            self._metrics.playback_underruns.inc(len(self._player.underruns))
            self._metrics.playback_silence_seconds.inc(sum(self._player.underruns))

    def _saw_cut(self, cut: RecordingCut) -> None:
        self._in_pieces = True
        self._metrics.recording_seconds.inc(cut.ends[-1])
        self._metrics.recording_pieces.inc(len(cut.ends))
        self.figures |= {"recording_seconds": round(cut.ends[-1], 6), "pieces": len(cut.ends)}

    def _saw_end(self, usage: TokenUsage) -> None:
        """Count the tokens of one choice, or of one piece of a recording.

        All choices of a request have the same prompt. This prompt is counted once, when the first choice ends. Each
        piece of a recording has its own prompt, so the prompts of all pieces are counted.
        """
        if self._in_pieces or not self._prompt_tokens:
            self._metrics.count_prompt(usage)
            self._prompt_tokens += usage.prompt_tokens
            self._cached_tokens += usage.cached_tokens
            self.figures |= {"prompt_tokens": self._prompt_tokens, "cached_tokens": self._cached_tokens}
        self._metrics.count_completion(usage)
        self._completion_tokens += usage.completion_tokens
        self.figures["completion_tokens"] = self._completion_tokens

    def _saw_text(self, now: float, choice: int) -> None:
        last = self._last_texts.get(choice)
        if not self._last_texts:
            self._metrics.first_text_seconds.observe(now - self.began)
            self.figures["first_text_seconds"] = round(now - self.began, 6)
        elif self.streamed and last is not None:
            self._metrics.inter_text_seconds.observe(now - last)
        self._last_texts[choice] = now

    def _saw_audio(self, now: float, seconds: float) -> None:
        if not seconds:
            return
        if self._last_audio is None:
            self._metrics.first_audio_seconds.observe(now - self.began)
            self.figures["first_audio_seconds"] = round(now - self.began, 6)
        else:
            self._metrics.inter_audio_seconds.observe(now - self._last_audio)
        self._last_audio = now
        self._player.feed(now, seconds)
        self._metrics.audio_chunks.inc()
        self._metrics.audio_seconds.inc(seconds)
