"""Defines the command-line flags that only Qwen3-Omni has. These flags select the GPUs of the stages, limit the memory
of the language models, and choose the parser of reasoning.
"""

from __future__ import annotations

from omni_pipeline.contract.flag import MEMORY, MODEL, PLACEMENT, Flag
from omni_pipeline.contract.flag_values import fraction, gpu_indices, positive

_ONE_GPU = {
    "--gpu-talker": "talker_ar",
    "--gpu-code-predictor": "code_predictor",
    "--gpu-code2wav": "code2wav",
    "--gpu-image-encoder": "image_encoder",
    "--gpu-audio-encoder": "audio_encoder",
}

QWEN3_OMNI_FLAGS = (
    Flag(
        "--gpu-thinker",
        ("stages.thinker.gpus",),
        "GPU of the thinker, or several GPUs such as 0,1. Several GPUs share the thinker (tensor parallelism).",
        PLACEMENT,
        metavar="GPUS",
        parse=gpu_indices,
        default="automatic",
    ),
    *(
        Flag(
            name,
            (f"stages.{stage}.gpus",),
            f"GPU of {stage}.",
            PLACEMENT,
            metavar="GPU",
            parse=gpu_indices,
            default="automatic",
        )
        for name, stage in _ONE_GPU.items()
    ),
    Flag(
        "--reasoning-parser",
        ("stages.preprocessing.options.reasoning_parser",),
        "SGLang's parser that separates reasoning from answers: auto, none, qwen3, qwen3-thinking or deepseek-r1.",
        MODEL,
        metavar="NAME",
        default="auto",
    ),
    Flag(
        "--thinker-tp-size",
        ("stages.thinker.tp_size",),
        "Number of tensor-parallel ranks of the thinker. Each rank needs its own GPU or, on a CPU, its own process.",
        PLACEMENT,
        metavar="N",
        parse=positive,
        default="one rank for each GPU of the thinker",
    ),
    Flag(
        "--mem-fraction-static",
        ("stages.thinker.options.mem_fraction_static", "stages.talker_ar.options.mem_fraction_static"),
        "Memory for weights and KV cache, as a fraction (0 to 1) of the total memory of a GPU. The value applies to "
        "the thinker and, separately, to the talker.",
        MEMORY,
        metavar="X",
        parse=fraction,
        default="automatic",
    ),
    Flag(
        "--thinker-mem-fraction-static",
        ("stages.thinker.options.mem_fraction_static",),
        "Like --mem-fraction-static, but only for the thinker. Takes precedence over --mem-fraction-static.",
        MEMORY,
        metavar="X",
        parse=fraction,
        default="automatic",
    ),
    Flag(
        "--talker-mem-fraction-static",
        ("stages.talker_ar.options.mem_fraction_static",),
        "Like --mem-fraction-static, but only for the talker. Takes precedence over --mem-fraction-static.",
        MEMORY,
        metavar="X",
        parse=fraction,
        default="automatic",
    ),
)
