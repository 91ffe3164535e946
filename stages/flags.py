"""Defines the command-line flags that only Qwen3-Omni has: flags for the placement of its stages, and for the memory of
its language models.
"""

from __future__ import annotations

from omni_pipeline.contract.flag import MEMORY, PLACEMENT, Flag
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
        "GPU of the thinker, or several GPUs (0,1), which divide it by tensor parallelism.",
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
        "--thinker-tp-size",
        ("stages.thinker.tp_size",),
        "Number of tensor-parallel ranks of the thinker; each needs a GPU (on the CPU: a process).",
        PLACEMENT,
        metavar="N",
        parse=positive,
        default="one for each of its GPUs",
    ),
    Flag(
        "--mem-fraction-static",
        ("stages.thinker.options.mem_fraction_static", "stages.talker_ar.options.mem_fraction_static"),
        "Memory for weights and KV cache of thinker and of talker, each as a fraction (0 to 1) of its whole GPU.",
        MEMORY,
        metavar="X",
        parse=fraction,
        default="automatic",
    ),
    Flag(
        "--thinker-mem-fraction-static",
        ("stages.thinker.options.mem_fraction_static",),
        "The same for the thinker only; wins over --mem-fraction-static.",
        MEMORY,
        metavar="X",
        parse=fraction,
        default="automatic",
    ),
    Flag(
        "--talker-mem-fraction-static",
        ("stages.talker_ar.options.mem_fraction_static",),
        "The same for the talker only; wins over --mem-fraction-static.",
        MEMORY,
        metavar="X",
        parse=fraction,
        default="automatic",
    ),
)
