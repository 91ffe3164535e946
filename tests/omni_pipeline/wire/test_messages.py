"""Messages are encoded to frames and decoded again without copies. The decoder does not trust the frames that it
receives.
"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from msgspec import Struct, msgpack

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.codec import Codec, WireError
from omni_pipeline.wire.messages import (
    Abort,
    Advice,
    Chunk,
    Claim,
    End,
    Failed,
    Forgotten,
    Granted,
    Heartbeat,
    Message,
    Moved,
    Paused,
    Pulse,
    Ready,
    Shutdown,
    StageStats,
    Start,
    StartFailed,
)
from omni_pipeline.wire.tensor import ITEM_SIZE, Tensor


class Leaf(Struct, tag="leaf"):
    data: Tensor
    note: str = ""


class Tree(Struct, tag="tree"):
    leaves: list[Leaf]
    by_name: dict[str, Tensor] = {}
    maybe: Tensor | None = None


class Hint(Struct):
    first: list[str]


EDGE = ("a", "b")


@pytest.fixture
def codec() -> Codec:
    return Codec({EDGE: Leaf | Tree}, {("b", "a"): Hint})


def there_and_back(codec: Codec, message: Message) -> Any:
    return codec.decode([bytes(frame) for frame in codec.encode(message)])


def received(codec: Codec, tensor: Tensor) -> Tensor:
    back: Tensor = there_and_back(codec, Start("r", *EDGE, Leaf(tensor))).body.data
    return back


@pytest.mark.parametrize("dtype", ITEM_SIZE)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7,), (2, 3, 5)])
def test_torch_tensor_keeps_type_shape_and_values(codec: Codec, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 100).to(getattr(torch, dtype))
    back = received(codec, Tensor.of(tensor)).torch()
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", [name for name in ITEM_SIZE if name != "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_numpy_array_keeps_type_shape_and_values(codec: Codec, dtype: str, shape: tuple[int, ...]) -> None:
    array = (numpy.random.default_rng(0).random(shape) * 100).astype(dtype)
    back = received(codec, Tensor.of(array)).numpy()
    assert back.dtype == array.dtype
    assert numpy.array_equal(back, array)


def test_bytes_travel_as_uint8(codec: Codec) -> None:
    back = received(codec, Tensor.of(b"\x00\xff"))
    assert (back.dtype, back.shape) == ("uint8", (2,))
    assert bytes(back.buffer()) == b"\x00\xff"


def test_non_contiguous_tensor_travels_in_logical_order(codec: Codec) -> None:
    tensor = torch.arange(12).reshape(3, 4).T[::2]
    assert torch.equal(received(codec, Tensor.of(tensor)).torch(), tensor)


def test_gradients_stay_behind(codec: Codec) -> None:
    assert not received(codec, Tensor.of(torch.ones(2, requires_grad=True))).torch().requires_grad


def test_bfloat16_is_refused_as_numpy(codec: Codec) -> None:
    with pytest.raises(TypeError):
        received(codec, Tensor.of(torch.ones(2, dtype=torch.bfloat16))).numpy()


def test_unknown_type_is_refused_when_wrapped() -> None:
    with pytest.raises(TypeError, match="complex64"):
        Tensor.of(torch.ones(2, dtype=torch.complex64))


def test_sending_does_not_copy(codec: Codec) -> None:
    tensor = torch.zeros(1000)
    frame = codec.encode(Start("r", *EDGE, Leaf(Tensor.of(tensor))))[1]
    tensor[0] = 1.0
    assert numpy.frombuffer(frame, dtype="float32")[0] == 1.0


def test_receiving_does_not_copy(codec: Codec) -> None:
    header, data = codec.encode(Start("r", *EDGE, Leaf(Tensor.of(numpy.zeros(1000)))))
    frame = bytearray(data)
    back = codec.decode([header, frame]).body.data.torch()  # type: ignore[union-attr]
    frame[:8] = numpy.float64(3.0).tobytes()
    assert back[0] == 3.0


def test_received_array_is_read_only(codec: Codec) -> None:
    array = received(codec, Tensor.of(numpy.zeros(3))).numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1.0


def test_same_side_gets_the_very_tensor() -> None:
    tensor = torch.zeros(3)
    assert Tensor.of(tensor).torch() is tensor


def test_tensors_anywhere_in_a_body_are_found(codec: Codec) -> None:
    one, two, three = (Tensor.of(numpy.full(2, value)) for value in (1, 2, 3))
    body = Tree([Leaf(one, "first"), Leaf(one)], by_name={"x": two}, maybe=three)
    back = there_and_back(codec, Chunk("r", *EDGE, body, seq=4)).body
    values = [leaf.data.numpy()[0] for leaf in back.leaves] + [back.by_name["x"].numpy()[0], back.maybe.numpy()[0]]
    assert values == [1, 1, 2, 3]
    assert back.leaves[0].note == "first"


@pytest.mark.parametrize(
    "message",
    [
        Abort("r"),
        Forgotten("r", "shout", "split"),
        Claim("r", "split", 2**40, 5),
        Paused("r", "split"),
        Granted("r", "split"),
        Failed("r", "a", ErrorInfo(status=400, message="no", param="x", code="y", stage="a", retry_after=3)),
        Ready("w", 0, 1, ["a"], 0.5, [2, 3]),
        Pulse("w", 1),
        Heartbeat("w", 1, {"a": StageStats(live_requests=1, extra={"x": 2.0})}, epoch=4),
        StartFailed("w", 1, "why"),
        Moved("w", ["a", "b"], "ipc://there", 5),
        Shutdown(),
        End("r", *EDGE, count=3),
    ],
    ids=lambda message: type(message).__name__,
)
def test_message_without_tensors_comes_back_equal(codec: Codec, message: Message) -> None:
    assert there_and_back(codec, message) == message


def test_end_may_carry_a_body(codec: Codec) -> None:
    assert there_and_back(codec, End("r", *EDGE, Tree([]), count=1)) == End("r", *EDGE, Tree([]), count=1)


def header(codec: Codec, tensor: Any) -> bytes:
    return msgpack.encode(
        {"type": "start", "request_id": "r", "source": "a", "target": "b", "body": {"type": "leaf", "data": tensor}}
    )


@pytest.mark.parametrize(
    "tensor",
    [
        [1, "float32", [3]],  # the frame is too short for three numbers
        [1, "float32", [1]],  # the frame is too long for one number
        [2, "float32", [2]],  # there is no frame 2
        [0, "uint8", [1]],  # frame 0 is the header
        [-1, "float32", [2]],
        [1, "float128", [2]],
        [1, "float32", ["2"]],
        [1, "float32"],
        "float32",
        None,
    ],
    ids=str,
)
def test_tensor_that_does_not_fit_its_frame_is_refused(codec: Codec, tensor: Any) -> None:
    with pytest.raises(WireError) as caught:
        codec.decode([header(codec, tensor), bytes(8)])
    assert caught.value.request_id == "r"


@pytest.mark.parametrize(
    "frames", [[], [b""], [b"\xc1"], [msgpack.encode({"type": "nonsense"})], [msgpack.encode([1, 2])]], ids=str
)
def test_what_is_no_message_is_refused(codec: Codec, frames: list[bytes]) -> None:
    with pytest.raises(WireError) as caught:
        codec.decode(frames)
    assert caught.value.request_id is None


def test_edge_that_is_not_in_the_graph_is_refused(codec: Codec) -> None:
    frames = codec.encode(Start("r", "b", "a", Tree([])))
    with pytest.raises(WireError, match="no edge b → a") as caught:
        codec.decode(frames)
    assert caught.value.request_id == "r"


def test_body_of_another_type_is_refused(codec: Codec) -> None:
    with pytest.raises(WireError, match="a → b"):
        codec.decode(codec.encode(Start("r", *EDGE, {"type": "bush"})))


def test_codec_serves_on_after_a_body_that_cannot_travel(codec: Codec) -> None:
    with pytest.raises(NotImplementedError):
        codec.encode(Start("r", *EDGE, Tree([], by_name={"x": object()})))  # type: ignore[dict-item]
    assert len(codec.encode(Abort("r"))) == 1


def test_advice_has_the_type_of_its_pair_of_stages(codec: Codec) -> None:
    advice = Advice("b", "a", Hint(["r2", "r1"]))
    assert there_and_back(codec, advice) == advice
    for wrong in (Advice("a", "b", Hint([])), Advice("b", "a", {"first": 1})):
        with pytest.raises(WireError, match="advice"):
            there_and_back(codec, wrong)
