"""Records times and counts of one chat request, for the metrics and the log."""

from __future__ import annotations

import time

from gateway.answers.collector import Body
from gateway.api.speech_format import SAMPLE_RATE
from gateway.metrics import Metrics
from gateway.playback import Player
from gateway.traces.timeline import Timeline
from omni_pipeline.errors import ErrorInfo
from stages.messages import AudioDelta, AudioDone, TextDelta, TextDone


class RequestProgress:
    """The progress of one request.

    Args:
        timeline: Records the work on the request, with its times.

    Attributes:
        outcome: Outcome of the request; ``cancelled`` until another outcome is known.
        streamed: Whether the client gets pieces as they are generated. If False, the time between texts is not
            measured.
        figures: Values for the log line and the trace, by name. Values in seconds have six decimals.
    """

    def __init__(self, metrics: Metrics, timeline: Timeline) -> None:
        self.outcome = "cancelled"
        self.streamed = False
        self.began = time.monotonic()
        self.timeline = timeline
        self.figures: dict[str, object] = {}
        self._metrics = metrics
        self._last_text: float | None = None
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
        if any(isinstance(body, TextDelta) and body.text for body in bodies):
            self._saw_text(now)
        for body in bodies:
            if isinstance(body, TextDone):
                self._metrics.count_tokens(body.usage)
                self.figures |= {"prompt_tokens": body.usage.prompt_tokens, "cached_tokens": body.usage.cached_tokens}
                self.figures |= {"completion_tokens": body.usage.completion_tokens}
            elif isinstance(body, AudioDone):
                self._metrics.codec_frames.inc(body.frames)
                self.figures["codec_frames"] = body.frames
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

    def _saw_text(self, now: float) -> None:
        if self._last_text is None:
            self._metrics.first_text_seconds.observe(now - self.began)
            self.figures["first_text_seconds"] = round(now - self.began, 6)
        elif self.streamed:
            self._metrics.inter_text_seconds.observe(now - self._last_text)
        self._last_text = now

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
