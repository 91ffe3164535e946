"""Defines the stage graph of Qwen3-Omni: six stages for text, and three more for speech."""

from __future__ import annotations

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY, CheckpointSpec, Edge, Graph, StageSpec
from stages import messages, options
from stages.checkpoint import cpu_threads_and_dtypes, edge_traffic, memory_needs, misfits
from stages.checkpoint.model_config import without_speech
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
        text_only=without_speech,
    ),
    text_stages=frozenset(
        {"preprocessing", "image_encoder", "audio_encoder", "mm_aggregate", "thinker", "decode"},
    ),
    groups={
        "encoders": frozenset({"image_encoder", "audio_encoder"}),
        "voice": frozenset({"talker_ar", "code_predictor"}),
        "vocoder": frozenset({"code2wav"}),
    },
    together=(frozenset({"talker_ar", "code_predictor"}),),  # they exchange two messages for each codec frame
    simulation="stages.simulation.model:QWEN3_OMNI",
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
            on_cpu=cpu_threads_and_dtypes.choose,
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
            on_cpu=cpu_threads_and_dtypes.choose,
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
            on_cpu=cpu_threads_and_dtypes.choose,
            prefix_cache="kv_tokens_limit",
        ),
        StageSpec(
            "decode",
            "stages.decode:Decode",
            options.DecodeOptions,
            preload=("transformers", "stages.sglang_engine.tool_calls", "stages.sglang_engine.reasoning_markers"),
        ),
        StageSpec(
            "talker_ar",
            "stages.talker_ar.stage:Talker",
            options.TalkerOptions,
            preload=_ENGINE,
            accelerated=True,
            weights=("talker.model.", "talker.codec_head.", "talker.text_projection.", "talker.hidden_projection."),
            misfit=misfits.talker,
            fills_memory=True,
            usual_gpu=1,
            needs=memory_needs.talker,
            on_cpu=cpu_threads_and_dtypes.choose,
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
            on_cpu=cpu_threads_and_dtypes.choose,
        ),
        StageSpec(
            "code2wav",
            "stages.code2wav.stage:Code2Wav",
            options.Code2WavOptions,
            preload=_REFERENCE,
            accelerated=True,
            weights=("code2wav.",),
            misfit=misfits.plain("code2wav."),
            usual_gpu=1,
            needs=memory_needs.vocoder,
            on_cpu=cpu_threads_and_dtypes.choose,
        ),
    ),
    edges=(
        Edge(GATEWAY, "preprocessing", messages.EntryRequest),
        Edge("preprocessing", COLLECTOR, messages.RecordingCut),
        Edge("preprocessing", "image_encoder", messages.VisionWork, traffic=edge_traffic.patches),
        Edge("preprocessing", "audio_encoder", messages.AudioWork, traffic=edge_traffic.mel),
        Edge("preprocessing", "mm_aggregate", messages.Prompt, traffic=edge_traffic.prompt),
        Edge("image_encoder", "mm_aggregate", messages.VisionRows, traffic=edge_traffic.vision_rows),
        Edge("audio_encoder", "mm_aggregate", messages.AudioRows, traffic=edge_traffic.audio_rows),
        Edge("mm_aggregate", "thinker", messages.ThinkerRequest, traffic=edge_traffic.thinker_request),
        Edge(
            "thinker", "decode", messages.DecodeStart | messages.Tokens | messages.Finished, traffic=edge_traffic.tokens
        ),
        Edge("decode", "thinker", messages.StopGenerating | messages.Certain, traffic=edge_traffic.report),
        Edge("decode", COLLECTOR, messages.TextDelta | messages.TextDone, traffic=edge_traffic.tokens),
        Edge(
            "thinker",
            "talker_ar",
            messages.TalkerPrompt | messages.Tokens | messages.Finished,
            traffic=edge_traffic.talker_prompt,
        ),
        Edge("preprocessing", "talker_ar", messages.TalkerPrompt | messages.Passage, traffic=edge_traffic.passages),
        Edge("talker_ar", "code_predictor", messages.PredictorStart | messages.FrameSeed | messages.SpeechFinished),
        Edge("code_predictor", "talker_ar", messages.FrameFeedback),
        Edge(
            "code_predictor",
            "code2wav",
            messages.VocoderStart | messages.Frame | messages.SpeechFinished,
            traffic=edge_traffic.frames,
        ),
        Edge("code2wav", COLLECTOR, messages.AudioDelta | messages.AudioDone, traffic=edge_traffic.sound),
    ),
    advice=(
        Edge("code2wav", "talker_ar", messages.Playing),
        Edge("talker_ar", "thinker", messages.TextPace),
    ),
)
