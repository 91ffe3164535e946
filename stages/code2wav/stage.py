"""The stage code2wav: decides when each utterance gets a slot of the streaming vocoder, and decodes chunks of
frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable

import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import internal
from omni_pipeline.wire.messages import Advice, Chunk, End, Failed, Work
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import encoder_dtype, load_part
from stages.code2wav.chunk_cost import ChunkCost
from stages.code2wav.chunk_order import ArrivalOrder, ChunkOrder, ListenerOrder
from stages.code2wav.history import Streams
from stages.code2wav.streaming_vocoder import StreamingVocoder
from stages.messages import AudioDelta, AudioDone, Frame, Playing, SpeechFinished, VocoderStart
from stages.options import Code2WavOptions

TALKER = "talker_ar"


class _SpeechStream:
    """The progress of one utterance.

    Attributes:
        waiting: Frames not decoded yet, each int64 [codebooks].
        slot: The vocoder's slot that stores the utterance's state; None before the utterance's first chunk.
        frames: Number of frames decoded so far.
        ending: The message after the last frame; None until it has arrived.
    """

    __slots__ = ("ending", "frames", "slot", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[torch.Tensor] = deque()
        self.slot: int | None = None
        self.frames = 0
        self.ending: SpeechFinished | None = None


class Code2Wav:
    """Decodes one batch of chunks in each step. `chunk_order` chooses the chunks. All chunks of a batch have the same
    length. See `contract.stage.Stage` for the methods.
    """

    def __init__(self, context: StageContext) -> None:
        options: Code2WavOptions = context.options
        self.name = context.name
        max_batch = options.max_batch or (1 if context.device == "cpu" else options.max_streams)
        self._vocoder = load_vocoder(context.model_path, context.device, options)
        self._free = list(reversed(range(options.max_streams)))
        self._voices: dict[str, _SpeechStream] = {}
        sizes, slots = options.chunk_frames, options.max_streams
        self._order: ChunkOrder = (
            ListenerOrder(sizes, slots, max_batch, rehearse(self._vocoder, sizes))
            if options.just_in_time
            else ArrivalOrder(sizes, slots, max_batch)
        )
        self._advised = TALKER in context.stages
        self._outbox: list[Work | Advice[Playing]] = []
        self._chunks = self._frames = 0
        self.batch: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._outbox) or bool(self._order.next_chunk(time.monotonic()).request_ids)

    @property
    def wakes_at(self) -> float | None:
        return self._order.wakes_at(time.monotonic())

    def receive(self, message: Work) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, VocoderStart):
            self._voices[request_id] = _SpeechStream()
            self._order.begin(request_id, streamed=body.streamed)
        elif isinstance(body, SpeechFinished):
            self._end(request_id, body)
        elif isinstance(body, Frame):
            self._queue(request_id, body.codes.torch())
        else:
            raise TypeError(f"code2wav does not accept messages of the type {type(body).__name__}")

    @torch.inference_mode()
    def step(self) -> Iterable[Work | Failed | Advice[Playing]]:
        outbox, self._outbox = self._outbox, []
        began = time.monotonic()
        chunk = self._order.next_chunk(began)
        self.batch = chunk.request_ids
        if not chunk.request_ids:
            return outbox
        voices = [self._voices[request_id] for request_id in chunk.request_ids]
        samples = self._decode(voices, chunk.frames)
        for request_id, sound in zip(chunk.request_ids, samples, strict=True):
            outbox.append(Chunk(request_id, self.name, COLLECTOR, AudioDelta(Tensor.of(sound))))
        playing = self._order.sent(chunk, began, time.monotonic())
        if playing is not None and self._advised:
            outbox.append(Advice(self.name, TALKER, playing))
        for request_id, voice in zip(chunk.request_ids, voices, strict=True):
            if voice.ending is not None and not voice.waiting:
                outbox.append(self._closed(request_id, voice.ending))
        return outbox

    def abort(self, request_id: str) -> None:
        if request_id in self._voices:
            self._forget(request_id)
        self._outbox = [
            message for message in self._outbox if isinstance(message, Advice) or message.request_id != request_id
        ]

    def live(self) -> Collection[str]:
        return self._voices.keys()

    def stats(self) -> dict[str, float]:
        return {
            "queued_requests": self._order.ready,
            "slots_used": self._vocoder.slots - len(self._free),
            "slots_limit": self._vocoder.slots,
            "waiting_frames": sum(len(voice.waiting) for voice in self._voices.values()),
            "chunks": self._chunks,
            "frames": self._frames,
        }

    def close(self) -> None:
        """Do nothing: the stage has no resources that outlive its process."""

    def _queue(self, request_id: str, codes: torch.Tensor) -> None:
        vocoder = self._vocoder
        if codes.shape != (vocoder.codebooks,) or not 0 <= min(codes.tolist()) <= max(codes.tolist()) < vocoder.codes:
            raise internal(
                "The vocoder received a codec frame with a wrong number of codes or an invalid code.", code="bad_frame"
            )
        self._voices[request_id].waiting.append(codes)
        self._order.add_frame(request_id, time.monotonic())

    def _end(self, request_id: str, ending: SpeechFinished) -> None:
        voice = self._voices[request_id]
        voice.ending = ending
        self._order.end(request_id, time.monotonic())
        if not voice.waiting:
            self._outbox.append(self._closed(request_id, ending))

    def _decode(self, voices: list[_SpeechStream], size: int) -> torch.Tensor:
        """The sound of the next chunk of each utterance, float32 [batch, samples] on the CPU. `size` is the number of
        frames in a chunk.
        """
        device = self._vocoder.device
        for voice in voices:
            if voice.slot is None:  # the utterance keeps this slot until it ends
                voice.slot = self._free.pop()
        frames = [torch.stack([voice.waiting.popleft() for _ in range(size)]) for voice in voices]
        slots = [voice.slot for voice in voices if voice.slot is not None]
        streams = Streams.of(slots, [voice.frames for voice in voices], device)
        for voice in voices:
            voice.frames += size
        self._chunks += len(voices)
        self._frames += size * len(voices)
        return self._vocoder.decode(torch.stack(frames).to(device), streams).cpu()

    def _closed(self, request_id: str, ending: SpeechFinished) -> Work:
        done = AudioDone(self._forget(request_id).frames, ending.reason, ending.text_tokens)
        return End(request_id, self.name, COLLECTOR, done)

    def _forget(self, request_id: str) -> _SpeechStream:
        voice = self._voices.pop(request_id)
        self._order.forget(request_id)
        if voice.slot is not None:
            self._free.append(voice.slot)
        return voice


@torch.inference_mode()
def rehearse(vocoder: StreamingVocoder, sizes: Iterable[int]) -> ChunkCost:
    """Decode a chunk of each size in `sizes`, and return how long the chunks took. The first chunk that a process
    decodes takes much longer than later chunks, because kernels are loaded and compiled. Without a rehearsal, the order
    of chunks would expect later chunks to take as long, and answers would start late.
    """
    cost = ChunkCost()
    for size in sorted(set(sizes)):
        codes = torch.zeros(1, size, vocoder.codebooks, dtype=torch.int64, device=vocoder.device)
        for measured in (False, True):
            began = time.monotonic()
            vocoder.decode(codes, Streams.of([0], [0], vocoder.device)).cpu()
            if measured:
                cost.note(size, time.monotonic() - began)
    return cost


def load_vocoder(model_path: str, device: str, options: Code2WavOptions) -> StreamingVocoder:
    """The checkpoint's vocoder. Raises StartupError if the weights do not fit the configuration."""
    config = Qwen3OmniMoeConfig.from_pretrained(model_path)
    dtype = encoder_dtype(options.dtype, config, device)
    model = load_part(Qwen3OmniMoeCode2Wav, config.code2wav_config, model_path, "code2wav.", dtype, device)
    return StreamingVocoder(model, options.max_streams)
