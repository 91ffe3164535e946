"""Computes content keys of media items: equal keys mean equal embeddings."""

from __future__ import annotations

import hashlib

import torch


def vision_key(patches: torch.Tensor, grid: tuple[int, int, int]) -> bytes:
    """Key of a picture or clip, from the pixels that the vision tower gets (float32, contiguous)."""
    return _key("vision", grid, patches)


def audio_key(mel: torch.Tensor, pad_frames: int) -> bytes:
    """Key of a sound, from the features that the audio tower gets (float32 [bins, frames], contiguous).

    Args:
        pad_frames: As in `AudioWork`; the padding affects the embeddings of a short sound.
    """
    return _key("audio", (*mel.shape, pad_frames), mel)


def _key(kind: str, shape: tuple[int, ...], values: torch.Tensor) -> bytes:
    digest = hashlib.sha256(repr((kind, shape)).encode())  # the fastest hash on CPUs with instructions for it
    digest.update(values.numpy().data)
    return digest.digest()
