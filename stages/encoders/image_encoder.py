"""The stage image_encoder: turns pictures and clips into embedding rows with the reference's vision tower."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import encoder_dtype, load_part
from stages.encoders.batching import MediaEncoder, PendingItem
from stages.encoders.embedding_cache import Embeddings
from stages.messages import VisionItem, VisionRows, VisionWork


class ImageEncoder(MediaEncoder[VisionItem]):
    """Turns `VisionWork` into `VisionRows`.

    Attention stays within a frame, so batching over requests does not change results.
    """

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        config = Qwen3OmniMoeConfig.from_pretrained(context.model_path)
        dtype = encoder_dtype(context.options.dtype, config, context.device)
        vision = config.thinker_config.vision_config
        self._patches_per_row = vision.spatial_merge_size**2
        self._device = context.device
        self._tower = load_part(
            Qwen3OmniMoeVisionEncoder, vision, context.model_path, "thinker.visual.", dtype, context.device
        )

    def pending(self, body: VisionWork) -> PendingItem[VisionItem]:
        return PendingItem(body.items, pad_frames=0, sender=body.sender)

    def row_count(self, item: VisionItem) -> int:
        return math.prod(item.grid) // self._patches_per_row

    def pieces(self, item: VisionItem) -> Iterator[VisionItem]:
        frames, height, width = item.grid
        patches = item.patches.torch().view(frames, height * width, -1)
        together = max(1, self._max_batch_rows * self._patches_per_row // (height * width))
        for part in patches.split(together):
            yield VisionItem(item.key, (len(part), height, width), Tensor.of(part.flatten(0, 1)))

    @torch.inference_mode()
    def encode(self, items: Sequence[VisionItem], pad_frames: int) -> Iterator[Embeddings]:
        patches = [item.patches.torch() for item in items]
        together = patches[0] if len(patches) == 1 else torch.cat(patches)
        grids = torch.tensor([item.grid for item in items])
        output = self._tower(together.to(self._device, self._tower.dtype), grid_thw=grids, **self._bookkeeping(grids))
        counts = [self.row_count(item) for item in items]
        rows = output.pooler_output.cpu().float()
        deepstack = torch.stack(output.deepstack_features).cpu().float()
        for own, own_deepstack in zip(rows.split(counts), deepstack.split(counts, dim=1), strict=True):
            yield Embeddings(own.clone(), own_deepstack.clone(memory_format=torch.contiguous_format))

    def _bookkeeping(self, grids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arguments of the tower that follow from `grids`. If the caller did not pass them, the tower would compute
        them on the device, and the host would have to wait for the device.

        The start index of each frame stays on the CPU, because every layer reads these indices as numbers.
        """
        tower = self._tower
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.spatial_merge_size,
        )
        return {
            "interp_indices": indices.to(self._device),
            "interp_weights": weights.to(self._device),
            "position_ids": get_vision_position_ids(grids, tower.spatial_merge_size).to(self._device),
            "cu_seqlens": get_vision_cu_seqlens(grids),
        }

    def answer(self, results: Sequence[Embeddings]) -> VisionRows:
        deepstack = [result.deepstack for result in results if result.deepstack is not None]
        return VisionRows(
            embeds=[Tensor.of(result.rows) for result in results], deepstack=[Tensor.of(layers) for layers in deepstack]
        )
