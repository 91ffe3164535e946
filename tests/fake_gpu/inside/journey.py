"""Runs requests through the real engines on a fake GPU, and records the copies, kernels and graphs of each step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from msgspec import Struct, to_builtins

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Chunk, End, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    Finished,
    FrameFeedback,
    FrameSeed,
    Sampling,
    SpeechOptions,
    TalkerPrompt,
    Tokens,
)
from stages.options import TalkerOptions
from stages.sglang_engine.engine import Broken, Engine, Generation, Prefilled
from stages.sglang_engine.prompt_rows import PromptRows
from stages.talker_ar.stage import Talker
from tests.cuda_rules import CudaRules
from tests.fake_gpu.inside import kernels

# Size of the KV cache in tokens. It is too small for all requests at the end of a journey, so that SGLang takes memory
# back from some requests.
KV_TOKENS = 192

# The functions in which SGLang reads numbers from the device while it starts.
_READS = ["sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner.capture_prepare"]

_SAMPLED: dict[str, Any] = {
    "temperature": 0.9, "top_k": 50, "top_p": 0.8, "min_p": 0.1, "seed": 1, "repetition_penalty": 1.1,
    "presence_penalty": 0.5, "logit_bias": {5: 1.0}, "min_tokens": 3,
}  # fmt: skip


class Step(Struct):
    """The record of one step of an engine: its copies, kernels and graphs.

    Attributes:
        phase: Phase of the journey.
        prefill: Whether the step computed prompts.
        batch: Ids of the requests that the step computed.
        to_host, to_device: Number of copies, by the function that made them.
        kernels: Number of kernels launched outside graphs.
        graphs: Number of graphs replayed.
        cached: For each finished prompt, the number of its tokens that were in the cache.
        tapped: Shape, type and device of tapped states, by request.
    """

    phase: str
    prefill: bool
    batch: list[str]
    to_host: dict[str, int]
    to_device: dict[str, int]
    kernels: int
    graphs: int
    cached: dict[str, int] = {}
    tapped: dict[str, list[Any]] = {}


class Journey:
    """Steps an engine and records each step.

    Args:
        engine: An engine that has captured its graphs and has not stepped yet.
    """

    def __init__(self, rules: CudaRules, engine: Engine) -> None:
        self.rules = rules
        self.engine = engine
        self.captures = list(rules.captures)
        rules.forget()
        self.phase = ""
        self.steps: list[Step] = []

    def note(self, run: Callable[[], Any]) -> Any:
        """Run a function that steps the engine once, and record the step. The record includes all operations since the
        previous step.
        """
        result = run()
        self.steps.append(
            Step(
                phase=self.phase,
                prefill=self.engine.model.prefill is not None,
                batch=list(self.engine.batch),
                to_host=dict(self.rules.to_host),
                to_device=dict(self.rules.to_device),
                kernels=self.rules.kernels.total() - self.rules.kernels["graph"],
                graphs=self.rules.kernels["graph"],
            )
        )
        self.rules.forget()
        return result

    def step(self, times: int = 1) -> None:
        """Step an engine that needs no frames from a predictor."""
        for _ in range(times):
            events = self.note(self.engine.step)
            for event in events:
                assert not isinstance(event, Broken), event
                if isinstance(event, Prefilled):
                    self.steps[-1].cached[event.request_id] = event.cached_tokens
                    if event.tapped is not None:
                        told = list(event.tapped.shape), str(event.tapped.dtype), event.tapped.device.type
                        self.steps[-1].tapped[event.request_id] = list(told)

    def finish(self) -> None:
        """Step until all requests are done."""
        while self.engine.has_work:
            self.step()

    def told(self) -> dict[str, Any]:
        """The complete record of the journey, as values that JSON can represent."""
        return {
            "steps": to_builtins(self.steps),
            "captures": self.captures,
            "hidden": self.engine.hidden_size,
            "preemptions": self.engine.stats()["preemptions"],
            "cached": self.engine.stats()["prompt_tokens_cached"],
        }


def thinker(model_path: str, fault: str | None = None) -> dict[str, Any]:
    """Run these phases: text, a clip in chunks, the same clip again, greedy and sampled batches of all sizes, and more
    requests at once than fit.
    """
    with _on_gpu() as rules, _FAULTS[fault]():
        engine = Engine(
            model_path=model_path,
            architecture="Qwen3OmniThinker",
            device="cuda",
            dtype="bfloat16",
            eos_ids=[3],
            max_total_tokens=KV_TOKENS,
            max_running_requests=8,
            options={"chunked_prefill_size": 32},
            tap_layer=1,
            static_bytes=2**30,
        )
        journey = Journey(rules, engine)
        journey.phase = "text"
        engine.add(_request("text", 10, engine))
        journey.step(3)
        journey.phase = "clip"
        engine.add(_request("clip", 70, engine, clip=True))
        journey.step(4)
        journey.phase = "again"
        engine.add(_request("again", 70, engine, clip=True))
        journey.step(2)
        engine.abort("text")
        journey.finish()
        for phase, params in (("greedy", {}), ("sampled", _SAMPLED)):
            for size in (1, 2, 3, 5):
                journey.phase = f"{phase} {size}"
                for index in range(size):
                    engine.add(_request(f"{phase}{size}.{index}", 10, engine, max_tokens=3, **params))
                journey.finish()
        journey.phase = "too many"
        for index in range(8):
            engine.add(_request(f"many{index}", 15 + index, engine, clip=True, max_tokens=24))
        journey.finish()
        return journey.told()


def talker(model_path: str) -> dict[str, Any]:
    """Run these phases: utterances that begin one after the other, an utterance that waits for its text, an aborted
    utterance, and more utterances than fit.
    """
    with _on_gpu() as rules:
        options = TalkerOptions(
            dtype="bfloat16",
            max_total_tokens=KV_TOKENS,
            max_running_requests=8,
            engine={"chunked_prefill_size": 16},
        )
        stages = frozenset({"talker_ar"})
        ring = _Ring(rules, Talker(StageContext("talker_ar", model_path, "cuda", options, stages, tempfile.mkdtemp())))
        for size in (1, 2, 3, 5):
            ring.phase(f"voices {size}")
            for index in range(size):
                ring.begin(f"v{size}.{index}", frames=2)
            ring.run()
        ring.phase("waiting")
        ring.begin("stays", frames=6)
        ring.begin("waits", frames=6, ended=False)
        ring.begin("goes", frames=6)
        ring.run(turns=6)
        ring.talker.abort("goes")
        ring.run()
        ring.end("waits")
        ring.run()
        ring.phase("too many")
        for index in range(8):
            ring.begin(f"m{index}", frames=20, length=8 + index, first_id=100 * (1 + index))
            ring.run(turns=1)
        ring.run()
        return ring.journey.told()


class _Ring:
    """Sends the talker the messages that it would get from the thinker and from the predictor. The predictor's results
    are replaced by zeros.
    """

    def __init__(self, rules: CudaRules, stage: Talker) -> None:
        self.talker = stage
        self.journey = Journey(rules, stage._engine)
        self._due: list[str] = []

    def phase(self, name: str) -> None:
        self.journey.phase = name

    def begin(self, name: str, *, frames: int, length: int = 12, first_id: int = 0, ended: bool = True) -> None:
        """Send a prompt with media rows, and text. The end of the text is sent only if requested. Prompts of the same
        length and with the same `first_id` are equal.
        """
        ids = torch.arange(first_id, first_id + length)
        heard = torch.arange(2, length - 2)
        sampling = Sampling(temperature=0.9, top_k=50, repetition_penalty=1.05, max_tokens=frames + 1)
        prompt = TalkerPrompt(
            ids=Tensor.of(ids),
            media_rows=Tensor.of(heard),
            media_hidden=Tensor.of(torch.zeros(len(heard), self.journey.engine.model.config.thinker_hidden_size)),
            assistant_ids=[1, 2, 3],
            positions=None,
            position_delta=0.0,
            speech=SpeechOptions("ethan", sampling, sampling, streamed=False),
            media_ids=Tensor.of(2**62 + heard),
        )
        self.talker.receive(Start(name, "thinker", "talker_ar", prompt))
        self.talker.receive(Chunk(name, "thinker", "talker_ar", Tokens([5, 6])))
        if ended:
            self.end(name)

    def end(self, name: str) -> None:
        self.talker.receive(End(name, "thinker", "talker_ar", Finished("stop", None)))

    def run(self, turns: int | None = None) -> None:
        """Step the talker and send it the predictor's results, until there is nothing left to do, or at most `turns`
        times.
        """
        while (self.talker.has_work or self._due) and turns != 0:
            turns = None if turns is None else turns - 1
            due, self._due = self._due, []
            for name in due:
                row = torch.zeros(self.journey.engine.hidden_size, dtype=torch.bfloat16)
                self.talker.receive(Chunk(name, "code_predictor", "talker_ar", FrameFeedback(Tensor.of(row))))
            if not self.talker.has_work:
                continue
            for message in self._stepped():
                assert not isinstance(message, Failed), message
                if isinstance(message, Chunk) and isinstance(message.body, FrameSeed):
                    self._due.append(message.request_id)

    def _stepped(self) -> list[Any]:
        """The messages of one step of the talker. Each message is encoded, as if it were sent to another process."""
        codec = Codec({})

        def step() -> list[Any]:
            messages = list(self.talker.step())
            for message in messages:
                codec.encode(message)
            return messages

        messages = self.journey.note(step)
        if not self.talker.batch:  # in this case, the step computed nothing and only sent messages
            self.journey.steps.pop()
        return messages


@contextmanager
def _on_gpu() -> Iterator[CudaRules]:
    with CudaRules(reads=_READS, beyond=kernels.RESULTS) as rules, kernels.installed(rules):
        yield rules


def _request(
    name: str, length: int, engine: Engine, *, clip: bool = False, max_tokens: int = 12, **params: Any
) -> Generation:
    """A request whose prompt has `length` tokens. Without `clip`, the prompt is text. With `clip`, most of the prompt's
    tokens are rows of a clip, with deepstack.
    """
    ids = torch.arange(length) + 10
    sampling = Sampling(max_tokens=max_tokens, **params)
    if not clip:
        return Generation(name, ids, PromptRows(ids, None, 0.0), sampling, logprobs=2 if params else None)
    places = torch.arange(2, length - 2)
    rows = PromptRows(
        ids=ids,
        positions=torch.zeros(3, length),
        delta=-3.5,
        media_rows=places,
        media_embeds=torch.zeros(len(places), engine.hidden_size),
        visual_rows=places,
        deepstack=torch.zeros(3, len(places), engine.hidden_size),
    )
    return Generation(name, ids, rows, sampling, tapped_rows=places)


@contextmanager
def _read_planted() -> Iterator[None]:
    """Plants a fault: the computation of the rotary angles reads the largest position from the device."""
    from stages.sglang_engine.rotary import InterleavedAngles

    forward = InterleavedAngles.forward
    with mock.patch.object(
        InterleavedAngles, "forward", lambda self, at: forward(self, at) if at.max() < 2**20 else None
    ):
        yield


@contextmanager
def _device_planted() -> Iterator[None]:
    """Plants a fault: the frequencies of the rotary embedding stay on the CPU."""
    from stages.sglang_engine.rotary import InterleavedAngles

    init = InterleavedAngles.__init__

    def on_cpu(self: Any, *arguments: Any) -> None:
        with torch.device("cpu"):
            init(self, *arguments)

    with mock.patch.object(InterleavedAngles, "__init__", on_cpu):
        yield


@contextmanager
def _type_planted() -> Iterator[None]:
    """Plants a fault: queries and keys are rotated by angles in float32."""
    from stages.sglang_engine.rotary import ApplyAngles

    rotate = ApplyAngles._rotate
    with mock.patch.object(
        ApplyAngles, "_rotate", lambda self, flat, cos, sin: rotate(self, flat, cos.float(), sin.float())
    ):
        yield


@contextmanager
def _nothing_planted() -> Iterator[None]:
    yield


_FAULTS = {None: _nothing_planted, "read": _read_planted, "device": _device_planted, "type": _type_planted}
