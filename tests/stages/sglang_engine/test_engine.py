"""For any mix of requests, the engine's tokens equal the reference's tokens. After the requests, none of their data
remains in the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from omni_pipeline.errors import OmniError
from stages.checkpoint.weights import read_config
from stages.messages import Sampling
from stages.options import ThinkerOptions
from stages.sglang_engine.engine import Broken, Done, Engine, Event, Generation, Prefilled, Token
from stages.sglang_engine.prompt_rows import PromptRows
from stages.thinker.stage import ARCHITECTURE, end_of_turn_id
from tests.reference import Conversation, Greedy, Reference
from tests.stages.plans import engine_bytes, needs, weight_bytes

TOKENS = 24
QUESTIONS = [
    "Hello",
    "How many cars are there in the picture?",
    "Tell me a story about a fox and a hen. " * 6,
    "1 2 3 4 5",
    "¿Qué hora es?",
    "日本の首都はどこですか",
    "a",
    "Why is the sky blue? Answer in one short sentence, please.",
]
# The cache is so small that eight answers do not fit. SGLang must take memory back from some of them.
KV_TOKENS = 640


def conversation(question: str) -> Conversation:
    return Conversation(question[:12], [{"role": "user", "content": [{"type": "text", "text": question}]}])


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> list[torch.Tensor]:
    return [reference.inputs(conversation(question))["input_ids"][0] for question in QUESTIONS]


@pytest.fixture(scope="module")
def truths(reference: Reference) -> list[Greedy]:
    return [reference.greedy(conversation(question), TOKENS) for question in QUESTIONS]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, habits: bool) -> Iterator[Engine]:
    engine = Engine(
        model_path=str(tiny_checkpoint),
        architecture=ARCHITECTURE,
        device="cpu",
        dtype=None,
        eos_ids=[end_of_turn_id(read_config(str(tiny_checkpoint)))],
        max_total_tokens=KV_TOKENS,
        max_running_requests=8,
        # SGLang also admits requests that may end early, even if they might not all fit. Later, it takes memory back
        # from some of them.
        options={"chunked_prefill_size": 32, "schedule_conservativeness": 0.1},
        tap_layer=1,
    )
    yield engine
    engine.close()


def generation(name: str, ids: torch.Tensor, logprobs: int | None = None, **sampling: object) -> Generation:
    rows = PromptRows(ids=ids, positions=None, delta=0.0)
    return Generation(name, ids, rows, Sampling(**{"max_tokens": TOKENS, **sampling}), logprobs)


def drain(engine: Engine) -> dict[str, list[Event]]:
    """Step until no work is left. Returns the events of each request."""
    events: dict[str, list[Event]] = {}
    while engine.has_work:
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    return events


def ids(events: Iterable[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def run(engine: Engine, *generations: Generation) -> list[list[Event]]:
    for one in generations:
        engine.add(one)
    events = drain(engine)
    return [events[one.request_id] for one in generations]


def test_one_request_at_a_time(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy], tiny_checkpoint: Path
) -> None:
    end_of_turn = end_of_turn_id(read_config(str(tiny_checkpoint)))
    for prompt, truth in zip(prompts, truths, strict=True):
        [events] = run(engine, generation("one", prompt))
        assert ids(events) == truth.ids
        assert isinstance(events[0], Prefilled)
        stopped = truth.ids[-1] == end_of_turn
        assert events[-1] == Done("one", "stop" if stopped else "length", end_of_turn if stopped else None)


def test_clients_take_turns_in_the_queue(engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]) -> None:
    flood = [generation(f"flood{index}", prompts[0], ignore_eos=True, sender=1) for index in range(30)]
    for one in flood:
        engine.add(one)
    began, tokens = [], []
    for step in itertools.count():
        if step == 3:
            engine.add(generation("other", prompts[1], sender=2))
            engine.add(generation("other2", prompts[1], sender=2))
        if not engine.has_work:
            break
        for event in engine.step():
            if isinstance(event, Prefilled):
                began.append(event.request_id)
            elif isinstance(event, Token) and event.request_id == "other":
                tokens.append(event.id)
    assert tokens == truths[1].ids
    # at most eight requests run at a time, so the other client has the next two turns
    assert began.index("other") <= 9
    assert began.index("other2") <= 11
    assert [name for name in began if name.startswith("flood")] == [one.request_id for one in flood]


def test_all_at_once_in_more_than_the_memory_holds(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    requests = [generation(f"r{index}", prompt, max_tokens=TOKENS) for index, prompt in enumerate(prompts)]
    filler = [generation(f"f{index}", prompts[2] + 0, max_tokens=60, ignore_eos=True) for index in range(8)]
    answers = run(engine, *filler, *requests)[len(filler) :]
    assert [ids(events) for events in answers] == [truth.ids for truth in truths]


def test_answers_survive_the_loss_of_their_memory(engine: Engine) -> None:
    """The prompts contain pictures. After a loss of memory, a second prefill needs the rows of the pictures again, and
    the talker needs the states of these rows.
    """

    def requests(pictures: int) -> list[Generation]:
        return [with_picture(f"p{index}", index, pictures, engine.hidden_size) for index in range(8)]

    before = engine.stats()["preemptions"]
    together = run(engine, *requests(pictures=1))
    assert engine.stats()["preemptions"] > before
    alone = [run(engine, request)[0] for request in requests(pictures=2)]
    assert [ids(events) for events in together] == [ids(events) for events in alone]
    for events, expected in zip(together, alone, strict=True):
        assert isinstance(events[0], Prefilled)
        assert isinstance(expected[0], Prefilled)
        torch.testing.assert_close(events[0].tapped, expected[0].tapped, rtol=0, atol=1e-5)
    assert len({tuple(ids(events)) for events in alone}) == len(alone)


def test_a_state_keeps_its_id_while_it_is_cached(engine: Engine) -> None:
    """The talker recognises the states of an earlier prompt by these ids."""

    def states(request: Generation) -> tuple[torch.Tensor, list[int]]:
        [first, *_] = run(engine, request)[0]
        assert isinstance(first, Prefilled)
        assert first.tapped is not None
        assert first.tapped_ids is not None
        assert first.tapped_ids.shape == first.tapped.shape[:1]
        return first.tapped, first.tapped_ids.tolist()

    def picture() -> Generation:
        return with_picture("picture", 3, 7, engine.hidden_size)

    first, ids = states(picture())
    again, ids_again = states(picture())
    assert ids_again == ids
    assert torch.equal(first, again)
    assert len(set(ids)) == len(ids)
    assert min(ids) >= 2**62
    assert max(ids) < 2**63

    other = picture()  # the same picture after another word
    other.cache_ids[0] = other.rows.ids[0] = 1 + other.rows.ids[0]
    _, other_ids = states(other)
    assert not {*other_ids} & {*ids}

    run(engine, generation("large", torch.arange(2, KV_TOKENS - TOKENS - 8)))  # evicts the picture
    _, computed_again = states(picture())
    assert not {*computed_again} & {*ids, *other_ids}


def with_picture(name: str, seed: int, picture: int, width: int) -> Generation:
    """A request with a long answer. Its prompt has 40 to 47 rows, and ten of them belong to a picture. `picture`
    changes only the cache ids.
    """
    random = torch.Generator().manual_seed(seed)
    prompt = torch.randint(2, 2000, (40 + seed,), generator=random)
    media = torch.arange(5, 15)
    cache_ids = prompt.clone()
    cache_ids[media] = (1 << 40) + 1000 * picture + 100 * seed + media
    rows = PromptRows(
        ids=prompt,
        positions=torch.randint(0, 40, (3, len(prompt)), generator=random).float().sort(dim=1).values,
        delta=-3.0,
        media_rows=media,
        media_embeds=torch.randn(len(media), width, generator=random),
        visual_rows=media,
        deepstack=torch.randn(3, len(media), width, generator=random),
    )
    sampling = Sampling(max_tokens=42, min_tokens=42)
    return Generation(name, cache_ids, rows, sampling, tapped_rows=media)


@torch.inference_mode()
def test_norms_and_experts_write_into_their_inputs_as_on_a_gpu(engine: Engine, habits: bool) -> None:
    layer = engine.model.model.layers[0]
    x, residual = torch.randn(2, 3, engine.hidden_size)
    normed, total = layer.input_layernorm(given := x.clone(), residual_given := residual.clone())
    assert (normed is given, total is residual_given) == (habits, habits)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, layer.input_layernorm(x + residual))
    with engine._configured():
        combined = layer.mlp(given := x.clone())
    assert torch.equal(combined, given) == habits


def test_batches_are_padded_as_on_a_gpu(
    engine: Engine, habits: bool, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    """If the CUDA habits are on, SGLang's own runner fills the buffers of a graph, and pads batches. If the CUDA habits
    are off, batches are not padded.
    """
    if not habits:
        pytest.skip("one recording serves all sizes")
    graphs = engine._scheduler.tp_worker.model_runner.decode_cuda_graph_runner
    padded: set[tuple[int, int]] = set()
    answers: dict[str, list[Event]] = {}
    for some in ([0, 1, 2], [3, 4, 5, 6, 7], [0], [7, 6]):
        for index in some:
            engine.add(generation(f"{index}", prompts[index]))
        while engine.has_work:
            for event in engine.step():
                answers.setdefault(event.request_id, []).append(event)
            padded.add((graphs.raw_bs, graphs.bs))
            # The results of padding rows are NaN, so the test would fail if they were read.
            assert graphs.buffers.next_token_logits_buffer[graphs.raw_bs : graphs.bs].isnan().all()
        for index in some:
            assert ids(answers.pop(f"{index}")) == truths[index].ids
    assert padded >= {(3, 4), (5, 8), (1, 1), (2, 2)}


def test_requests_that_join_and_leave_do_not_disturb_the_others(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    waiting = [generation(f"r{index}", prompt) for index, prompt in enumerate(prompts)]
    answers: dict[str, list[Event]] = {}
    steps = 0
    while waiting or engine.has_work:
        if waiting and steps % 3 == 0:
            engine.add(generation(f"x{steps}", prompts[(steps * 5) % 8], ignore_eos=True))
            engine.add(waiting.pop(0))
        if steps % 3 == 2:
            engine.abort(f"x{steps - 2}")
        for event in engine.step():
            answers.setdefault(event.request_id, []).append(event)
        steps += 1
    assert [ids(answers[f"r{index}"]) for index in range(8)] == [truth.ids for truth in truths]
    assert not any(isinstance(event, Done) for name, events in answers.items() if name[0] == "x" for event in events)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 8])
def test_abort_at_any_moment_ends_silently_and_frees_everything(
    engine: Engine, prompts: list[torch.Tensor], steps: int
) -> None:
    engine.add(generation("gone", torch.cat([prompts[2]] * 3), ignore_eos=True))
    for _ in range(steps):
        engine.step()
    engine.abort("gone")
    engine.abort("gone")
    assert "gone" not in drain(engine)
    assert (engine.running, engine.waiting) == (0, 0)


def test_an_id_can_be_used_again_after_its_abort(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    engine.add(generation("same", prompts[0]))
    engine.step()
    engine.abort("same")
    drain(engine)
    assert ids(run(engine, generation("same", prompts[0]))[0]) == truths[0].ids


def test_a_prompt_seen_before_is_cached(engine: Engine, prompts: list[torch.Tensor]) -> None:
    run(engine, generation("first", prompts[1]))
    [events] = run(engine, generation("again", prompts[1]))
    assert events[0] == Prefilled("again", len(prompts[1]) - 1)


def test_equal_ids_with_other_cache_ids_share_nothing(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    run(engine, generation("first", prompts[1]))
    other = generation("other", prompts[1])
    other.cache_ids = prompts[1].clone()
    other.cache_ids[0] = 1 << 30  # the first row is treated as a row of a picture, but keeps the embedding of its text
    other.rows = PromptRows(
        ids=prompts[1],
        positions=None,
        delta=0.0,
        media_rows=torch.tensor([0]),
        media_embeds=torch.zeros(1, engine.hidden_size),
    )
    [events] = run(engine, other)
    assert events[0] == Prefilled("other", 0)
    assert ids(events) != truths[1].ids


def test_a_prompt_that_cannot_fit_is_refused_and_harms_nobody(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    engine.add(generation("fine", prompts[0]))
    with pytest.raises(OmniError) as refused:
        engine.add(generation("long", prompts[0].repeat(200)))
    assert (refused.value.info.status, refused.value.info.code) == (400, "context_length_exceeded")
    assert ids(drain(engine)["fine"]) == truths[0].ids


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_a_token_beyond_the_vocabulary_is_refused_and_harms_nobody(
    field: str, engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    last = engine.vocabulary - 1
    named = {"logit_bias": lambda token: {token: -100.0}, "stop_token_ids": lambda token: [token]}[field]
    engine.add(generation("fine", prompts[0]))
    with pytest.raises(OmniError, match=f"no token {last + 1}; the model's token ids end at {last}") as refused:
        engine.add(generation("beyond", prompts[0], **{field: named(last + 1)}))
    assert (refused.value.info.status, refused.value.info.param) == (400, field)
    engine.add(generation("last", prompts[0], min_tokens=3, **{field: named(last)}))
    events = drain(engine)
    assert ids(events["fine"]) == truths[0].ids
    assert isinstance(events["last"][-1], Done)


def test_ignore_eos_goes_on_to_the_limit(engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]) -> None:
    short = min(range(8), key=lambda index: len(truths[index].ids))
    assert len(truths[short].ids) < TOKENS
    [events] = run(engine, generation("on", prompts[short], ignore_eos=True))
    assert ids(events)[: len(truths[short].ids)] == truths[short].ids
    assert len(ids(events)) == TOKENS
    assert events[-1] == Done("on", "length", None)


def test_min_tokens_holds_off_the_end(engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]) -> None:
    short = min(range(8), key=lambda index: len(truths[index].ids))
    length = len(truths[short].ids)
    [events] = run(engine, generation("on", prompts[short], min_tokens=length + 3))
    assert len(ids(events)) >= length + 3
    assert ids(events)[: length - 1] == truths[short].ids[:-1]


def test_stop_token_ids_end_the_answer(engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]) -> None:
    stop = truths[1].ids[2]
    [events] = run(engine, generation("stop", prompts[1], stop_token_ids=[stop]))
    assert ids(events) == truths[1].ids[: truths[1].ids.index(stop) + 1]
    assert events[-1] == Done("stop", "stop", stop)


def test_a_seed_repeats_alone_and_in_company(engine: Engine, prompts: list[torch.Tensor]) -> None:
    def request(name: str) -> Generation:
        return generation(name, prompts[4], temperature=1.0, top_p=0.95, min_p=0.01, seed=7, ignore_eos=True)

    [alone] = run(engine, request("alone"))
    crowd = [generation(f"c{index}", prompt, temperature=1.2) for index, prompt in enumerate(prompts[:5])]
    among = run(engine, *crowd, request("among"))[-1]
    assert ids(among) == ids(alone)
    [other] = run(engine, generation("other", prompts[4], temperature=1.0, seed=8, ignore_eos=True))
    assert ids(other) != ids(alone)


def test_logprobs_equal_the_references(
    engine: Engine, reference: Reference, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    [events] = run(engine, generation("lp", prompts[3], logprobs=4))
    tokens = [event for event in events if isinstance(event, Token)]
    sequence = torch.cat([prompts[3], torch.tensor(truths[3].ids)])[None]
    with torch.no_grad():
        logits = reference.model.thinker(
            input_ids=sequence, attention_mask=torch.ones_like(sequence), use_audio_in_video=False
        ).logits[0]
    truth = torch.log_softmax(logits[len(prompts[3]) - 1 : -1], dim=-1)
    for index, token in enumerate(tokens):
        assert token.logprob == pytest.approx(truth[index, token.id].item(), abs=1e-4)
        best = truth[index].topk(4)
        assert [alternative.id for alternative in token.alternatives] == best.indices.tolist()
        assert [alternative.logprob for alternative in token.alternatives] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )


def test_nothing_breaks_on_the_way(engine: Engine, prompts: list[torch.Tensor]) -> None:
    events = run(engine, *(generation(f"r{index}", prompt) for index, prompt in enumerate(prompts)))
    assert not any(isinstance(event, Broken) for answer in events for event in answer)


def test_weights_and_cache_take_what_the_plan_says(engine: Engine, tiny_checkpoint: Path) -> None:
    weights, token = engine_bytes(engine)
    cache = needs(tiny_checkpoint, "thinker", ThinkerOptions()).cache
    assert cache is not None
    assert weights == weight_bytes(tiny_checkpoint, "thinker")
    assert token == cache.token_bytes


def test_tables_are_made_by_the_first_step_and_stay_where_they_are(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    """In this test, a step runs before `reserve` is called. The order is the same on a GPU, where SGLang captures
    decode steps before the engine exists.
    """
    model = engine.model
    recorded, table = model.recorded, model.position_deltas
    model.recorded, model.position_deltas = None, torch.zeros(0)
    [events] = run(engine, generation("first", prompts[0]))
    assert ids(events) == truths[0].ids
    made = model.position_deltas
    assert made.shape == table.shape
    model.reserve(len(table))
    assert model.position_deltas is made
    model.recorded, model.position_deltas = recorded, table


# --- held requests ----------------------------------------------------------------------------------------------------


def test_a_held_request_waits_and_continues_with_the_same_tokens(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    for index in range(3):
        engine.add(generation(f"r{index}", prompts[index]))
    events: dict[str, list[Event]] = {f"r{index}": [] for index in range(3)}

    def step() -> None:
        for event in engine.step():
            events[event.request_id].append(event)

    while len(ids(events["r0"])) < 3:
        step()
    engine.hold(["r0", "never seen"])
    for _ in range(2):
        step()  # a held request may still be in the batch that was already formed
    kept = len(ids(events["r0"]))
    while engine.has_work:
        step()
    assert ids(events["r1"]) == truths[1].ids
    assert ids(events["r2"]) == truths[2].ids
    assert len(ids(events["r0"])) == kept < len(truths[0].ids)
    assert engine.running == 1
    engine.resume(["r0", "never seen"])
    while engine.has_work:
        step()
    assert ids(events["r0"]) == truths[0].ids
    assert engine.stats()["kv_tokens_used"] == 0


def test_held_requests_give_their_memory_to_others(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    """Held requests lose their memory when other requests need it. They are computed again later."""
    held = [generation(f"h{index}", prompts[2], max_tokens=60, ignore_eos=True) for index in range(4)]
    for one in held:
        engine.add(one)
    while engine.stats()["generated_tokens"] < 0 or len(engine.batch) < 1:
        engine.step()
    for _ in range(30):
        engine.step()
    names = [one.request_id for one in held]
    engine.hold(names)
    for index in range(4):
        engine.add(generation(f"r{index}", prompts[index]))
    events = drain(engine)
    assert [ids(events[f"r{index}"]) for index in range(4)] == [truth.ids for truth in truths[:4]]
    engine.resume(names)
    events = drain(engine)
    assert all(isinstance(events[name][-1], Done) for name in names)
    assert engine.stats()["kv_tokens_used"] == 0


def test_an_abort_frees_a_held_request(engine: Engine, prompts: list[torch.Tensor]) -> None:
    engine.add(generation("a", prompts[0], ignore_eos=True))
    while not engine.batch:
        engine.step()
    engine.hold(["a"])
    while engine.has_work:
        engine.step()
    engine.abort("a")
    assert not drain(engine)
    assert not engine.has_work
    assert engine.stats()["kv_tokens_used"] == 0


def test_a_request_that_is_held_before_its_prompt_is_computed(
    engine: Engine, prompts: list[torch.Tensor], truths: list[Greedy]
) -> None:
    engine.add(generation("a", prompts[0]))
    engine.hold(["a"])
    assert not engine.has_work
    engine.add(generation("b", prompts[1]))
    events = drain(engine)
    assert ids(events["b"]) == truths[1].ids
    engine.resume(["a"])
    later = drain(engine)
    assert ids(events.get("a", [])) + ids(later["a"]) == truths[0].ids
