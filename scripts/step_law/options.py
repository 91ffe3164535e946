"""The settings of the stages. They are the settings of the real stages, with the defaults for a GPU, and a few more
settings, such as the number of the GPU.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from stages import options

Index = Annotated[int, Meta(ge=0)]
Positive = options.Positive
Factor = Annotated[float, Meta(gt=0)]


class ThinkerOptions(options.ThinkerOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`stages.options.ThinkerOptions` with additional options.

    Attributes:
        gpu: Number of the GPU that the stage computes on. Stages with the same number take turns. Each replica has its
            own GPUs.
        slow: The time of each step is the time that its law gives, multiplied by this factor.
    """

    max_running_requests: Positive = 256
    gpu: Index = 0
    slow: Factor = 1.0


class TalkerOptions(options.TalkerOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`stages.options.TalkerOptions` with additional options. `gpu` and `slow` mean the same as in `ThinkerOptions`."""

    max_running_requests: Positive = 256
    engine: dict[str, Any] = field(default_factory=lambda: {"prefill_max_requests": 256})
    gpu: Index = 0
    slow: Factor = 1.0


class CodePredictorOptions(options.CodePredictorOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`stages.options.CodePredictorOptions` with additional options. `gpu` and `slow` mean the same as in
    `ThinkerOptions`.
    """

    max_batch: Positive = 256
    gpu: Index = 0
    slow: Factor = 1.0


class Code2WavOptions(options.Code2WavOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`stages.options.Code2WavOptions` with additional options. `gpu` and `slow` are those of `ThinkerOptions`."""

    max_streams: Positive = 256
    max_batch: Positive | None = 256
    gpu: Index = 0
    slow: Factor = 1.0
