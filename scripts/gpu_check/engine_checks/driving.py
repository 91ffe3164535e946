"""Runs an engine, and keeps the results for each request: ids, the logits from which they were picked, and states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_check.running.setup import Setup
from stages.messages import Sampling
from stages.sglang_engine.engine import Engine, Generation, Prefilled, Token
from stages.sglang_engine.fed_engine import FedEngine
from stages.sglang_engine.prompt_rows import PromptRows

CACHE_TOKENS = 32768


@dataclass
class EngineAnswer:
    """An engine's results for one request.

    Attributes:
        ids: The picked ids.
        logits: The logits of each pick, float32 [vocabulary], on the CPU.
        states: The state [hidden] of each pick. Only a `FedEngine` returns these states.
        tapped: The hidden states of the prompt that the engine copied for the talker, or None if they were not
            requested.
    """

    ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    tapped: torch.Tensor | None = None


class Driven:
    """An engine whose logits are recorded.

    Args:
        eager: Whether decode steps are computed without captured graphs.
        tokens: Size of the KV cache.
    """

    def __init__(
        self, setup: Setup, path: Path | str, architecture: str, *, eager: bool = False, tokens: int = CACHE_TOKENS,
        requests: int = 32, fed: bool = False, tap_layer: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if setup.device == "cuda":
            options = {"attention_backend": "triton", "sampling_backend": "pytorch", **options}
            if eager:
                options["disable_cuda_graph"] = True
        self.engine = (FedEngine if fed else Engine)(
            model_path=str(path),
            architecture=architecture,
            device=setup.device,
            dtype="bfloat16" if setup.device == "cuda" else None,
            eos_ids=[],
            max_total_tokens=tokens,
            max_running_requests=requests,
            options=options,
            tap_layer=tap_layer,
        )
        if eager:
            self.engine.model.recorded = None
        # Without end ids, no request ends before its limit. `ignore_eos` would have the same effect. But with
        # `ignore_eos`, SGLang admits only as many requests as can finish without a retraction. In a retraction, SGLang
        # takes the memory of a running request, and computes the request again later.
        self.engine._scheduler.model_config.hf_eos_token_id = set()
        self._logits: list[torch.Tensor] = []
        sampler: Any = self.engine._sampler
        pick = sampler.forward

        def noted(output: Any, *rest: Any, **more: Any) -> torch.Tensor:
            self._logits = list(output.next_token_logits.float().cpu())
            ids: torch.Tensor = pick(output, *rest, **more)
            return ids

        sampler.forward = noted

    @property
    def captured(self) -> list[int]:
        """Batch sizes of captured decode steps; empty if nothing is captured."""
        runner: Any = self.engine._scheduler.tp_worker.model_runner
        return sorted(getattr(getattr(runner, "decode_cuda_graph_runner", None), "capture_bs", None) or [])

    def run(
        self, prompts: Mapping[str, Generation], rows: Callable[[str, int], torch.Tensor] | None = None,
        late: Callable[[str, int], bool] = lambda name, step: False,
    ) -> dict[str, EngineAnswer]:  # fmt: skip
        """Run all requests at once until each has ended.

        Args:
            rows: Returns the input row for the step after a request's n-th pick. Only a `FedEngine` needs it.
            late: Returns whether a request's row is held back for one step, so that this step runs without the request.
        """
        answers = {name: EngineAnswer() for name in prompts}
        limits = {name: generation.sampling.max_tokens or 0 for name, generation in prompts.items()}
        for generation in prompts.values():
            self.engine.add(generation)
        due: dict[str, torch.Tensor] = {}
        step = 0
        while self.engine.has_work or due:
            for name in [name for name in due if not late(name, step)]:
                row = due.pop(name)
                assert isinstance(self.engine, FedEngine)
                self.engine.feed(name, row, torch.zeros_like(row))
            step += 1
            if not self.engine.has_work:
                continue
            for event in self.engine.step():
                answer = answers[event.request_id]
                if isinstance(event, Prefilled):
                    answer.tapped = event.tapped
                elif isinstance(event, Token):
                    self._note(answer, event)
                    if rows is not None and len(answer.ids) < limits[event.request_id]:
                        due[event.request_id] = rows(event.request_id, len(answer.ids))
        return answers

    def _note(self, answer: EngineAnswer, event: Token) -> None:
        answer.ids.append(event.id)
        answer.logits.append(self._logits[list(self.engine.batch).index(event.request_id)])
        if event.state is not None:
            answer.states.append(event.state.float().cpu())

    def close(self) -> None:
        self.engine.close()


def text(name: str, ids: torch.Tensor, tokens: int, tapped: torch.Tensor | None = None) -> Generation:
    """A greedy request for `tokens` new tokens. `ids` is the prompt, int64 [n]."""
    sampling = Sampling(max_tokens=tokens)
    return Generation(name, ids, PromptRows(ids=ids, positions=None, delta=0.0), sampling, tapped_rows=tapped)


@dataclass
class Difference:
    """The differences between two runs of the same greedy requests.

    Attributes:
        logits: The largest difference of a logit, up to the first pick that differs.
        parted: Number of requests in which a pick differs.
        wrong: Number of requests that differ in a way that rounding cannot explain. Either the answers differ in
            length, or a pick differs although the logits of the two picks were far apart in the first run. "Far apart"
            means further than twice the allowed difference.
    """

    logits: float = 0.0
    parted: int = 0
    wrong: int = 0
    compared: int = 0


def difference(first: Mapping[str, EngineAnswer], second: Mapping[str, EngineAnswer], allowed: float) -> Difference:
    """Compare two runs pick by pick. A pick may differ if, in the first run, the logits of the two picks are at most
    twice `allowed` apart.
    """
    found = Difference()
    for name, one in first.items():
        other = second[name]
        if len(one.ids) != len(other.ids):
            found.wrong += 1
        for a, b, ours, theirs in zip(one.ids, other.ids, one.logits, other.logits, strict=False):
            found.logits = max(found.logits, float((ours - theirs).abs().max()))
            found.compared += 1
            if a != b:
                found.parted += 1
                found.wrong += float(ours[a] - ours[b]) > 2 * allowed
                break
    return found


def prompts(path: Path | str, count: int) -> list[torch.Tensor]:
    """Questions of several lengths in the model's chat format, each int64 [n]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path))
    said = ["Hello", "Who are you?", "How many cars are there?", "What do you see? " * 12, "Draw a house."]
    turn = "<|im_start|>user\n{} {}<|im_end|>\n<|im_start|>assistant\n"
    return [torch.tensor(tokenizer(turn.format(said[n % len(said)], n))["input_ids"]) for n in range(count)]


def named(generations: Sequence[Generation]) -> dict[str, Generation]:
    """The requests by their ids."""
    return {generation.request_id: generation for generation in generations}
