"""Runs a language model: the caller adds requests, runs steps, and collects tokens. The stages use SGLang only through
this module.
"""

from __future__ import annotations

import contextlib
import io
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct

from omni_pipeline.contract.stage import Ranks
from omni_pipeline.errors import ErrorInfo, bad_request, unavailable
from omni_pipeline.os_process import free_port
from stages import cuda_habits
from stages.context_length import context_length_exceeded
from stages.grammars.matcher import Matcher
from stages.messages import FinishReason, IdLogprob, Sampling
from stages.sglang_engine import arguments, engine_config, environment
from stages.sglang_engine.prompt_rows import PromptRows, Stretch, gather
from stages.sglang_engine.tapped_ids import TappedIds

if TYPE_CHECKING:  # this import is slow, because it imports SGLang
    from stages.sglang_engine.sampler import SamplingState


class Generation(Struct):
    """One request to the engine.

    In a `FedEngine`, `rows.make` or `rows.media_embeds` must provide a row for every token of the prompt, and every
    cache id must be beyond the vocabulary.

    Attributes:
        request_id: Unique among the live requests.
        cache_ids: int64 [n], the keys for the prefix cache: token ids or, at media rows, numbers beyond the vocabulary.
            Two prompts may have the same id at an index only if their rows and their positions at this index are equal.
        rows: All other data of the prompt.
        sampling: The parameters for picking tokens; `max_tokens` must be set.
        logprobs: Number of alternatives to report with each token, or None for no log-probabilities.
        penalize_prompt: Whether the repetition penalty counts the prompt's ids too.
        suppressed: bool [vocabulary], the ids that are never picked, or None.
        tapped_rows: int64 [k], indices of the prompt tokens whose states at layer `tap_layer` are returned in
            `Prefilled.tapped`, or None.
        matcher: Finds the ids that the request's grammar allows next; None without a grammar. Needed only on rank 0,
            because all ranks use the picks of rank 0.
    """

    request_id: str
    cache_ids: torch.Tensor
    rows: PromptRows
    sampling: Sampling
    logprobs: int | None = None
    penalize_prompt: bool = True
    suppressed: torch.Tensor | None = None
    tapped_rows: torch.Tensor | None = None
    matcher: Matcher | None = None


class Prefilled(Struct):
    """A request's prompt has been computed. The first token follows. `cached_tokens` is the number of prompt tokens
    that came from the prefix cache.

    Attributes:
        tapped: The states [k, hidden] for `Generation.tapped_rows`.
        tapped_ids: int64 [k], an id for each of these states; see `TappedIds`.
    """

    request_id: str
    cached_tokens: int
    tapped: torch.Tensor | None = None
    tapped_ids: torch.Tensor | None = None


class Token(Struct):
    """One generated token.

    Attributes:
        state: The state [hidden] from which the token was picked, on the CPU. Only a `FedEngine` sets it.
    """

    request_id: str
    id: int
    logprob: float | None = None
    alternatives: list[IdLogprob] = []
    state: torch.Tensor | None = None


class Done(Struct):
    """A request has ended normally. Its id may be used again.

    Attributes:
        reason: ``stop`` if an end or stop token ended the request, ``length`` if the request reached its limit.
        matched: The token that ended the request. None if the request ended because it reached its limit.
    """

    request_id: str
    reason: FinishReason
    matched: int | None


class Broken(Struct):
    """A request has failed: SGLang has dropped or aborted it, or no further token fits its grammar."""

    request_id: str
    error: ErrorInfo


Event = Prefilled | Token | Done | Broken


@dataclass(slots=True)
class _Live:
    """The engine's record of a request while SGLang works on the request."""

    generation: Generation
    # None until the request's first step. The state reads the output ids from SGLang's request object. Before the first
    # step, this object does not exist.
    sampling: SamplingState | None = None
    sent: int = 0
    aborted: bool = False
    tapped: torch.Tensor | None = None
    tapped_ids: torch.Tensor | None = None
    token_state: torch.Tensor | None = None


class Engine:
    """Runs one model with SGLang's scheduler, in the process and thread of the caller.

    Args:
        model_path: Checkpoint directory.
        architecture: Name of a model class in the package `models`.
        device: ``cpu`` or ``cuda``.
        dtype: Name of the data type; None means float32 on a CPU and the checkpoint's type on a GPU.
        eos_ids: Tokens that end a sequence.
        max_total_tokens: Size of the KV cache in tokens. On a GPU, None means that SGLang decides.
        max_running_requests: Maximum number of sequences in one batch.
        options: Further SGLang server arguments.
        tap_layer: Decoder layer whose input states are kept for prompt tokens, so that they can be requested
            (`Generation.tapped_rows`). None if no states are kept.
        ranks: The processes that run the model's parts. All these processes must create their engines at the same time.
            After that, they must make the same calls in the same order.
        static_bytes: Bytes of each GPU for weights and KV cache; None means that SGLang decides.

    Attributes:
        batch: Ids of the requests in the batch of the latest step.

    Raises:
        StartupError: `options` contains an argument that SGLang does not have or that must not be set.
    """

    def __init__(
        self,
        *,
        model_path: str,
        architecture: str,
        device: str,
        dtype: str | None,
        eos_ids: Sequence[int],
        max_total_tokens: int | None,
        max_running_requests: int,
        options: dict[str, Any],
        tap_layer: int | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
        static_bytes: int | None = None,
    ) -> None:
        environment.prepare()
        if device == "cpu" and ranks.size > 1:
            environment.bind_cpus(ranks.size)
            # otherwise SGLang compiles the look-up in a vocabulary that is divided among ranks
            torch.compiler.set_stance("force_eager")
        from sglang.srt.runtime_context import get_parallel
        from sglang.srt.server_args import PortArgs

        from stages.sglang_engine import process
        from stages.sglang_engine.compiled_layers import CompiledLayers
        from stages.sglang_engine.decode_trace import DecodeTrace
        from stages.sglang_engine.process_groups import quiet_single_rank_groups
        from stages.sglang_engine.sampler import OmniSampler

        server_args = arguments.server_arguments(
            model_path=model_path,
            architecture=architecture,
            device=device,
            dtype=dtype,
            max_total_tokens=max_total_tokens,
            max_running_requests=max_running_requests,
            engine=options,
            tp_size=ranks.size,
            static_bytes=static_bytes,
            overrides=engine_config.overrides(model_path, architecture, device),
        )
        self._configured = process.configure(server_args, ranks.rank)
        unused = "ipc://unused"
        ports = PortArgs(
            tokenizer_ipc_name=unused,
            scheduler_input_ipc_name=unused,
            detokenizer_ipc_name=unused,
            nccl_port=ranks.port or free_port(),
            rpc_ipc_name=unused,
            metrics_ipc_name=unused,
            tokenizer_worker_ipc_name=None,
            decoupled_spec_ipc_config=None,
        )
        self._eos_ids = frozenset(eos_ids)
        self._live: dict[str, _Live] = {}
        self._events: list[Event] = []
        self._counts = Counter[str]()
        self._held: set[str] = set()  # requests that must not decode now
        self._stalled = False  # the latest step found no batch to run, and nothing has changed since
        self.batch: list[str] = []
        # SGLang draws progress bars on stderr while it loads. They are discarded, because the supervisor shows the
        # progress.
        with self._configured(), quiet_single_rank_groups(), contextlib.redirect_stderr(io.StringIO()):
            self._scheduler = self._make_scheduler(server_args, ports)
            runner = self._scheduler.tp_worker.model_runner
            self._sampler = runner.sampler = OmniSampler()
            if ranks.size > 1:
                self._sampler.group = get_parallel().tp_group
        self._scheduler.on_progress = self._progress
        self._scheduler.on_dropped = self._dropped
        self._scheduler.on_batch = self._prepare
        self._scheduler.on_computed = self._collect_states
        self._scheduler.sender_of = self._sender_of
        self._model = runner.model
        self._device = torch.device(device)
        self._dtype = runner.dtype
        self._picks_few = device == "cpu" and not cuda_habits.enabled()
        self._pool = runner.req_to_token_pool.req_to_token
        self._model.reserve(len(self._pool))
        self._tapped_ids: TappedIds | None = None
        if tap_layer is not None:
            # Reserve one KV-cache page more than the tokens need, because padding rows write to the first page.
            tokens = int(self._scheduler.max_total_num_tokens) + int(self._scheduler.page_size)
            self._model.tap(tap_layer, tokens)
            self._tapped_ids = TappedIds(tokens)
        # a recording cannot contain communication between ranks
        single = server_args.tp_size == server_args.pp_size == 1
        if device == "cpu" and single and runner.decode_cuda_graph_runner is None:
            self._model.logits_processor.pack(self._model.lm_head)
            cache = runner.token_to_kv_pool
            if CompiledLayers.suits(self._model, cache):
                self._model.compiled = CompiledLayers(self._model, cache, self._pool)
            else:
                self._model.recorded = DecodeTrace(self._model, runner.attn_backend, cache)

    @property
    def capacity(self) -> int:
        """Maximum number of tokens of one sequence, prompt and output together."""
        return int(self._scheduler.max_req_len)

    @property
    def model(self) -> Any:
        """The model. The stage itself calls some of the model's layers, which the engine does not run."""
        return self._model

    @torch.inference_mode()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [n, hidden] of the model's own embedding table for ids int64 [n]."""
        with self._configured():
            return self._model.model.embed_tokens(ids.to(self._device))

    @property
    def hidden_size(self) -> int:
        """Width of an embedding row."""
        return int(self._model.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Number of token ids, 0 … n-1."""
        return int(self._model.config.vocab_size)

    @property
    def has_work(self) -> bool:
        if self._stalled:
            return False
        return any(live.aborted or request_id not in self._held for request_id, live in self._live.items())

    @property
    def running(self) -> int:
        """Number of running sequences; in a `FedEngine` this includes sequences that wait to be fed."""
        return len(self._live) - self.waiting

    @property
    def waiting(self) -> int:
        """Number of sequences that wait for a place in the batch or for memory in the KV cache."""
        return len(self._scheduler.waiting_queue) + len(self._scheduler.displaced)

    def stats(self) -> dict[str, float]:
        """The engine's metrics for `StageStats.extra`."""
        scheduler = self._scheduler
        total = int(scheduler.max_total_num_tokens)
        cached = int(scheduler.tree_cache.evictable_size())
        return {
            "queued_requests": self.waiting,
            "running_requests": self.running,
            "kv_tokens_used": total - int(scheduler.token_to_kv_pool_allocator.available_size()) - cached,
            "kv_tokens_cached": cached,
            "kv_tokens_limit": total,
            "prompt_tokens": self._counts["prompt"],
            "prompt_tokens_cached": self._counts["cached"],
            "generated_tokens": self._counts["generated"],
            "preemptions": int(scheduler.retractions),
        }

    def add(self, generation: Generation) -> None:
        """Queue a request.

        Raises:
            OmniError: 400, the prompt does not fit, or an option contains a token that the vocabulary does not have.
        """
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        sampling = generation.sampling
        assert sampling.max_tokens is not None
        prompt = len(generation.cache_ids)
        spare = self._spare_tokens(sampling)
        limit = min(self.capacity - 1 - spare, int(self._scheduler.max_req_input_len) - 1)
        if prompt > limit:
            raise context_length_exceeded(limit, f"{prompt} tokens")
        # An invalid id must not get into a batch. With such an id, the step and every request of the batch would fail.
        _check_ids("logit_bias", sampling.logit_bias, self.vocabulary)
        _check_ids("stop_token_ids", sampling.stop_token_ids, self.vocabulary)
        # SGLang gets greedy parameters without penalties, because the module `sampler` applies the request's parameters
        # itself. A text with a grammar ends where the grammar allows only the end, even if the client sets
        # `ignore_eos`.
        ignore_eos = sampling.ignore_eos and sampling.grammar is None
        params = SamplingParams(
            temperature=0.0,
            max_new_tokens=min(sampling.max_tokens, self.capacity - prompt - spare),
            stop_token_ids=set() if ignore_eos else {*self._eos_ids, *sampling.stop_token_ids},
            ignore_eos=ignore_eos,
        )
        params.normalize(None)
        self._live[generation.request_id] = _Live(generation)
        self._stalled = False
        request = TokenizedGenerateReqInput(
            rid=generation.request_id,
            input_text="",
            input_ids=array("q", generation.cache_ids.numpy().tobytes()),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=params,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=True,
        )
        with self._configured():
            self._scheduler.process_input_requests([request])

    def abort(self, request_id: str) -> None:
        """Drop a request; there are no further events for it. Its memory is free after the next step at the latest."""
        live = self._live.get(request_id)
        if live is not None and not live.aborted:
            live.aborted = True
            self._abort(request_id)

    def hold(self, request_ids: Iterable[str]) -> None:
        """Leave requests out of the batch until they are resumed. Unknown ids are ignored."""
        self._held.update(request_id for request_id in request_ids if request_id in self._live)

    def resume(self, request_ids: Iterable[str]) -> None:
        """Let held requests decode again. Other ids are ignored."""
        self._held.difference_update(request_ids)
        self._stalled = False

    def close(self) -> None:
        """Leave torch.distributed, which occupies a port."""
        from stages.sglang_engine import process

        process.leave()

    @torch.inference_mode()
    def step(self, *, decode_first: bool = False) -> list[Event]:
        """Run one batch. Returns its events.

        Args:
            decode_first: If true, new prompts wait while other requests can decode. If false, new prompts are computed
                first.
        """
        self.batch = []
        self._scheduler.decode_first = decode_first
        with self._configured():
            self._run_batch()
        self._end_stuck()
        events, self._events = self._events, []
        return events

    def _end_stuck(self) -> None:
        """End the requests of the batch for which no further token fits the grammar."""
        for request_id, row in zip(self.batch, self._sampler.rows, strict=False):
            live = self._live.get(request_id)
            if row.matcher is None or row.matcher.error is None or (live is not None and live.aborted):
                continue
            self._events = [event for event in self._events if event.request_id != request_id]
            self._events.append(Broken(request_id, row.matcher.error.info))
            self.abort(request_id)

    def _spare_tokens(self, sampling: Sampling) -> int:
        """Number of tokens for which the KV cache must have room in addition to the request's prompt and its maximum
        output. If the cache is too small, SGLang never starts the request, even if no other request runs.
        """
        uncached = getattr(self._scheduler.tree_cache, "disable", True)
        # For a request of fixed length and without a prefix cache, SGLang rounds the length of the prompt up to whole
        # pages, and adds a page.
        return 2 * int(self._scheduler.page_size) if sampling.ignore_eos and uncached else 1

    def _make_scheduler(self, *arguments: Any) -> Any:
        from stages.sglang_engine.parking import ParkingScheduler

        return ParkingScheduler(*arguments)

    def _sender_of(self, request_id: str) -> int:
        live = self._live.get(request_id)
        return 0 if live is None else live.generation.sampling.sender

    def _abort(self, request_id: str) -> None:
        """Drop a request. If it waits outside SGLang's batch, its memory is free at once."""
        from sglang.srt.managers.io_struct import AbortReq

        self._held.discard(request_id)
        self._stalled = False
        with self._configured():
            if not self._scheduler.drop_waiting(request_id):
                self._scheduler.abort_request(AbortReq(rid=request_id))

    def _run_batch(self) -> None:
        """Let SGLang run one batch without the requests that must not decode now."""
        if self._held or self._scheduler.waits:
            self._stalled = not self._scheduler.step_ready(_Without(self._held))
        else:
            self._scheduler.step()

    def _prepare(self, batch: Any) -> None:
        self.batch = [req.rid for req in batch.reqs]
        self._sampler.expect([self._state(req) for req in batch.reqs])
        if not batch.forward_mode.is_extend():
            self._model.prefill = None
            return
        self._model.prefill = gather(
            [
                Stretch(self._live[req.rid].generation.rows, slot, req.prefix_len, req.extend_end)
                for req, slot in zip(batch.reqs, _slots(batch), strict=True)
            ],
            self._device,
            self._dtype,
        )

    def _collect_states(self, batch: Any) -> None:
        """Fetch the hidden states that stages need. Called while the requests of the batch still have their KV
        memory.
        """
        if self._tapped_ids is None or not batch.forward_mode.is_extend():
            return
        self._tapped_ids.renew(batch.out_cache_loc)
        for req, slot in zip(batch.reqs, _slots(batch), strict=True):
            live = self._live[req.rid]
            wanted, prompt = live.generation.tapped_rows, len(live.generation.rows.ids)
            if wanted is not None and live.tapped is None and req.extend_end >= prompt:
                places = self._pool[slot, wanted.to(self._device)].long()
                live.tapped = self._model.tapped[places]
                live.tapped_ids = self._tapped_ids.of(places)

    def _state(self, req: Any) -> SamplingState:
        live = self._live[req.rid]
        if live.sampling is None:
            from stages.sglang_engine.sampler import SamplingState

            generation = live.generation
            live.sampling = SamplingState(
                generation.sampling,
                prompt_ids=generation.rows.ids if generation.penalize_prompt else generation.rows.ids[:0],
                output_ids=req.output_ids,
                eos_ids=[*self._eos_ids, *generation.sampling.stop_token_ids],
                logprobs=generation.logprobs,
                suppressed=generation.suppressed,
                matcher=generation.matcher,
                picks_few=self._picks_few,
            )
        return live.sampling

    def _progress(self, req: Any) -> None:
        live = self._live.get(req.rid)
        if live is None:
            return
        if not live.aborted:
            if not live.sent and req.output_ids:
                self._events.append(Prefilled(req.rid, req.cached_tokens, live.tapped, live.tapped_ids))
                self._counts["prompt"] += len(live.generation.rows.ids)
                self._counts["cached"] += req.cached_tokens
            self._counts["generated"] += len(req.output_ids) - live.sent
            for token in req.output_ids[live.sent :]:
                event = Token(req.rid, token, state=live.token_state)
                if live.sampling is not None and live.sampling.picked is not None:
                    event.logprob, event.alternatives = live.sampling.picked
                self._events.append(event)
            live.sent = len(req.output_ids)
        if req.finished():
            del self._live[req.rid]
            self._held.discard(req.rid)
            if not live.aborted:
                self._events.append(_ending(req))

    def _dropped(self, request_id: str) -> None:
        live = self._live.pop(request_id, None)
        self._held.discard(request_id)
        if live is not None and not live.aborted:
            self._events.append(_broken(request_id, "SGLang's scheduler dropped the request"))


class _Without(Container[str]):
    """All request ids except the given ones."""

    def __init__(self, held: Container[str]) -> None:
        self._held = held

    def __contains__(self, request_id: object) -> bool:
        return request_id not in self._held


def _slots(batch: Any) -> list[int]:
    """KV-pool slots of a batch's requests, from the copy that SGLang keeps on the CPU."""
    slots: list[int] = batch.req_pool_indices_cpu.tolist()
    return slots


def _ending(req: Any) -> Event:
    reason = req.finished_reason.to_json()
    if reason["type"] == "abort":
        return _broken(req.rid, reason.get("message") or "SGLang's scheduler aborted the request")
    stopped = reason["type"] == "stop"
    return Done(
        req.rid,
        reason="stop" if stopped else "length",
        matched=reason.get("matched") if stopped else None,
    )


def _broken(request_id: str, message: str) -> Broken:
    return Broken(request_id, unavailable(message, code="engine", retry_after=None).info)


def _check_ids(field: str, ids: Iterable[int], vocabulary: int) -> None:
    beyond = max(ids, default=0)
    if beyond >= vocabulary:
        raise bad_request(
            f"Invalid '{field}': there is no token {beyond}; the model's token ids end at {vocabulary - 1}.",
            param=field,
            code="invalid_value",
        )
