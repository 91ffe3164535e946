"""Computes the reference: the answers of Hugging Face's Qwen3-Omni to conversations, with greedy decoding.

Media are files. This module decodes them in the simplest way, so that the tests find mistakes in the server's decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy
import soundfile
import soxr
import torch
from PIL import Image, ImageOps
from transformers import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
from transformers.video_utils import VideoMetadata

from tests.device import EXACTNESS

SAMPLE_RATE = 16_000

# Two logits whose difference is smaller than this may be in the opposite order if a batch has another shape (see
# docs/architecture.md).
NEAR_TIE = EXACTNESS.near_tie

# An id that no token has. If this id is set as the end of the text, no token ends the text.
NO_TOKEN = -1


@dataclass(frozen=True)
class Conversation:
    """A conversation in Hugging Face's form, with paths for media, and the processor's video options.

    `messages` hold parts ``{"type": "text" | "image" | "audio" | "video", <type>: text or path}``.
    """

    name: str
    messages: list[dict[str, Any]]
    fps: float = 2.0
    use_audio_in_video: bool = False


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
        prompt = self.processor.apply_chat_template(conversation.messages, add_generation_prompt=True, tokenize=False)
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
        return self.processor(
            text=prompt, images=images or None, audio=sounds or None, return_tensors="pt", padding=True, **video
        )

    @torch.no_grad()
    def greedy(self, conversation: Conversation, max_tokens: int, repetition_penalty: float = 1.0) -> Greedy:
        """The thinker's greedy answer. The margins are computed from the logits after the repetition penalty."""
        inputs = self.inputs(conversation)
        result = self.model.thinker.generate(
            **inputs,
            use_audio_in_video=conversation.use_audio_in_video,
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self.model.config.im_end_token_id,
            return_dict_in_generate=True,
            output_scores=True,
            repetition_penalty=repetition_penalty,
        )
        ids = result.sequences[0, inputs["input_ids"].shape[1] :].tolist()
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
    """Index of the first token where `answer` differs from the reference, or None if they are equal."""
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
        # This attribute is missing in transformers 5.19.0, which needs it for sound together with images or clips (see
        # docs/architecture.md).
        self.model.talker.config.audio_config = self.model.config.thinker_config.audio_config

    @torch.no_grad()
    def speak(
        self, conversation: Conversation, max_tokens: int, max_frames: int, speaker: str, *, endless: bool = False
    ) -> Spoken | None:
        """The spoken answer. It is None if the text or the speech ends at the first token, because the reference then
        fails.

        An `endless` answer ends only at the limits.
        """
        inputs = self.inputs(conversation)
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
            )
        except RuntimeError:
            return None
        finally:
            self.model.code2wav.chunked_decode = decode
            heard.close()
        waveform = self.model.code2wav(codes[0])[0, 0].numpy()
        margins = heard.margins(codes[0][0], endless=endless)
        return Spoken(ids[0, inputs["input_ids"].shape[1] :].tolist(), codes[0][0], margins, waveform)


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
