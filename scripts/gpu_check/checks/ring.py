"""Times the exchange of messages between two processes: a simplified talker, which sends states and codes, and the real
code predictor, which sends back embeddings.

The simplified talker is a graph with the widths of the real talker, but without experts. It makes the copies that the
engine makes for each utterance. Messages go over ZeroMQ, as between workers.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import zmq

from gpu_check.running.finding import Finding
from gpu_check.running.random_parts import RandomModel
from gpu_check.running.setup import Setup
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Chunk, End, Start
from omni_pipeline.wire.tensor import Tensor
from omni_pipeline.wire.transport import Inbox, Outbox, endpoint
from stages import messages
from stages.code_predictor import CodePredictor
from stages.messages import FrameSeed, PredictorStart, Sampling, SpeechFinished
from stages.options import CodePredictorOptions

TALKER, PREDICTOR = "talker_ar", "code_predictor"
BODIES = {
    (TALKER, PREDICTOR): messages.PredictorStart | messages.FrameSeed | messages.SpeechFinished,
    (PREDICTOR, TALKER): messages.FrameFeedback,
    (PREDICTOR, "code2wav"): messages.VocoderStart | messages.Frame | messages.SpeechFinished,
}
VOICES = (1, 8, 32)
FRAMES, WARM = 100, 20
LAYERS = 20
SAMPLED = Sampling(temperature=1.0, top_k=50, top_p=0.8)

# Maximum seconds until the first answer of the second process. Without saved machine code, this process compiles for
# the CPU during its first frame.
_START_SECONDS = 120


def run(setup: Setup) -> Iterator[Finding]:
    voices = (1, 2) if setup.small else VOICES
    # With CUDA, the second process is spawned as a new program, because a fork of this process could not use CUDA.
    # Without CUDA, it is forked, because a fork starts sooner.
    context: Any = multiprocessing.get_context("fork" if setup.device == "cpu" else "spawn")
    partner = context.Process(target=predict, args=(setup, max(voices)), daemon=True)
    partner.start()
    try:
        ends = _Ends(setup, TALKER, PREDICTOR)
        model = RandomModel(setup.directory, setup.device, small=setup.small)
        hidden = model.config.talker_config.text_config.hidden_size
        talker = DummyTalker(hidden, max(voices), setup.device, model.dtype)
        ends.await_one(_START_SECONDS)  # the predictor reports that it is ready
        for count in voices:
            if setup.in_time:
                ok, figures = _go_round(setup, ends, talker, count)
                yield Finding(f"ring: {count} voices", ok, figures)
    finally:
        partner.kill()


class _Ends:
    """One process's sending and receiving ends of the connection between the two processes."""

    def __init__(self, setup: Setup, own: str, other: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        directory = str(setup.directory)
        self._inbox = Inbox(context, endpoint(directory, own, 0))
        self._outbox, self._address = Outbox(context), endpoint(directory, other, 0)
        self._codec = Codec(BODIES)

    def send(self, *parcel: Any) -> None:
        if parcel:
            self._outbox.send(self._address, *map(self._codec.encode, parcel))

    def await_one(self, seconds: float) -> list[Any]:
        """The messages that have arrived, at least one. Raises TimeoutError."""
        if not self._inbox.wait(seconds):
            raise TimeoutError("the other process does not answer")
        return [self._codec.decode(received.frames) for received in self._inbox.drain(1000)]


class DummyTalker:
    """The simplified talker, which is as wide as the real talker. One step turns the rows of the utterances into states
    and codes. With CUDA, the step is a CUDA graph.
    """

    def __init__(self, hidden: int, largest: int, device: str, dtype: torch.dtype) -> None:
        self._device = device
        torch.manual_seed(0)
        wide = 4 * hidden
        self._weights = [
            (
                torch.randn(hidden, wide).mul_(0.02).to(device, dtype),
                torch.randn(wide, hidden).mul_(0.02).to(device, dtype),
            )
            for _ in range(LAYERS)
        ]
        self._head = torch.randn(hidden, 1024).to(device, dtype)
        self._rows = torch.zeros(largest, hidden, device=device, dtype=dtype)
        self._graph: Any = None
        if device == "cuda":
            self._compute()
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._compute()

    def _compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = self._rows
        for up, down in self._weights:
            x = x + torch.nn.functional.silu(torch.nn.functional.rms_norm(x, x.shape[1:]) @ up) @ down
        x = torch.nn.functional.rms_norm(x, x.shape[1:])
        return x, (x @ self._head).argmax(-1)

    @torch.inference_mode()
    def step(self, rows: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
        """The states and codes for the rows of the utterances. The rows are on the CPU."""
        # the rows are copied one by one, because the engine also copies its rows one by one
        moved = torch.stack([row.to(self._device) for row in rows])
        self._rows[: len(rows)].copy_(moved)
        if self._graph is None:
            states, codes = self._compute()
        else:
            self._graph.replay()
            states, codes = self._result
        return list(states[: len(rows)].clone()), codes[: len(rows)].tolist()


def _go_round(setup: Setup, ends: _Ends, talker: DummyTalker, count: int) -> tuple[bool, dict[str, Any]]:
    names = [f"{count}-{index}" for index in range(count)]
    ends.send(*(Start(name, TALKER, PREDICTOR, PredictorStart(SAMPLED)) for name in names))
    rows = {name: torch.zeros(talker._rows.shape[1], dtype=talker._rows.dtype) for name in names}
    warm, frames = (2, 4) if setup.small else (WARM, FRAMES)
    computing, began, seqs = 0.0, 0.0, 0
    for frame in range(warm + frames):
        if frame == warm:
            began, computing = time.perf_counter(), 0.0
        start = time.perf_counter()
        states, codes = talker.step([rows[name] for name in names])
        computing += time.perf_counter() - start
        seeds = zip(names, states, codes, strict=True)
        ends.send(
            *(Chunk(name, TALKER, PREDICTOR, FrameSeed(Tensor.of(state), code), frame) for name, state, code in seeds)
        )
        back = 0
        while back < count:
            for message in ends.await_one(20 if frame else _START_SECONDS):
                if message.target == TALKER:
                    rows[message.request_id] = message.body.embedding.torch()
                    back += 1
        seqs += back
    taken = (time.perf_counter() - began) / frames * 1e3
    finite = all(bool(torch.isfinite(row).all()) for row in rows.values())
    ends.send(*(End(name, TALKER, PREDICTOR, SpeechFinished("length"), count=warm + frames) for name in names))
    figures = {"frames": frames, "ms_per_frame": round(taken, 3), "talker_ms": round(computing / frames * 1e3, 3)}
    # A frame is 80 ms of sound.
    return finite and seqs == count * (warm + frames), figures | {"real_time_factor": round(taken / 80, 3)}


def predict(setup: Setup, largest: int) -> None:
    """Run the code predictor's stage in a worker's loop; the main function of the second process."""
    model = RandomModel(_own(setup.directory), setup.device, small=setup.small)
    stage = CodePredictor(model.context(PREDICTOR, CodePredictorOptions(max_batch=largest)))
    while not stage._graphs.complete if stage._graphs is not None else False:
        stage.step()
    ends = _Ends(setup, PREDICTOR, TALKER)
    ends.send(End("ready", PREDICTOR, TALKER))
    while os.getppid() != 1:
        for message in ends.await_one(120):
            stage.receive(message)
        while stage.has_work:
            ends.send(*(message for message in stage.step() if not isinstance(message, End)))


def _own(directory: Path) -> Path:
    own = directory / "predictor"
    own.mkdir(exist_ok=True)
    return own
