"""The stage code_predictor: completes codec frames from the talker's states and the codes of codebook 0. The frames of
several utterances are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration,
)

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.errors import internal
from omni_pipeline.wire.messages import Chunk, End, Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages import cuda_habits
from stages.checkpoint.weights import encoder_dtype, load_part, read_tensors
from stages.code_predictor.choice import CodeChoice, Draws
from stages.code_predictor.compiled_frames import CompiledFrames
from stages.code_predictor.graphs import MOST_TRACED, NARROW, TRACED_BEFOREHAND, Capture, FrameGraphs, Record, trace
from stages.code_predictor.network import ResidualNetwork
from stages.cpu_graphs import GraphPool
from stages.messages import Frame, FrameFeedback, FrameSeed, PredictorStart, SpeechFinished, VocoderStart
from stages.options import CodePredictorOptions

TALKER = "talker_ar"
VOCODER = "code2wav"


class _FrameStream:
    """The progress of one utterance.

    Attributes:
        draws: The sampling parameters and random draws for the utterance's codes.
        frames: Number of frames computed so far.
        seed: The input of the utterance's next frame; None until this input has arrived.
        ending: The message after the last seed; None until this message has arrived.
    """

    __slots__ = ("draws", "ending", "frames", "seed")

    def __init__(self, start: PredictorStart) -> None:
        self.draws = Draws(start.sampling)
        self.frames = 0
        self.seed: FrameSeed | None = None
        self.ending: SpeechFinished | None = None


class CodePredictor:
    """Computes one frame for every utterance whose seed has arrived. `contract.stage.Stage` describes the methods."""

    def __init__(self, context: StageContext) -> None:
        options: CodePredictorOptions = context.options
        self.name = context.name
        self._network = load_network(context.model_path, context.device, options)
        self._graphs: FrameGraphs | None = None
        self._frames_of: Callable[[torch.Tensor, torch.Tensor, CodeChoice], tuple[torch.Tensor, torch.Tensor]]
        self._frames_of = self._network.frames
        if options.record and CompiledFrames.suits(self._network) and not cuda_habits.enabled():
            self._frames_of = CompiledFrames(self._network).frames
        elif options.record:
            self._graphs = frame_graphs(self._network, context.device)
            self._frames_of = self._graphs.frames
        self._voices: dict[str, _FrameStream] = {}
        self._ready: dict[str, None] = {}  # utterances with a seed, in the order in which the seeds arrived
        self._outbox: list[Work] = []
        self._frames = 0
        self.batch: list[str] = []

    @property
    def has_work(self) -> bool:
        unrecorded = self._graphs is not None and not self._graphs.complete
        return bool(self._ready or self._outbox or unrecorded)

    def receive(self, message: Work) -> None:
        request_id, body = message.request_id, message.body
        if isinstance(body, PredictorStart):
            self._voices[request_id] = _FrameStream(body)
            self._outbox.append(Start(request_id, self.name, VOCODER, VocoderStart(body.streamed)))
        elif isinstance(body, SpeechFinished):  # the talker never sends the code that ends an utterance
            self._end(request_id, body)
        elif isinstance(body, FrameSeed):
            self._queue(request_id, body)
        else:
            raise TypeError(f"code_predictor does not accept messages of the type {type(body).__name__}")

    @torch.inference_mode()
    def step(self) -> Iterable[Work | Failed]:
        outbox, self._outbox = self._outbox, []
        batch = self.batch = list(self._ready)[: self._network.max_batch]
        if not batch:
            if self._graphs is not None and not outbox and not self._graphs.complete:
                self._graphs.record_next()  # no frame is waiting, so there is time to make a recording
            return outbox
        codes, embeddings = self._compute([self._voices[request_id] for request_id in batch])
        # The talker gets its message first, because it waits for the feedback. The vocoder has a queue and can wait.
        for request_id, embedding in zip(batch, embeddings, strict=True):
            outbox.append(Chunk(request_id, self.name, TALKER, FrameFeedback(Tensor.of(embedding))))
        for request_id, frame in zip(batch, codes, strict=True):
            outbox.append(Chunk(request_id, self.name, VOCODER, Frame(Tensor.of(frame))))
        for request_id in batch:
            del self._ready[request_id]
            voice = self._voices[request_id]
            voice.seed = None
            voice.frames += 1
            if voice.ending is not None:
                outbox += self._closed(request_id, voice.ending)
        self._frames += len(batch)
        return outbox

    def abort(self, request_id: str) -> None:
        self._voices.pop(request_id, None)
        self._ready.pop(request_id, None)
        self._outbox = [message for message in self._outbox if message.request_id != request_id]

    def live(self) -> Collection[str]:
        return self._voices.keys()

    def stats(self) -> dict[str, float]:
        return {"queued_requests": len(self._ready), "frames": self._frames}

    def close(self) -> None:
        """Do nothing: the stage has no resources that outlive its process."""

    def _queue(self, request_id: str, seed: FrameSeed) -> None:
        voice = self._voices.get(request_id)
        if voice is None or voice.ending is not None or voice.seed is not None:
            raise internal("The talker sent the input for a codec frame at the wrong time.", code="frame_out_of_turn")
        if seed.hidden.shape != (self._network.hidden_size,) or not 0 <= seed.code < self._network.first_vocab:
            raise internal(
                "The talker sent an input of a wrong size or an invalid code for a codec frame.", code="bad_frame"
            )
        voice.seed = seed
        self._ready[request_id] = None

    def _end(self, request_id: str, ending: SpeechFinished) -> None:
        voice = self._voices.get(request_id)
        if voice is None:
            raise internal("The talker ended an utterance that had not begun.", code="frame_out_of_turn")
        voice.ending = ending
        if voice.seed is None:
            self._outbox += self._closed(request_id, ending)

    def _closed(self, request_id: str, ending: SpeechFinished) -> list[Work]:
        del self._voices[request_id]
        return [End(request_id, self.name, TALKER), End(request_id, self.name, VOCODER, ending)]

    def _compute(self, voices: list[_FrameStream]) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int64 [batch, codebooks] and summed embeddings [batch, hidden], both on the CPU."""
        network = self._network
        seeds = [voice.seed for voice in voices if voice.seed is not None]
        hidden = torch.stack([seed.hidden.torch() for seed in seeds]).to(network.device, network.dtype)
        first_codes = torch.tensor([seed.code for seed in seeds], device=network.device)
        rows = [(voice.draws, voice.frames) for voice in voices]
        choice = CodeChoice.of(rows, network.codebooks - 1, network.vocab, network.device)
        codes, embeddings = self._frames_of(hidden, first_codes, choice)
        return codes.cpu(), embeddings.cpu()


def load_network(model_path: str, device: str, options: CodePredictorOptions) -> ResidualNetwork:
    """The checkpoint's code predictor. Raises StartupError if the weights do not fit the configuration."""
    config = Qwen3OmniMoeConfig.from_pretrained(model_path)
    dtype = encoder_dtype(options.dtype, config, device)
    model = load_part(
        Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration,
        config.talker_config.code_predictor_config,
        model_path,
        "talker.code_predictor.",
        dtype,
        device,
    )
    table = read_tensors(model_path, "talker.model.codec_embedding.")["weight"]
    return ResidualNetwork(model, table.to(device, dtype), options.max_batch)


def frame_graphs(network: ResidualNetwork, device: str) -> FrameGraphs:
    """Recordings of `ResidualNetwork.frames`."""
    if device == "cpu" and not cuda_habits.enabled():
        largest, widest = min(network.max_batch, MOST_TRACED), min(network.vocab, NARROW)
        return FrameGraphs(network, trace, largest, widest, TRACED_BEFOREHAND)
    record: Record = Capture() if device != "cpu" else GraphPool().record
    return FrameGraphs(network, record, network.max_batch, network.vocab)
