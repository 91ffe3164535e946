"""The stage audio_encoder: turns mel features into embedding rows with the reference's audio tower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.audio_lengths import CONVOLVED_CHUNKS, FULL_CHUNK_ROWS, audio_rows
from stages.checkpoint.weights import encoder_dtype, load_part
from stages.encoders.batching import MediaEncoder, PendingItem
from stages.encoders.embedding_cache import Embeddings
from stages.messages import AudioItem, AudioRows, AudioWork


class AudioEncoder(MediaEncoder[AudioItem]):
    """Turns `AudioWork` into `AudioRows`.

    The tower cuts sounds into chunks of 100 frames, and pads each chunk to the length of the longest chunk of the call.
    The padding changes the last rows of a shorter chunk, so the result would depend on the other sounds in the call.
    The reference computes the sounds of one request in one call. So this class itself pads the chunks to the length
    that they have in the reference. Sounds with the same padded length share a batch, even if they belong to different
    requests.
    """

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        config = Qwen3OmniMoeConfig.from_pretrained(context.model_path)
        dtype = encoder_dtype(context.options.dtype, config, context.device)
        audio = config.thinker_config.audio_config
        self._chunk_frames = 2 * audio.n_window
        self._window_frames = audio.n_window_infer
        self._window_rows = FULL_CHUNK_ROWS * (audio.n_window_infer // self._chunk_frames)
        self._device = context.device
        self._tower = load_part(
            Qwen3OmniMoeAudioEncoder, audio, context.model_path, "thinker.audio_tower.", dtype, context.device
        )
        self._tower.conv_chunksize = CONVOLVED_CHUNKS

    def pending(self, body: AudioWork) -> PendingItem[AudioItem]:
        return PendingItem(body.items, body.pad_frames, body.sender)

    def row_count(self, item: AudioItem) -> int:
        return audio_rows(item.mel.shape[1], self._chunk_frames)

    def pieces(self, item: AudioItem) -> Iterator[AudioItem]:
        windows = max(1, self._max_batch_rows // self._window_rows)
        for part in item.mel.torch().split(windows * self._window_frames, dim=1):
            yield AudioItem(item.key, Tensor.of(part.contiguous()))

    @torch.inference_mode()
    def encode(self, items: Sequence[AudioItem], pad_frames: int) -> Iterator[Embeddings]:
        chunks = [chunk for item in items for chunk in item.mel.torch().split(self._chunk_frames, dim=1)]
        lengths = [chunk.shape[1] for chunk in chunks]
        padded = torch.stack([functional.pad(chunk, (0, pad_frames - chunk.shape[1])) for chunk in chunks])
        counts = [self.row_count(item) for item in items]
        # The tower could compute these arguments itself, but it would then pad to the longest chunk of this batch. The
        # boundaries of the attention windows stay on the CPU, because every layer reads them as Python numbers. If the
        # boundaries were on the device, every layer would have to wait for the device.
        output = self._tower(
            padded_feature=padded.to(self._device, self._tower.dtype),
            chunk_lengths=torch.tensor(lengths),
            valid_indices=self._valid_rows(lengths, pad_frames).to(self._device),
            cu_seqlens=self._attention_windows(counts),
        )
        for own in output.last_hidden_state.cpu().float().split(counts):
            yield Embeddings(own.clone())

    def answer(self, results: Sequence[Embeddings]) -> AudioRows:
        return AudioRows(embeds=[Tensor.of(result.rows) for result in results])

    def _valid_rows(self, lengths: Sequence[int], pad_frames: int) -> torch.Tensor:
        """The indices of the rows that come from sound and not from padding, in the flattened [chunk, row] grid."""
        rows = torch.tensor([audio_rows(length, self._chunk_frames) for length in lengths])
        grid = torch.arange(audio_rows(pad_frames, self._chunk_frames))
        return (grid < rows[:, None]).flatten().nonzero().squeeze(1)

    def _attention_windows(self, counts: Sequence[int]) -> torch.Tensor:
        """The row indices at which the attention windows begin and end: int32 [windows + 1], beginning with 0. Each
        window begins where the previous window ends. A window contains at most eight seconds of one sound, and its rows
        attend only to each other.
        """
        borders = [0]
        for count in counts:
            start = borders[-1]
            borders += range(start + self._window_rows, start + count, self._window_rows)
            borders.append(start + count)
        return torch.tensor(borders, dtype=torch.int32)
