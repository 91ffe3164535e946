"""Computes the reference: the answers of Hugging Face's Qwen3-Omni to conversations, with greedy decoding.

Media are files. This module decodes them in the simplest way, so that the tests find mistakes in the server's decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy
import soundfile
import soxr
import torch
from PIL import Image, ImageOps
from transformers import LogitsProcessorList, Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
from transformers.video_utils import VideoMetadata

from tests.device import EXACTNESS

SAMPLE_RATE = 16_000

# If two logits differ by less than this number, the smaller logit may become the larger one when the batch has another
# shape (see docs/architecture.md).
NEAR_TIE = EXACTNESS.near_tie

# An id that no token has. If this id is set as the end of the text, no token ends the text.
NO_TOKEN = -1


@dataclass(frozen=True)
class Conversation:
    """A conversation in the format of Hugging Face, with paths for media, and the processor's video options.

    `messages` hold parts ``{"type": "text" | "image" | "audio" | "video", <type>: text or path}``. `tools` are in the
    format of OpenAI. `answers` has the ids of each message of the assistant; None for a message that is tokenised.
    """

    name: str
    messages: list[dict[str, Any]]
    fps: float = 2.0
    use_audio_in_video: bool = False
    tools: list[dict[str, Any]] | None = None
    answers: list[list[int] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Greedy:
    """A greedy answer, and the margin of each token.

    Attributes:
        ids: Generated ids. If the model has generated the end of turn, its id is included.
        margins: For each id, the difference between its logit and the next best logit.
    """

    ids: list[int]
    margins: list[float] = field(repr=False)


class Reference:
    """A checkpoint in Hugging Face's classes on the CPU. It handles one conversation at a time.

    Args:
        dtype: Data type of the weights and of the computation; rotary frequencies are float32 in any case.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float32) -> None:
        self.processor = Qwen3OmniMoeProcessor.from_pretrained(checkpoint)
        self.model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()

    def inputs(self, conversation: Conversation) -> Any:
        """Model inputs as the processor makes them."""
        images: list[Image.Image] = []
        sounds: list[numpy.ndarray] = []
        clips: list[numpy.ndarray] = []
        metadata: list[VideoMetadata] = []
        for message in conversation.messages:
            for part in message["content"]:
                if part["type"] == "image":
                    images.append(picture(part["image"]))
                elif part["type"] == "audio":
                    sounds.append(sound(part["audio"]))
                elif part["type"] == "video":
                    frames, rate = clip(part["video"])
                    clips.append(frames)
                    metadata.append(VideoMetadata(total_num_frames=len(frames), fps=rate, duration=len(frames) / rate))
                    if conversation.use_audio_in_video:
                        sounds.append(sound(part["video"]))
        prompt = self.processor.apply_chat_template(
            conversation.messages, tools=conversation.tools, add_generation_prompt=True, tokenize=False
        )
        video = (
            {
                "videos": clips,
                "video_metadata": metadata,
                "do_sample_frames": True,
                "fps": conversation.fps,
                "use_audio_in_video": conversation.use_audio_in_video,
                "cap_pixels_per_frame": False,
            }
            if clips
            else {}
        )
        inputs = self.processor(
            text=prompt, images=images or None, audio=sounds or None, return_tensors="pt", padding=True, **video
        )
        if any(conversation.answers):
            ids = self._with_answers(inputs["input_ids"][0].tolist(), conversation.answers)
            inputs["input_ids"] = torch.tensor([ids])
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return inputs

    def _with_answers(self, ids: list[int], answers: list[list[int] | None]) -> list[int]:
        """`ids`, changed so that the assistant's messages have the ids in `answers`."""
        config, tokenizer = self.model.config, self.processor.tokenizer
        opening = tokenizer("<|im_start|>assistant\n").input_ids
        place = 0
        for answer in answers:
            while ids[place : place + 2] != opening[:2]:
                place += 1
            end = ids.index(config.im_end_token_id, place)
            if answer is not None:
                ids = ids[:place] + opening + answer + ids[end:]
            place += 2
        return ids

    @torch.no_grad()
    def greedy(
        self,
        conversation: Conversation,
        max_tokens: int,
        repetition_penalty: float = 1.0,
        allowed: Callable[[tuple[int, ...]], torch.Tensor] | None = None,
    ) -> Greedy:
        """The thinker's greedy answer. The margins are computed from the logits after the repetition penalty.

        Args:
            allowed: The ids that may follow the generated ids, bool [vocabulary]; None allows all ids.
        """
        inputs = self.inputs(conversation)
        prompt = inputs["input_ids"].shape[1]

        def masked(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            assert allowed is not None
            return scores.masked_fill(~allowed(tuple(ids[0, prompt:].tolist())), -torch.inf)

        result = self.model.thinker.generate(
            **inputs,
            use_audio_in_video=conversation.use_audio_in_video,
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self.model.config.im_end_token_id,
            return_dict_in_generate=True,
            output_scores=True,
            repetition_penalty=repetition_penalty,
            logits_processor=LogitsProcessorList([masked] if allowed else []),
        )
        ids = result.sequences[0, prompt:].tolist()
        best = torch.stack(result.scores)[:, 0].float().topk(2, dim=-1).values
        return Greedy(ids, (best[:, 0] - best[:, 1]).tolist())


def picture(path: str | Path) -> Image.Image:
    """The picture in a file, opened as `transformers.image_utils.load_image` does; it must be opaque and of 8 bits."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def sound(path: str | Path) -> numpy.ndarray:
    """Mono float32 samples at 16 kHz, from a sound file or from a clip's sound track."""
    if Path(path).suffix in (".wav", ".flac", ".ogg"):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    else:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            rate = stream.rate
            resampler = av.AudioResampler(format="fltp", rate=rate)
            blocks = [block.to_ndarray() for frame in container.decode(stream) for block in resampler.resample(frame)]
        samples = numpy.concatenate(blocks, axis=1).T
    mono = samples.mean(axis=1)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def clip(path: str | Path) -> tuple[numpy.ndarray, float]:
    """All frames of a clip, uint8 [frames, height, width, 3], and its frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        return numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), rate


def differs(answer: list[int], truth: Greedy) -> int | None:
    """Index of the first token where `answer` differs from the reference's answer. None if both answers are equal."""
    for index, (ours, theirs) in enumerate(zip(answer, truth.ids, strict=False)):
        if ours != theirs:
            return index
    return None if len(answer) == len(truth.ids) else min(len(answer), len(truth.ids))


@dataclass(frozen=True)
class Spoken:
    """A greedy answer with its greedy speech.

    Attributes:
        ids: Text ids as in `Greedy`.
        codes: int64 [codebooks, frames].
        margins: For each frame, the smallest difference between the logit of one of its codes and the next best logit.
        waveform: float32 [samples], decoded from all codes at once.
    """

    ids: list[int]
    codes: torch.Tensor
    margins: list[float] = field(repr=False)
    waveform: numpy.ndarray = field(repr=False)


class SpokenReference(Reference):
    """A checkpoint with speech. It runs `generate` with greedy talker and predictor, for one conversation at a time."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(checkpoint, dtype)
        # Transformers 5.19.0 does not set this attribute, but needs the attribute for sound together with images or
        # clips (see docs/architecture.md).
        self.model.talker.config.audio_config = self.model.config.thinker_config.audio_config

    @torch.no_grad()
    def speak(
        self,
        conversation: Conversation,
        max_tokens: int,
        max_frames: int,
        speaker: str,
        *,
        endless: bool = False,
        written: list[int] | None = None,
    ) -> Spoken | None:
        """The spoken answer. It is None if the text or the speech ends at the first token, because the reference fails
        in this case.

        An `endless` answer ends only at the limits.

        Args:
            written: The ids of the text that the thinker writes, whatever its logits are. None lets the thinker write.
        """
        inputs = self.inputs(conversation)
        forced: dict[str, Any] = {}
        if written is not None:
            answer, prompt = [*written, self.model.config.im_end_token_id], inputs["input_ids"].shape[1]
            forced["thinker_prefix_allowed_tokens_fn"] = lambda _, ids: [answer[len(ids) - prompt]]
            max_tokens = len(answer)
        heard = _Decisions(self.model)
        codes: list[torch.Tensor] = []
        decode = self.model.code2wav.chunked_decode
        self.model.code2wav.chunked_decode = lambda given, **options: (codes.append(given.clone()), decode(given))[1]
        try:
            ids, _ = self.model.generate(
                **inputs,
                use_audio_in_video=conversation.use_audio_in_video,
                speaker=speaker,
                thinker_max_new_tokens=max_tokens,
                thinker_eos_token_id=NO_TOKEN if endless else self.model.config.im_end_token_id,
                talker_do_sample=False,
                talker_max_new_tokens=max_frames + 1,
                talker_min_new_tokens=max_frames + 1 if endless else None,
                **forced,
            )
        except RuntimeError:
            return None
        finally:
            self.model.code2wav.chunked_decode = decode
            heard.close()
        waveform = self.model.code2wav(codes[0])[0, 0].numpy()
        margins = heard.margins(codes[0][0], endless=endless)
        return Spoken(ids[0, inputs["input_ids"].shape[1] :].tolist(), codes[0][0], margins, waveform)

    @torch.no_grad()
    def read(self, passages: list[str], instructions: str, max_frames: int, speaker: str) -> Spoken:
        """The speech for a text that is read aloud. For each passage, the talker gets the ids of the passage, as if the
        thinker had answered `instructions` with these ids. The waveform is decoded from the codes of all passages.

        Without `instructions`, the talker gets no user rows. (The reference itself would treat the opening of the
        assistant's turn as user rows, and leave these rows out of its attention mask.)
        """
        prompt = "<|im_start|>assistant\n"
        if instructions:
            turn = {"role": "user", "content": [{"type": "text", "text": instructions}]}
            prompt = self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        read = [self._read_passage(prompt, passage, max_frames, speaker) for passage in passages]
        codes = torch.cat([codes for codes, _ in read], dim=1)
        waveform = self.model.code2wav(codes[None])[0, 0].numpy()
        return Spoken([], codes, [margin for _, margins in read for margin in margins], waveform)

    def _read_passage(self, prompt: str, passage: str, max_frames: int, speaker: str) -> tuple[Any, list[float]]:
        """Codes of one passage, int64 [codebooks, frames], and the margins of the frames."""
        model, tokenizer = self.model, self.processor.tokenizer
        opened = tokenizer(prompt).input_ids
        ids = torch.tensor([opened + tokenizer(passage).input_ids + [model.config.im_end_token_id]])
        rows = model.thinker.get_input_embeddings()(ids[:, :-1])
        # The talker uses hidden states only at media rows, and this prompt has no media rows.
        states = (rows,) * (model.config.talker_config.accept_hidden_layer + 1)
        written = SimpleNamespace(sequences=ids, hidden_states=(states,))
        codes: list[torch.Tensor] = []
        write, speak, decode = model.thinker.generate, model.talker.generate, model.code2wav.chunked_decode

        def speak_without_user(**given: Any) -> Any:
            ours = {name: given[name][:, -9:] for name in ("inputs_embeds", "talker_input_ids", "attention_mask")}
            return speak(**given | ours)

        model.thinker.generate = lambda **given: written
        model.code2wav.chunked_decode = lambda given, **options: (codes.append(given.clone()), decode(given))[1]
        if model.config.user_token_id not in opened:
            model.talker.generate = speak_without_user
        heard = _Decisions(model)
        try:
            model.generate(
                input_ids=torch.tensor([opened]),
                speaker=speaker,
                thinker_eos_token_id=model.config.im_end_token_id,
                talker_do_sample=False,
                talker_max_new_tokens=max_frames + 1,
            )
        finally:
            model.thinker.generate, model.talker.generate, model.code2wav.chunked_decode = write, speak, decode
            heard.close()
        return codes[0][0], heard.margins(codes[0][0], endless=False)


class _Decisions:
    """Records the logits from which the codes of an utterance are picked."""

    def __init__(self, model: Any) -> None:
        self._talker = model.talker.config
        self._first: list[torch.Tensor] = []
        self._residual: list[float] = []
        self._hooks = [model.talker.codec_head.register_forward_hook(self._hear_first)]
        for head in model.talker.code_predictor.lm_head:
            self._hooks.append(head.register_forward_hook(self._hear_residual))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hear_first(self, module: Any, arguments: Any, logits: torch.Tensor) -> None:
        self._first.append(logits[0, -1].float())

    def _hear_residual(self, module: Any, arguments: Any, logits: torch.Tensor) -> None:
        best = logits[0, -1].float().topk(2).values
        self._residual.append(float(best[0] - best[1]))

    def margins(self, codes: torch.Tensor, *, endless: bool) -> list[float]:
        """For each frame, the smallest margin between the best and the second-best logit of its codes.

        For the talker, the margin is computed after the repetition penalty and without the banned codes.
        """
        banned = torch.zeros(self._talker.text_config.vocab_size, dtype=torch.bool)
        banned[-1024:] = True
        banned[self._talker.codec_eos_token_id] = endless
        residuals = len(codes) - 1
        smallest = []
        for frame, logits in enumerate(self._first[: codes.shape[1]]):
            said = codes[0, :frame].unique()
            logits = logits.clone()
            logits[said] = torch.where(logits[said] < 0, logits[said] * 1.05, logits[said] / 1.05)
            best = logits.masked_fill(banned, -torch.inf).topk(2).values
            own = self._residual[frame * residuals : (frame + 1) * residuals]
            smallest.append(min([float(best[0] - best[1]), *own]))
        return smallest
