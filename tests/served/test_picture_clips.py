"""A clip that is sent as pictures gets the reference's answer to these pictures. A file with the same frames gets the
same answer.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
import torch
from PIL import Image

from tests.reference import Reference
from tests.server import Server

TOKENS = 8
QUESTION = "What moves?"
FRAMES = 8  # more than the media items that this server allows in a request


def jpegs(count: int = FRAMES) -> list[bytes]:
    """Pictures of a moving wave."""
    y, x = numpy.mgrid[0:64, 0:96]
    files = []
    for number in range(count):
        wave = 127 + 120 * numpy.sin((x + 7 * number) / 9 + y / 7)
        file = io.BytesIO()
        pixels = numpy.stack([wave, x * 2, y * 3], axis=-1).astype(numpy.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def pixels_of(files: list[bytes]) -> numpy.ndarray:
    return numpy.stack([numpy.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ask(server: Server, content: list[dict[str, Any]], **fields: Any) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of the answer to `content` and the question."""
    question = {"type": "text", "text": QUESTION}
    body = {"messages": [{"role": "user", "content": [*content, question]}], "max_tokens": TOKENS}
    options = {"ignore_eos": True, "logprobs": True, "return_token_ids": True}
    status, answer = server.post(body | options | fields)
    assert status == 200, answer
    [choice] = answer["choices"]
    return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


@torch.no_grad()
def truth(reference: Reference, frames: numpy.ndarray, rate: float) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of the reference's answer to the same frames."""
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    prompt = reference.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = reference.processor(
        text=prompt,
        videos=[frames],
        fps=rate,
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        return_tensors="pt",
        padding=True,
    )
    result = reference.model.thinker.generate(
        **inputs,
        use_audio_in_video=False,
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=-1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = result.sequences[0, inputs["input_ids"].shape[1] :]
    scores = torch.stack(result.scores)[:, 0].float().log_softmax(-1)
    return ids.tolist(), scores.gather(1, ids[:, None])[:, 0].tolist()


def same(found: tuple[list[int], list[float]], expected: tuple[list[int], list[float]]) -> None:
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=1e-3)


def test_every_form_gets_the_references_answer(server: Server, repository: Path, reference: Reference) -> None:
    files = jpegs()
    for number, file in enumerate(files):
        (repository / f"frame{number}.jpg").write_bytes(file)
    url = "data:video/jpeg;base64," + ",".join(map(encoded, files))
    one_by_one = [f"data:image/jpeg;base64,{encoded(file)}" for file in files]
    paths = [f"frame{number}.jpg" for number in range(FRAMES)]
    pixels = pixels_of(files)

    plain = truth(reference, pixels, 2)
    same(ask(server, [{"type": "video_url", "video_url": {"url": url}}]), plain)
    same(ask(server, [], videos=[url]), plain)
    same(ask(server, [{"type": "video", "video": one_by_one}]), plain)
    same(ask(server, [{"type": "video", "video": paths, "fps": 2}], video_fps=5, video_max_frames=2), plain)

    slow = truth(reference, pixels, 0.5)
    assert slow[1] != pytest.approx(plain[1], abs=1e-3)
    same(ask(server, [{"type": "video", "video": one_by_one, "fps": 0.5}]), slow)
    same(ask(server, [{"type": "video_url", "video_url": {"url": url}}], video_fps=0.5), slow)

    odd = truth(reference, pixels[:5], 2)
    same(ask(server, [{"type": "video", "video": one_by_one[:5]}]), odd)


def test_a_file_with_the_same_frames_gets_the_same_answer(server: Server, repository: Path) -> None:
    files = jpegs()
    with av.open(str(repository / "frames.mov"), "w") as container:
        stream = container.add_stream("png", rate=2)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        for pixels in pixels_of(files):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    file = ask(server, [{"type": "video_url", "video_url": {"url": "frames.mov"}}])
    url = "data:video/jpeg;base64," + ",".join(map(encoded, files))
    same(ask(server, [{"type": "video_url", "video_url": {"url": url}}]), file)

    heard = ask(server, [{"type": "video_url", "video_url": {"url": "frames.mov"}}], use_audio_in_video=True)
    same(ask(server, [{"type": "video_url", "video_url": {"url": url}}], use_audio_in_video=True), heard)
    assert heard[1] != pytest.approx(file[1], abs=1e-3)


def test_a_damaged_picture_of_a_clip_is_named(server: Server) -> None:
    files = jpegs(4)
    files[2] = files[2][: len(files[2]) // 2]
    body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    url = "data:video/jpeg;base64," + ",".join(map(encoded, files))
    status, answer = server.post(body | {"videos": [url]})
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, "invalid_image", "videos[0]")
    assert error["message"].startswith("Frame 3 of 4: ")
