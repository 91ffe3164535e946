"""Provides graphs on a CPU that behave like CUDA graphs. A graph records the operations of one run, and repeats them on
the same memory.

TorchScript cannot replace this module: a TorchScript trace allocates new memory for its results, and merges two tensors
of equal content into one constant. A recording of this module contains the same data as a CUDA graph: operations, and
the memory addresses that each operation reads and writes. If Python has computed a number during the recording, each
repetition uses the same number. A graph's result becomes garbage when another graph of the same pool runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class GraphPool:
    """Records graphs that use the same memory. On a GPU, the graphs of one engine share memory in this way, and so do
    the predictor's graphs.
    """

    def __init__(self) -> None:
        self._latest: _RecordedGraph | None = None

    def record(self, work: Callable[..., Any], inputs: tuple[torch.Tensor, ...] = ()) -> Callable[[], Any]:
        """Run `work`, and return a function that repeats the operations of `work` on the same memory.

        Each repetition returns the same tensors, with new content.

        Args:
            inputs: The arguments of `work`. `work` may also read and write other tensors.

        Raises:
            RuntimeError: `work` reads a tensor's content on the host, or makes a tensor whose size depends on a
                tensor's content. A CUDA graph can do neither.
        """
        graph = _RecordedGraph(work, inputs)

        def replay() -> Any:
            if self._latest is not None and self._latest is not graph:
                self._latest.spoil()
            self._latest = graph
            return graph.replay()

        return replay


class _RecordedGraph:
    """The operations and the result of one recorded run."""

    def __init__(self, work: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> None:
        with _OperationRecorder() as recorder:
            self._result = work(*inputs)
        self._operations = recorder.operations

    def replay(self) -> Any:
        for operation in self._operations:
            operation.repeat()
        return self._result

    def spoil(self) -> None:
        """Overwrite the result with garbage."""
        for tensor in _tensors_of(self._result):
            tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)


@dataclasses.dataclass(frozen=True, slots=True)
class _Operation:
    """An operation, its arguments, and the memory that it allocated when it was recorded."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    allocated: tuple[tuple[int, torch.Tensor], ...]

    def repeat(self) -> None:
        results = list(_tensors_of(self.function(*self.args, **self.kwargs)))
        for index, tensor in self.allocated:
            tensor.copy_(results[index])


class _OperationRecorder(TorchDispatchMode):
    """Records the tensor operations that run while the recorder is active, except operations that only make views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[_Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args):
            raise RuntimeError(
                f"{func} reads a tensor on the host, or makes a tensor of unknown size, which no graph can do"
            )
        result = func(*args, **kwargs)
        given = {_memory(tensor) for tensor in _tensors_of([args, kwargs])}
        allocated = tuple(
            (index, tensor) for index, tensor in enumerate(_tensors_of(result)) if _memory(tensor) not in given
        )
        if allocated or func._schema.is_mutable:
            self.operations.append(_Operation(func, args, kwargs, allocated))
        return result


def _waits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the operation makes the host wait for the GPU, because the host needs a number or a size."""
    if func._schema.name in ("aten::index", "aten::index_put", "aten::index_put_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_of(item)
    elif isinstance(value, dict):
        yield from _tensors_of(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from _tensors_of([getattr(value, field.name) for field in dataclasses.fields(value)])
