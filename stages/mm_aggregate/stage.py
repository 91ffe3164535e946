"""The stage mm_aggregate: joins a prompt and the embeddings of its media into one thinker request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import torch
from msgspec import Struct

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.messages import AudioRows, MediaSpan, Modality, Prompt, ThinkerRequest, VisionRows
from stages.mm_aggregate.cache_ids import media_cache_ids


class Assembly(Struct):
    """The messages that have arrived for one request so far."""

    prompt: Prompt | None = None
    vision: VisionRows | None = None
    audio: AudioRows | None = None

    @property
    def complete(self) -> bool:
        return (
            self.prompt is not None
            and (not self.prompt.vision or self.vision is not None)
            and (not self.prompt.audio or self.audio is not None)
        )


class Aggregate:
    """Receives `Prompt`, `VisionRows` and `AudioRows` in any order, and sends `ThinkerRequest`."""

    def __init__(self, context: StageContext) -> None:
        self.name = context.name
        self._waiting: dict[str, Assembly] = {}
        self._ready: list[str] = []
        self.batch: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._ready)

    def receive(self, message: Work) -> None:
        assembly = self._waiting.setdefault(message.request_id, Assembly())
        match message.body:
            case Prompt():
                assembly.prompt = message.body
            case VisionRows():
                assembly.vision = message.body
            case AudioRows():
                assembly.audio = message.body
        if assembly.complete:
            self._ready.append(message.request_id)

    def step(self) -> Iterator[Work]:
        """Send every request that is complete."""
        ready, self._ready = self._ready, []
        self.batch = ready
        for request_id in ready:
            # None if the request was aborted because of an earlier message of this step
            assembly = self._waiting.pop(request_id, None)
            if assembly is not None:
                yield Start(request_id, self.name, "thinker", assemble(assembly))

    def abort(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        if request_id in self._ready:
            self._ready.remove(request_id)

    def live(self) -> Collection[str]:
        return self._waiting.keys()

    def stats(self) -> dict[str, float]:
        return {"queued_requests": len(self._ready)}

    def close(self) -> None:
        """Do nothing: the stage has no resources that outlive its process."""


def assemble(assembly: Assembly) -> ThinkerRequest:
    """The thinker's request, with the media rows of all items in ascending order."""
    prompt = assembly.prompt
    assert prompt is not None
    request = ThinkerRequest(
        ids=prompt.ids,
        cache_ids=prompt.ids,
        positions=prompt.positions,
        position_delta=prompt.position_delta,
        media_rows=None,
        media_embeds=None,
        visual_rows=None,
        deepstack=None,
        media_tokens=_rows_by_modality(prompt),
        thinker=prompt.thinker,
        text=prompt.text,
        spoken=prompt.spoken,
    )
    visual = [] if assembly.vision is None else [rows.torch() for rows in assembly.vision.embeds]
    sounds = [] if assembly.audio is None else [rows.torch() for rows in assembly.audio.embeds]
    if visual or sounds:
        spans = prompt.vision + prompt.audio
        rows, order = _in_prompt_order(spans)
        request.media_rows = Tensor.of(rows)
        request.media_embeds = Tensor.of(torch.cat(visual + sounds)[order])
        request.cache_ids = Tensor.of(media_cache_ids(prompt.ids.torch(), prompt.positions, spans))
    if assembly.vision is not None:
        rows, order = _in_prompt_order(prompt.vision)
        layers = torch.cat([layers.torch() for layers in assembly.vision.deepstack], dim=1)
        request.visual_rows = Tensor.of(rows)
        request.deepstack = Tensor.of(layers[:, order])
    return request


def _in_prompt_order(spans: Sequence[MediaSpan]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors int64 [m]. The first tensor has the rows of all spans in ascending order. The second tensor has, for
    each of these rows, its index in the concatenated rows of all spans. So if `values` are the concatenated values of
    all spans, `values[second]` are the values in the order of the first tensor.
    """
    return torch.cat([span.rows.torch() for span in spans]).sort()


def _rows_by_modality(prompt: Prompt) -> dict[Modality, int]:
    counts: Counter[Modality] = Counter()
    for span in prompt.vision + prompt.audio:
        counts[span.kind] += span.rows.shape[0]
    return dict(counts)
