"""The thinker's request, made from a client's request over the wire, equals the inputs of the reference's thinker."""

import select
from typing import Any

import pytest
import torch
from cases import conversations
from conversations import Case, names, reference_inputs, start_of

from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Claim, Start
from stages.encoders.audio_encoder import AudioEncoder
from stages.encoders.image_encoder import ImageEncoder
from stages.messages import ThinkerRequest
from stages.mm_aggregate.stage import Aggregate
from stages.preprocessing import Preprocessing
from stages.topology import QWEN3_OMNI

CASES = conversations()


class MediaPath:
    """Runs the four stages. Every message between two stages is encoded and decoded, as between processes."""

    def __init__(self, stage_context: Any) -> None:
        factories = (Preprocessing, ImageEncoder, AudioEncoder, Aggregate)
        names_ = ("preprocessing", "image_encoder", "audio_encoder", "mm_aggregate")
        self.stages = {name: factory(stage_context(name)) for name, factory in zip(names_, factories, strict=True)}
        self.codec = Codec(QWEN3_OMNI.body_types())

    def send(self, message: Any) -> Any:
        return self.codec.decode([bytes(frame) for frame in self.codec.encode(message)])

    def run(self, *starts: Start[Any]) -> dict[str, ThinkerRequest]:
        """The thinker requests that result from `starts`, by request id."""
        for start in starts:
            self.stages["preprocessing"].receive(self.send(start))
        done = {}
        while any(stage.live() for stage in self.stages.values()):
            if not any(stage.has_work for stage in self.stages.values()):
                select.select([self.stages["preprocessing"].waits_on], [], [], 60)
            for stage in self.stages.values():
                for message in list(stage.step()) if stage.has_work else ():
                    if isinstance(message, Claim):
                        stage.grant(message.request_id)
                        continue
                    assert isinstance(message, Start), message
                    arrived = self.send(message)
                    if arrived.target == "thinker":
                        done[arrived.request_id] = arrived.body
                    else:
                        self.stages[arrived.target].receive(arrived)
        assert not any(stage.live() for stage in self.stages.values())
        return done


@pytest.fixture(scope="module")
def path(stage_context: Any) -> MediaPath:
    return MediaPath(stage_context)


def fed_to_the_reference(case: Case, processor: Any, thinker: Any) -> dict[str, Any]:
    """The arguments that the reference's thinker passes to its language model for the prompt of `case`."""
    inputs = reference_inputs(case, processor)
    seen: dict[str, Any] = {}
    hook = thinker.model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        with torch.no_grad():
            thinker.rope_deltas = None
            thinker(**inputs, use_audio_in_video=case.video.use_audio)
    finally:
        hook.remove()
    return seen


def assert_equals_reference(request: ThinkerRequest, case: Case, processor: Any, thinker: Any) -> None:
    seen = fed_to_the_reference(case, processor, thinker)
    with torch.no_grad():
        embeds = thinker.get_input_embeddings()(request.ids.torch()).clone()
    if request.media_rows is not None:
        embeds[request.media_rows.torch()] = request.media_embeds.torch()
    torch.testing.assert_close(embeds, seen["inputs_embeds"][0], rtol=0, atol=1e-5)
    if request.visual_rows is None:
        assert not seen.get("deepstack_visual_embeds")
        return
    mask = torch.zeros(len(embeds), dtype=torch.bool)
    mask[request.visual_rows.torch()] = True
    assert torch.equal(mask, seen["visual_pos_masks"][0].reshape(len(embeds), -1)[:, 0])
    expected = torch.stack([torch.as_tensor(layer) for layer in _joined(seen["deepstack_visual_embeds"])])
    torch.testing.assert_close(request.deepstack.torch(), expected, rtol=0, atol=1e-5)


def _joined(layers: Any) -> list[torch.Tensor]:
    """Joins the reference's deepstack tensors to one tensor for each layer. If a prompt has only one kind of media, the
    reference has a separate tensor for each media item.
    """
    return [torch.cat(list(layer)) if isinstance(layer, (list, tuple)) else layer for layer in layers]


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_one_request(path: MediaPath, processor: Any, thinker: Any, case: Case) -> None:
    assert_equals_reference(path.run(start_of(case))["r"], case, processor, thinker)


def test_all_requests_at_once(path: MediaPath, processor: Any, thinker: Any) -> None:
    requests = path.run(*(start_of(case, case.name) for case in CASES))
    for case in CASES:
        assert_equals_reference(requests[case.name], case, processor, thinker)


def test_media_tokens_are_counted_by_modality(path: MediaPath, processor: Any) -> None:
    case = next(case for case in CASES if case.name == "everything")
    request = path.run(start_of(case))["r"]
    ids = request.ids.torch().tolist()
    tokens = {"image": processor.image_token, "video": processor.video_token, "audio": processor.audio_token}
    counts = {kind: ids.count(processor.tokenizer.convert_tokens_to_ids(token)) for kind, token in tokens.items()}
    assert request.media_tokens == counts
