"""The stage code2wav: schedules chunks of frames of many utterances over the slots of the streaming vocoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import internal
from omni_pipeline.wire.messages import Chunk, End, Failed, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import encoder_dtype, load_part
from stages.code2wav.history import Streams
from stages.code2wav.network import StreamingVocoder
from stages.messages import AudioDelta, AudioDone, Frame, SpeechFinished
from stages.options import Code2WavOptions


class _SpeechStream:
    """The progress of one utterance.

    Attributes:
        waiting: Frames not decoded yet, each int64 [codebooks].
        slot: The vocoder's slot that holds the utterance's state; None before its first chunk.
        chunks, frames: Numbers of chunks and frames decoded so far.
        ending: The message after the last frame; None until it has arrived.
    """

    __slots__ = ("chunks", "ending", "frames", "slot", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[torch.Tensor] = deque()
        self.slot: int | None = None
        self.chunks = 0
        self.frames = 0
        self.ending: SpeechFinished | None = None


class Code2Wav:
    """Decodes one batch of equally long chunks in each step; see `contract.stage.Stage` for the methods."""

    def __init__(self, context: StageContext) -> None:
        options: Code2WavOptions = context.options
        self.name = context.name
        self._chunk_frames = options.chunk_frames
        self._max_batch = options.max_batch or (1 if context.device == "cpu" else options.max_streams)
        self._vocoder = load_vocoder(context.model_path, context.device, options)
        self._free = list(reversed(range(options.max_streams)))
        self._voices: dict[str, _SpeechStream] = {}
        # utterances with a complete chunk of frames, in the order in which these chunks became complete
        self._ready: dict[str, None] = {}
        self._outbox: list[Work] = []
        self._chunks = self._frames = 0
        self.batch: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._outbox) or any(self._can_run(request_id) for request_id in self._ready)

    def receive(self, message: Work) -> None:
        body = message.body
        if isinstance(body, SpeechFinished):
            self._end(message.request_id, body)
        elif isinstance(body, Frame):
            self._queue(message.request_id, body.codes.torch())
        else:
            raise TypeError(f"code2wav cannot take a {type(body).__name__}")

    @torch.inference_mode()
    def step(self) -> Iterable[Work | Failed]:
        outbox, self._outbox = self._outbox, []
        batch = self.batch = self._next_batch()
        if batch:
            voices = [self._voices[request_id] for request_id in batch]
            for request_id, samples in zip(batch, self._decode(voices), strict=True):
                outbox.append(Chunk(request_id, self.name, COLLECTOR, AudioDelta(Tensor.of(samples))))
        for request_id in batch:
            voice = self._voices[request_id]
            del self._ready[request_id]
            if voice.ending is not None and not voice.waiting:
                outbox.append(self._closed(request_id, voice.ending))
            elif len(voice.waiting) >= self._size(voice):
                self._ready[request_id] = None  # the utterance goes behind the utterances that have waited longer
        return outbox

    def abort(self, request_id: str) -> None:
        if request_id in self._voices:
            self._forget(request_id)
        self._outbox = [message for message in self._outbox if message.request_id != request_id]

    def live(self) -> Collection[str]:
        return self._voices.keys()

    def stats(self) -> dict[str, float]:
        return {
            "queued_requests": len(self._ready),
            "slots_used": self._vocoder.slots - len(self._free),
            "slots_limit": self._vocoder.slots,
            "waiting_frames": sum(len(voice.waiting) for voice in self._voices.values()),
            "chunks": self._chunks,
            "frames": self._frames,
        }

    def close(self) -> None:
        """Do nothing: the stage holds nothing that outlives its process."""

    def _queue(self, request_id: str, codes: torch.Tensor) -> None:
        vocoder = self._vocoder
        if codes.shape != (vocoder.codebooks,) or not 0 <= min(codes.tolist()) <= max(codes.tolist()) < vocoder.codes:
            raise internal("A codec frame does not fit the vocoder.", code="bad_frame")
        voice = self._voices.setdefault(request_id, _SpeechStream())
        voice.waiting.append(codes)
        if len(voice.waiting) >= self._size(voice):
            self._ready.setdefault(request_id)

    def _end(self, request_id: str, ending: SpeechFinished) -> None:
        voice = self._voices.setdefault(request_id, _SpeechStream())
        voice.ending = ending
        if voice.waiting:
            self._ready.setdefault(request_id)
        else:
            self._outbox.append(self._closed(request_id, ending))

    def _size(self, voice: _SpeechStream) -> int:
        """Number of frames in the utterance's next chunk; the last chunk of a complete utterance may be shorter."""
        size = self._chunk_frames[min(voice.chunks, len(self._chunk_frames) - 1)]
        return min(size, len(voice.waiting)) if voice.ending is not None else size

    def _can_run(self, request_id: str) -> bool:
        return bool(self._free) or self._voices[request_id].slot is not None

    def _next_batch(self) -> list[str]:
        """The utterance that has waited longest, and the other utterances that can be decoded in the same batch.

        All utterances of a batch have the same number of new frames, and either all or none of them are in their first
        chunk. If this method gives an utterance a slot, the utterance keeps the slot until the utterance ends.
        """
        batch: list[str] = []
        shape: tuple[int, bool] | None = None
        for request_id in self._ready:
            voice = self._voices[request_id]
            own = self._size(voice), voice.slot is None
            if not self._can_run(request_id) or own != (shape or own):
                continue
            shape = own
            if voice.slot is None:
                voice.slot = self._free.pop()
            batch.append(request_id)
            if len(batch) == self._max_batch:
                break
        return batch

    def _decode(self, voices: list[_SpeechStream]) -> torch.Tensor:
        """The sound of each utterance's next chunk, float32 [batch, samples] on the CPU."""
        device = self._vocoder.device
        size = self._size(voices[0])
        frames = [torch.stack([voice.waiting.popleft() for _ in range(size)]) for voice in voices]
        slots = [voice.slot for voice in voices if voice.slot is not None]
        streams = Streams.of(slots, [voice.frames for voice in voices], device)
        for voice in voices:
            voice.chunks += 1
            voice.frames += size
        self._chunks += len(voices)
        self._frames += size * len(voices)
        return self._vocoder.decode(torch.stack(frames).to(device), streams).cpu()

    def _closed(self, request_id: str, ending: SpeechFinished) -> Work:
        return End(request_id, self.name, COLLECTOR, AudioDone(self._forget(request_id).frames, ending.reason))

    def _forget(self, request_id: str) -> _SpeechStream:
        voice = self._voices.pop(request_id)
        self._ready.pop(request_id, None)
        if voice.slot is not None:
            self._free.append(voice.slot)
        return voice


def load_vocoder(model_path: str, device: str, options: Code2WavOptions) -> StreamingVocoder:
    """The checkpoint's vocoder. Raises StartupError if the weights do not fit the configuration."""
    config = Qwen3OmniMoeConfig.from_pretrained(model_path)
    dtype = encoder_dtype(options.dtype, config, device)
    model = load_part(Qwen3OmniMoeCode2Wav, config.code2wav_config, model_path, "code2wav.", dtype, device)
    return StreamingVocoder(model, options.max_streams)
