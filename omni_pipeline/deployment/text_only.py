"""Limits a deployment to text if its checkpoint has no speech."""

from __future__ import annotations

import os

from omni_pipeline.config.layers import Settings, limit_to_text
from omni_pipeline.contract.graph import load_graph
from omni_pipeline.deployment.checkpoint import config_of
from omni_pipeline.deployment.resolve import resolve


def fitted(settings: Settings, *, download: bool = False) -> Settings:
    """Returns `settings`. If the checkpoint cannot speak, `text_only` is set in the result.

    Whether a checkpoint can speak depends on its ``config.json``, and not on its weights, as in Hugging Face
    ``transformers``. If ``config.json`` states that the model has no talker, the server does not use the weights of a
    talker.

    Args:
        download: Whether to ask the hub for a model that is not in the hub's cache.

    Raises:
        StartupError: ``config.json`` is damaged or contradicts itself, or a flag configures a speech stage although the
            checkpoint cannot speak.
    """
    config = settings.config
    spec = load_graph(config.graph).checkpoint
    if config.text_only or config.model_path is None or spec is None or spec.text_only is None:
        return settings
    if download and not os.path.exists(config.model_path):
        resolve(config)  # mistakes in the configuration are reported before anything is downloaded
    found = config_of(config.model_path, spec, download=download)
    reason = spec.text_only(found) if found is not None else None
    return settings if reason is None else limit_to_text(settings, reason, "config.json of the checkpoint")
