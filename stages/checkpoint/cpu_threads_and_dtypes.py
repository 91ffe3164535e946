"""Chooses how each stage computes on a CPU: the number of threads, the niceness, and bfloat16 or float32."""

from __future__ import annotations

from omni_pipeline.contract.cpu_fit import CpuChoice, OnCpu
from stages.checkpoint.model_config import ModelConfig, read

# A stage gets more than one thread, or bfloat16, only if its states have at least this width. Stages with narrower
# states use the compiled layers, which need one thread and float32. These stages would not be faster with more threads
# or bfloat16.
WIDE = 1024

# The cores are divided among these stages in proportion to these numbers. These stages compute at the same time.
SHARES = {"thinker": 2, "code_predictor": 2, "talker_ar": 1, "code2wav": 1}

# The stages that are faster in bfloat16. The vocoder is not one of them, because its residual units are compiled in
# float32. The encoders are left out too, because their towers compute only once for each request.
BFLOAT16 = frozenset({"thinker", "talker_ar", "code_predictor"})

# While more processes compute than there are cores, the stages with a niceness let the stages after them go first. Then
# more answers wait for the next step, and a step for many answers costs little more than for one. With one niceness for
# all, the engines make many steps for few answers, and the vocoder, whose chunks the listeners need, waits for them.
NICENESS = {"thinker": 5, "talker_ar": 5}


def choose(situation: OnCpu) -> CpuChoice:
    """The threads, the niceness and the data type of a stage with weights.

    The niceness follows from `NICENESS`. A stage whose states are narrower than `WIDE` gets one thread and float32. For
    any other stage:
    - One core is left to the gateway, to preprocessing and to the system. The other cores are divided by `SHARES` among
      the stages that are served. If a stage has several replicas, each replica gets the share of the stage. An encoder
      is not in `SHARES`, because it finishes a request before the other stages begin to compute that request. An
      encoder gets as many threads as a stage with a share of 1.
    - The type is bfloat16 if three conditions are true: the stage is in `BFLOAT16`, the checkpoint has unquantised
      bfloat16 weights, and the CPU multiplies bfloat16 in hardware. Otherwise, the type is float32.
    """
    model = read(situation.config)
    niceness = NICENESS.get(situation.stage, 0)
    if _width(model, situation.stage) < WIDE:
        return CpuChoice(niceness=niceness)
    shares = sum(SHARES.get(stage, 0) for stage in situation.stages)
    threads = (situation.cpu.cores - 1) * SHARES.get(situation.stage, 1) // shares
    stored = model.stored_dtype == "bfloat16" and not model.quantization_config
    faster = situation.cpu.bfloat16 and stored and situation.stage in BFLOAT16
    return CpuChoice(threads=max(1, threads), dtype="bfloat16" if faster else None, niceness=niceness)


def _width(model: ModelConfig, stage: str) -> int:
    """The width of a stage's states; 0 if the model has no such stage."""
    thinker, talker, vocoder = model.thinker_config, model.talker_config, model.code2wav_config
    match stage:
        case "image_encoder":
            return thinker.vision_config.hidden_size
        case "audio_encoder":
            return thinker.audio_config.d_model
        case "thinker":
            return thinker.text_config.hidden_size
        case "talker_ar" if talker is not None:
            return talker.text_config.hidden_size
        case "code_predictor" if talker is not None:
            return talker.code_predictor_config.hidden_size
        case "code2wav" if vocoder is not None:
            return vocoder.hidden_size
    return 0
