"""Defines the arrays in messages. An array is a torch tensor, a numpy array or bytes. It is sent as a raw frame."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy
    import torch

Buffer: TypeAlias = bytes | bytearray | memoryview

# Bytes per element, by data type. Torch and our messages use the same names.
ITEM_SIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


class Tensor:
    """An n-dimensional array inside a message: a torch tensor, a numpy array or bytes. Using this class imports neither
    torch nor numpy.

    The array is not copied. In the process that made the array, `torch()` returns the same tensor. In another process,
    `torch()` returns a view of the received frame. Do not change this view.
    """

    __slots__ = ("_source", "dtype", "shape")

    def __init__(self, source: Any, dtype: str, shape: tuple[int, ...]) -> None:
        self._source = source
        self.dtype = dtype
        self.shape = shape

    @classmethod
    def of(cls, array: torch.Tensor | numpy.ndarray | Buffer) -> Tensor:
        """Wrap a torch tensor (any device), a numpy array, or bytes (as uint8 [n])."""
        if isinstance(array, (bytes, bytearray, memoryview)):
            return cls(array, "uint8", (memoryview(array).nbytes,))
        name = str(array.dtype).removeprefix("torch.")
        if name not in ITEM_SIZE:
            raise TypeError(f"a {name} tensor cannot be sent; known: {', '.join(ITEM_SIZE)}")
        return cls(array, name, tuple(array.shape))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    def buffer(self) -> memoryview:
        """The elements as contiguous bytes (copied to the CPU if they are on a GPU)."""
        source = self._source
        if hasattr(source, "untyped_storage"):  # torch.Tensor
            import torch

            flat = source.detach().to("cpu").contiguous().reshape(-1)
            return flat.view(torch.uint8).numpy().data
        if hasattr(source, "__array_interface__"):
            import numpy

            return numpy.ascontiguousarray(source).reshape(-1).view(numpy.uint8).data
        return memoryview(source).cast("B")

    def torch(self) -> torch.Tensor:
        """The elements as a torch tensor, which shares memory with the received frame."""
        import torch

        if isinstance(self._source, torch.Tensor):
            return self._source
        dtype = getattr(torch, self.dtype)
        data = self.buffer()
        if not data.nbytes:
            return torch.empty(self.shape, dtype=dtype)
        import warnings

        with warnings.catch_warnings():  # torch warns that received bytes are read-only, but this is intended
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.frombuffer(data, dtype=dtype).reshape(self.shape)

    def numpy(self) -> numpy.ndarray:
        """The elements as a numpy array. Raises TypeError for bfloat16, because numpy does not have this type."""
        import numpy

        if self.dtype == "bfloat16":  # refuse bfloat16 even if some library has added this type to numpy
            raise TypeError("numpy has no bfloat16")
        if isinstance(self._source, numpy.ndarray):
            return self._source
        return numpy.frombuffer(self.buffer(), dtype=numpy.dtype(self.dtype)).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)})"
