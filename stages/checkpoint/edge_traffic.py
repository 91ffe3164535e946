"""Computes the bytes of the messages between two stages for one request. The inputs are the request's numbers of
tokens, the shapes of the messages (`stages.messages`), and the sizes in the model's config. A test compares the results
with encoded messages.
"""

from __future__ import annotations

from omni_pipeline.contract.edge_traffic import Traffic
from omni_pipeline.contract.stage_memory import Situation
from stages.checkpoint.audio_lengths import FULL_CHUNK_ROWS
from stages.checkpoint.memory_needs import FRAMES_PER_TOKEN
from stages.checkpoint.model_config import read

MESSAGE_BYTES = 200
"""Approximate number of bytes of a message without its tensors: ids, names of stages, and fields of the body."""

# Bytes of an id or a row index (int64), of a position in three dimensions, and of one number that is sent in float32.
_ID, _POSITION, _FLOAT = 8, 3 * 4, 4

# Mel frames in a second of sound. A second is one chunk of the audio tower.
_FRAMES_PER_CHUNK = 100


def patches(situation: Situation) -> Traffic:
    """preprocessing → image_encoder: the patches of all pictures, in float32. A patch has pixels for two frames, so it
    contains the pixels of a picture twice.
    """
    vision = read(situation.config).thinker_config.vision_config
    row = vision.spatial_merge_size**2 * vision.patch_elements * _FLOAT
    return Traffic(0, situation.request.prompt_tokens * row + MESSAGE_BYTES)


def mel(situation: Situation) -> Traffic:
    """preprocessing → audio_encoder: the mel frames of all sounds."""
    audio = read(situation.config).thinker_config.audio_config
    chunks = -(-situation.request.prompt_tokens // FULL_CHUNK_ROWS)
    return Traffic(0, chunks * _FRAMES_PER_CHUNK * audio.num_mel_bins * _FLOAT + MESSAGE_BYTES)


def prompt(situation: Situation) -> Traffic:
    """preprocessing → mm_aggregate: ids, positions, and the rows of media."""
    tokens = situation.request.prompt_tokens
    return Traffic(tokens * _ID + MESSAGE_BYTES, tokens * (2 * _ID + _POSITION) + MESSAGE_BYTES)


def vision_rows(situation: Situation) -> Traffic:
    """image_encoder → mm_aggregate: an embedding and the deepstack embeddings for each row, in float32."""
    return Traffic(0, situation.request.prompt_tokens * _vision_row(situation) + MESSAGE_BYTES)


def audio_rows(situation: Situation) -> Traffic:
    """audio_encoder → mm_aggregate: an embedding for each row, in float32."""
    return Traffic(0, situation.request.prompt_tokens * _hidden(situation) * _FLOAT + MESSAGE_BYTES)


def thinker_request(situation: Situation) -> Traffic:
    """mm_aggregate → thinker: ids, positions, and all embeddings of media."""
    tokens = situation.request.prompt_tokens
    media = 4 * _ID + _POSITION + _vision_row(situation)
    return Traffic(tokens * 2 * _ID + MESSAGE_BYTES, tokens * media + MESSAGE_BYTES)


def tokens(situation: Situation) -> Traffic:
    """thinker → decode, and decode → collector: one message for each token."""
    return _equal((situation.request.answer_tokens + 2) * MESSAGE_BYTES)


def report(situation: Situation) -> Traffic:
    """decode → thinker: one message, which ends the text. Reports about spoken tokens (`Certain`) are not counted."""
    return _equal(MESSAGE_BYTES)


def talker_prompt(situation: Situation) -> Traffic:
    """thinker → talker_ar: the ids of the prompt, one hidden state for each media row, and one message for each
    token.
    """
    rows = situation.request.prompt_tokens
    text = rows * _ID + (situation.request.answer_tokens + 2) * MESSAGE_BYTES
    return Traffic(text, text + rows * (_ID + _POSITION + _hidden(situation) * situation.item_size))


def passages(situation: Situation) -> Traffic:
    """preprocessing → talker_ar: the ids of a text that is read aloud, as MessagePack numbers. Other requests send
    nothing on this edge.
    """
    return _equal(situation.request.answer_tokens * 5 + 3 * MESSAGE_BYTES)


def frames(situation: Situation) -> Traffic:
    """code_predictor → code2wav: one message for each frame, with the codes of the frame."""
    talker = read(situation.config).talker_config
    codes = talker.num_code_groups * _ID if talker is not None else 0
    return _equal(_frames(situation) * (codes + MESSAGE_BYTES))


def sound(situation: Situation) -> Traffic:
    """code2wav → collector: the samples in float32. A message has one or more frames."""
    vocoder = read(situation.config).code2wav_config
    samples = 1 if vocoder is not None else 0
    for factor in (*vocoder.upsampling_ratios, *vocoder.upsample_rates) if vocoder is not None else ():
        samples *= factor
    return _equal(_frames(situation) * (samples * _FLOAT + MESSAGE_BYTES))


def _equal(size: int) -> Traffic:
    """The traffic of an edge on which a prompt of media needs the same number of bytes as a prompt of text."""
    return Traffic(size, size)


def _frames(situation: Situation) -> int:
    return FRAMES_PER_TOKEN * situation.request.answer_tokens


def _hidden(situation: Situation) -> int:
    return read(situation.config).thinker_config.text_config.hidden_size


def _vision_row(situation: Situation) -> int:
    """Bytes of the embeddings of one visual row."""
    vision = read(situation.config).thinker_config.vision_config
    return (1 + len(vision.deepstack_visual_indexes)) * vision.out_hidden_size * _FLOAT
