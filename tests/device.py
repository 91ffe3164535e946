"""Sets the device of the stages under test, the allowed differences of their results, and the time limits of the tests.

The default is the CPU. ``OMNI_TEST_DEVICE=cuda`` moves servers, encoders, predictor and vocoder under test to GPUs.
``OMNI_TEST_DTYPE=bfloat16`` changes the data type of these stages; only `tests/rounding` and `tests/quality` judge
results in bfloat16. The reference stays on the CPU in float32. `scripts/verify_on_gpu.py` sets these variables.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from omni_pipeline.config.schema import merge

DEVICE = os.environ.get("OMNI_TEST_DEVICE", "cpu")
DTYPE = os.environ.get("OMNI_TEST_DTYPE", "float32")

_STAGES = ("image_encoder", "audio_encoder", "thinker", "talker_ar", "code_predictor", "code2wav")
_ENGINES = ("thinker", "talker_ar")
# Size of an engine's KV cache in tokens. The size is the same as the default size on a CPU. With the default on a GPU,
# the cache of a small checkpoint would have millions of tokens.
_CACHE_TOKENS = 65536


class Exactness(NamedTuple):
    """The largest differences between two correct computations in float32.

    Attributes:
        near_tie: Two logits may be in the opposite order if their difference is less than this number.
        samples: Difference between two waveforms decoded from the same codes, as a fraction of full scale.
        embeddings: Difference between the embeddings that an encoder and the reference compute for a media item.
    """

    near_tie: float
    samples: float
    embeddings: float


# On CUDA, SGLang's Triton kernels multiply float32 numbers with ten bits of mantissa. In each layer, this adds
# an error of about 5e-4 to a logit whose value is about 10. The values for CUDA are estimates with some margin: they
# have not been measured yet. The limits for bfloat16 have been measured, and are in tests/rounding.
_EXACTNESS = {"cpu": Exactness(1e-4, 1e-4, 1e-5), "cuda": Exactness(2e-2, 2e-3, 5e-3)}
EXACTNESS = _EXACTNESS[DEVICE]


class Patience(NamedTuple):
    """Maximum seconds until a server under test is ready, and until it has answered a request."""

    start: float
    request: float


# The first run on a GPU compiles each kernel at its first use. This takes minutes at the start and during the first
# requests.
PATIENCE = {"cpu": Patience(240, 120), "cuda": Patience(1800, 900)}[DEVICE]

if (DEVICE, DTYPE) == ("cuda", "float32"):
    # This variable must be set before CUDA starts. Otherwise, CUDA's libraries would multiply float32 numbers with ten
    # bits of mantissa, as SGLang's kernels do.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def on_device(config: dict[str, Any], device: str = DEVICE, dtype: str = DTYPE) -> dict[str, Any]:
    """A server's configuration, changed so that the stages run on `device`. Settings that are already in the
    configuration stay as they are.
    """
    exact = dtype == "float32"
    if device == "cpu" and exact:
        return config
    stages: dict[str, Any] = {name: {"options": {"dtype": dtype}} for name in _STAGES}
    if device == "cpu":
        return merge({"stages": stages}, config)
    for name in _ENGINES:
        stages[name]["options"]["max_total_tokens"] = _CACHE_TOKENS
        if exact:  # the only attention backend that accepts float32 and can be captured
            stages[name]["options"]["engine"] = {"attention_backend": "triton"}
    return merge({"device": device, "stages": stages}, config)
