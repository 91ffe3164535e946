"""Measures the CPU time that talker_ar, code_predictor and code2wav need for a codec frame. Also measures the CPU time
of the frame's matrix products alone.

    python scripts/measure_voice.py --model-path checkpoints/tiny
    python scripts/measure_voice.py --real        # the released model's shapes, random weights

The results are CPU time of one thread, in milliseconds per frame of one utterance. They are comparable only within one
run. The talker is measured as a whole stage, including SGLang, and needs a checkpoint.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same number of threads as in the workers, which share the cores

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from msgspec import structs
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeCode2Wav,
    Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration,
)

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.wire.messages import Chunk, End, Start
from omni_pipeline.wire.tensor import Tensor
from stages.checkpoint.weights import load_part, read_tensors
from stages.code2wav.history import Streams
from stages.code2wav.streaming_vocoder import StreamingVocoder
from stages.code_predictor.choice import CodeChoice, Draws
from stages.code_predictor.compiled_frames import CompiledFrames
from stages.code_predictor.network import ResidualNetwork
from stages.messages import Finished, FrameFeedback, FrameSeed, Sampling, SpeechOptions, TalkerPrompt, Tokens
from stages.options import TalkerOptions
from stages.talker_ar.stage import Talker

SAMPLED = Sampling(temperature=1.0, top_k=50, top_p=0.8, seed=1)
GREEDY_TALKER = Sampling(repetition_penalty=1.05, max_tokens=4096, ignore_eos=True)
SAMPLED_TALKER = structs.replace(GREEDY_TALKER, temperature=0.9, top_k=50, seed=1)
PROMPT = 80  # number of tokens of the user's turns
WHOLE_FRAMES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--model-path", help="a checkpoint")
    chosen.add_argument("--real", action="store_true", help="the released model's shapes, with random weights")
    parser.add_argument("--repeats", type=int, default=40, help="runs per result; the result is the lower quartile")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.real:
        measure_talker(arguments.model_path, arguments.batches, arguments.repeats)
    predictor, table, vocoder = real_shapes() if arguments.real else checkpoint(arguments.model_path)
    with torch.inference_mode():
        measure_predictor(predictor, table, arguments.batches, arguments.repeats)
        measure_vocoder(vocoder, arguments.batches, arguments.chunks, arguments.repeats)


def checkpoint(model_path: str) -> tuple[Any, torch.Tensor, Any]:
    """The reference's code predictor, the talker's codec embedding, and the reference's vocoder."""
    config = Qwen3OmniMoeConfig.from_pretrained(model_path)
    predictor = load_part(
        Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration,
        config.talker_config.code_predictor_config,
        model_path,
        "talker.code_predictor.",
        torch.float32,
        "cpu",
    )
    table = read_tensors(model_path, "talker.model.codec_embedding.")["weight"]
    vocoder = load_part(Qwen3OmniMoeCode2Wav, config.code2wav_config, model_path, "code2wav.", torch.float32, "cpu")
    return predictor, table, vocoder


def real_shapes() -> tuple[Any, torch.Tensor, Any]:
    """The same parts as `checkpoint` returns, with random weights and 16 codebooks. All other sizes are the defaults of
    the configuration.
    """
    config = Qwen3OmniMoeConfig()
    config.talker_config.code_predictor_config.num_code_groups = 16
    predictor = Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration._from_config(
        config.talker_config.code_predictor_config
    )
    vocoder = Qwen3OmniMoeCode2Wav._from_config(config.code2wav_config)
    for model in (predictor, vocoder):
        model.float().eval().requires_grad_(False)
    table = torch.randn(config.talker_config.text_config.vocab_size, predictor.config.hidden_size)
    return predictor, table, vocoder


def measure_talker(model_path: str, batches: list[int], repeats: int) -> None:
    config = Qwen3OmniMoeConfig.from_pretrained(model_path).talker_config
    print("talker_ar, ms per frame")
    print(f"{'batch':>8}{'greedy':>10}{'sampled':>10}{'products':>10}{'ratio to products':>19}")
    with tempfile.TemporaryDirectory() as run_dir:
        context = StageContext("talker_ar", os.path.abspath(model_path), "cpu", TalkerOptions(), frozenset(), run_dir)
        talker = Talker(context)
        speaker = next(iter(config.speaker_id)).lower()
        for batch in batches:
            greedy, sampled = (
                milliseconds(EndlessUtterances(talker, batch, SpeechOptions(speaker, way, way)).step, repeats) / batch
                for way in (GREEDY_TALKER, SAMPLED_TALKER)
            )
            products = milliseconds(talker_products(config.text_config, batch), repeats) / batch
            print(f"{batch:>8}{greedy:>10.3f}{sampled:>10.3f}{products:>10.3f}{greedy / products:>19.2f}")
        talker.close()
    print()


class EndlessUtterances:
    """Utterances of the talker that never end."""

    def __init__(self, talker: Talker, count: int, speech: SpeechOptions) -> None:
        for old in list(talker.live()):
            talker.abort(old)
        self._talker = talker
        self._names = [f"{count}-{speech.talker.temperature}-{number}" for number in range(count)]
        self._seeds: dict[str, torch.Tensor] = {}
        prompt = TalkerPrompt(Tensor.of(torch.arange(PROMPT)), None, None, [0, 1, 2], None, 0.0, speech)
        for name in self._names:
            talker.receive(Start(name, "thinker", "talker_ar", prompt))
            talker.receive(Chunk(name, "thinker", "talker_ar", Tokens([0, 1])))
            talker.receive(End(name, "thinker", "talker_ar", Finished("stop", None)))
        while len(self._seeds) < count:
            self._take()

    def step(self) -> None:
        """Compute one more frame of each utterance. The input for the next frame is the state from which this frame was
        chosen. (In the server, the input is the embedding of this frame.)
        """
        seeds, self._seeds = self._seeds, {}
        for name, state in seeds.items():
            self._talker.receive(Chunk(name, "code_predictor", "talker_ar", FrameFeedback(Tensor.of(state))))
        self._take()
        assert len(self._seeds) == len(self._names)

    def _take(self) -> None:
        for message in self._talker.step():
            if isinstance(message, Chunk) and isinstance(message.body, FrameSeed):
                self._seeds[message.request_id] = message.body.hidden.torch()


def talker_products(config: Any, batch: int) -> Callable[[], None]:
    """Like `matrix_products`, but for the talker: a function that computes the matrix products of one token for each
    utterance. Tokens use different experts as far as possible.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    joined = heads + 2 * config.num_key_value_heads * config.head_dim
    routed = min(batch * config.num_experts_per_tok, config.num_experts)
    rows = -(-batch * config.num_experts_per_tok // routed)
    middle, shared = config.moe_intermediate_size, config.shared_expert_intermediate_size
    dense = [(hidden, joined), (heads, hidden), (hidden, config.num_experts), (hidden, 2 * shared), (shared, hidden)]
    pairs = [(batch, shape) for shape in dense] + [(rows, (hidden, 2 * middle)), (rows, (middle, hidden))] * routed
    products = [(torch.randn(count, into), torch.randn(out, into).t()) for count, (into, out) in pairs]
    products *= config.num_hidden_layers
    products.append((torch.randn(batch, hidden), torch.randn(config.vocab_size, hidden).t()))

    def run() -> None:
        for inputs, matrix in products:
            torch.mm(inputs, matrix)

    return run


def measure_predictor(model: Any, table: torch.Tensor, batches: list[int], repeats: int) -> None:
    network = ResidualNetwork(model, table, max(batches))
    compute = CompiledFrames(network).frames
    print(f"code_predictor, {network.codebooks} codebooks, ms per frame")
    print(f"{'batch':>8}{'greedy':>10}{'sampled':>10}{'products':>10}{'reference':>11}{'ratio to products':>19}")
    for batch in batches:
        hidden = torch.randn(batch, network.hidden_size)
        codes = torch.randint(0, network.vocab, (batch,))
        greedy = milliseconds(partial(frames, network, compute, hidden, codes, Sampling()), repeats) / batch
        sampled = milliseconds(partial(frames, network, compute, hidden, codes, SAMPLED), repeats) / batch
        products = milliseconds(matrix_products(model.config, batch), repeats) / batch
        generate = partial(model.generate, inputs_embeds=torch.stack((hidden, table[codes]), 1), do_sample=False)
        theirs = milliseconds(partial(generate, max_new_tokens=network.codebooks - 1), max(3, repeats // 8)) / batch
        print(f"{batch:>8}{greedy:>10.3f}{sampled:>10.3f}{products:>10.3f}{theirs:>11.3f}{greedy / products:>19.2f}")


def frames(network: ResidualNetwork, compute: Any, hidden: torch.Tensor, codes: torch.Tensor, way: Sampling) -> None:
    """Compute one frame for every row, as the stage does."""
    rows = [(Draws(way), 0)] * len(codes)
    compute(hidden, codes, CodeChoice.of(rows, network.codebooks - 1, network.vocab, network.device))


def matrix_products(config: Any, batch: int) -> Callable[[], None]:
    """A function that computes only the matrix products of one frame, which every implementation has to compute."""
    heads = config.num_attention_heads * config.head_dim
    joined = heads + 2 * config.num_key_value_heads * config.head_dim
    hidden, intermediate = config.hidden_size, config.intermediate_size
    shapes = [(hidden, joined), (heads, hidden), (hidden, 2 * intermediate), (intermediate, hidden)]
    layers = [torch.randn(out, into).t() for _ in range(config.num_hidden_layers) for into, out in shapes]
    tables = [torch.randn(config.vocab_size, hidden).t() for _ in range(config.num_code_groups - 1)]
    inputs = {width: torch.randn(batch, width) for width in (hidden, heads, intermediate)}
    prefill = {width: torch.randn(2 * batch, width) for width in (hidden, heads, intermediate)}

    def run() -> None:
        for number, table in enumerate(tables):
            rows = inputs if number else prefill
            for matrix in layers:
                torch.mm(rows[matrix.shape[0]], matrix)
            torch.mm(inputs[hidden], table)

    return run


def measure_vocoder(model: Any, batches: list[int], chunks: list[int], repeats: int) -> None:
    network = StreamingVocoder(model, max(batches))
    whole = torch.randint(0, network.codes, (1, network.codebooks, WHOLE_FRAMES))
    theirs = milliseconds(lambda: model(whole), max(3, repeats // 8)) / WHOLE_FRAMES
    print(f"\ncode2wav, ms per frame; the reference takes {theirs:.3f} when it decodes {WHOLE_FRAMES} frames at once")
    print(f"{'batch':>8}" + "".join(f"{f'chunk {frames}':>11}" for frames in chunks))
    for batch in batches:
        streams = Streams.of(range(batch), [1000] * batch, network.device)
        figures = []
        for frames in chunks:
            codes = torch.randint(0, network.codes, (batch, frames, network.codebooks))
            took = milliseconds(partial(network.decode, codes, streams), repeats)
            figures.append(took / frames / batch)
        print(f"{batch:>8}" + "".join(f"{figure:>11.3f}" for figure in figures))


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """CPU time of this thread for one run of `work`, in milliseconds: the lower quartile of `repeats` runs, after two
    warm-up runs.
    """
    work()
    work()
    times = []
    for _ in range(repeats):
        begin = time.thread_time()
        work()
        times.append(time.thread_time() - begin)
    return 1e3 * sorted(times)[len(times) // 4]


if __name__ == "__main__":
    main()
