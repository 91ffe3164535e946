"""Defines the stage graph of Qwen3-Omni: six stages for text, and three more for speech."""

from __future__ import annotations

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY, CheckpointSpec, Edge, Graph, StageSpec
from stages import messages, options
from stages.checkpoint import memory_needs, misfits
from stages.checkpoint.quantization import plain_config
from stages.checkpoint.tensor_shapes import fp8_config, stored_tensors
from stages.flags import QWEN3_OMNI_FLAGS

_REFERENCE = ("transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe",)
_ENGINE = ("stages.sglang_engine.preload",)

QWEN3_OMNI = Graph(
    name="qwen3-omni",
    entry="preprocessing",
    flags=QWEN3_OMNI_FLAGS,
    checkpoint=CheckpointSpec(
        title="Qwen3-Omni",
        model_types=("qwen3_omni_moe",),
        files=(
            (("tokenizer.json",), ("vocab.json", "merges.txt")),
            (("tokenizer_config.json",),),
            (("preprocessor_config.json",), ("processor_config.json",)),
        ),
        tensors=stored_tensors,
        plain=plain_config,
        quantised=fp8_config,
    ),
    text_stages=frozenset(
        {"preprocessing", "image_encoder", "audio_encoder", "mm_aggregate", "thinker", "decode"},
    ),
    stages=(
        StageSpec(
            "preprocessing",
            "stages.preprocessing:Preprocessing",
            options.PreprocessingOptions,
            preload=("av", "soundfile", "transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe"),
        ),
        StageSpec(
            "image_encoder",
            "stages.encoders.image_encoder:ImageEncoder",
            options.EncoderOptions,
            preload=_REFERENCE,
            accelerated=True,
            weights=("thinker.visual.",),
            misfit=misfits.plain("thinker.visual."),
            needs=memory_needs.vision,
        ),
        StageSpec(
            "audio_encoder",
            "stages.encoders.audio_encoder:AudioEncoder",
            options.EncoderOptions,
            preload=_REFERENCE,
            accelerated=True,
            weights=("thinker.audio_tower.",),
            misfit=misfits.plain("thinker.audio_tower."),
            needs=memory_needs.audio,
        ),
        StageSpec("mm_aggregate", "stages.mm_aggregate:Aggregate", options.AggregateOptions, preload=("torch",)),
        StageSpec(
            "thinker",
            "stages.thinker:Thinker",
            options.ThinkerOptions,
            preload=_ENGINE,
            accelerated=True,
            weights=("thinker.model.", "thinker.lm_head."),
            parallel=True,
            misfit=misfits.thinker,
            fills_memory=True,
            needs=memory_needs.thinker,
        ),
        StageSpec("decode", "stages.decode:Decode", options.DecodeOptions, preload=("transformers",)),
        StageSpec(
            "talker_ar",
            "stages.talker_ar:Talker",
            options.TalkerOptions,
            preload=_ENGINE,
            accelerated=True,
            weights=("talker.model.", "talker.codec_head.", "talker.text_projection.", "talker.hidden_projection."),
            misfit=misfits.talker,
            fills_memory=True,
            usual_gpu=1,
            needs=memory_needs.talker,
        ),
        StageSpec(
            "code_predictor",
            "stages.code_predictor:CodePredictor",
            options.CodePredictorOptions,
            preload=_REFERENCE,
            accelerated=True,
            weights=("talker.code_predictor.", "talker.model.codec_embedding."),
            misfit=misfits.plain("talker.code_predictor."),
            usual_gpu=1,
            needs=memory_needs.predictor,
        ),
        StageSpec(
            "code2wav",
            "stages.code2wav:Code2Wav",
            options.Code2WavOptions,
            preload=_REFERENCE,
            accelerated=True,
            weights=("code2wav.",),
            misfit=misfits.plain("code2wav."),
            usual_gpu=1,
            needs=memory_needs.vocoder,
        ),
    ),
    edges=(
        Edge(GATEWAY, "preprocessing", messages.ChatRequest),
        Edge("preprocessing", "image_encoder", messages.VisionWork),
        Edge("preprocessing", "audio_encoder", messages.AudioWork),
        Edge("preprocessing", "mm_aggregate", messages.Prompt),
        Edge("image_encoder", "mm_aggregate", messages.VisionRows),
        Edge("audio_encoder", "mm_aggregate", messages.AudioRows),
        Edge("mm_aggregate", "thinker", messages.ThinkerRequest),
        Edge("thinker", "decode", messages.DecodeStart | messages.Tokens | messages.Finished),
        Edge("decode", "thinker", messages.StopGenerating | messages.Certain),
        Edge("decode", COLLECTOR, messages.TextDelta | messages.TextDone),
        Edge("thinker", "talker_ar", messages.TalkerPrompt | messages.Tokens | messages.Finished),
        Edge("talker_ar", "code_predictor", messages.PredictorStart | messages.FrameSeed | messages.SpeechFinished),
        Edge("code_predictor", "talker_ar", messages.FrameFeedback),
        Edge("code_predictor", "code2wav", messages.VocoderStart | messages.Frame | messages.SpeechFinished),
        Edge("code2wav", COLLECTOR, messages.AudioDelta | messages.AudioDone),
    ),
    advice=(
        Edge("code2wav", "talker_ar", messages.Playing),
        Edge("talker_ar", "thinker", messages.TextPace),
    ),
)
