"""Tensors that are on a GPU by name only: operations on them are checked as on CUDA, counted, and not computed.

`CudaRules` is a dispatch mode. A tensor on ``cuda`` is one of torch's FakeTensors: it has a shape, a type and a device,
and no values. Tensors on the CPU are computed as ever. What CUDA refuses fails at once (an operation over two devices,
a shape that does not fit), and so does a type promotion that nobody has allowed. Whatever copies between host and
device, and so may make one wait for the other, is counted by the function that asked for it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# Operations that launch nothing beside views: they allocate, or say again what is there.
_NO_KERNELS = frozenset(
    {
        aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.detach,
        aten.lift_fresh, aten._unsafe_view, aten._reshape_alias, aten.resize_, aten.set_, torch.ops.prim.device,
    }
)  # fmt: skip

# Operations whose result has a size, or is a number, that only the device knows.
_READS = frozenset(
    {
        aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_dim,
        aten.unique_consecutive, aten.bincount, aten.is_nonzero,
    }
)  # fmt: skip

# Operations that torch has in parts, and CUDA as one kernel.
_FUSED = frozenset({aten.scaled_dot_product_attention})

# Operations that are there to change a type or a device.
_COPIES = frozenset({aten.copy_, aten._to_copy})

_INDEXING = frozenset({aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_})

# What lies between an operation and the function that asked for it.
_BETWEEN = (str(Path(torch.__file__).parent), __file__)


class HostRead(Exception):
    """The host asked for what only the device knows, where it must not wait for it."""


class TypeMix(Exception):
    """Two floating-point types met in one operation, which promotes one of them without a word."""


class CudaRules(TorchDispatchMode):
    """While it is entered, ``cuda`` is a device, and these rules hold on it.

    Args:
        mixes: Functions, as ``module:name``, in which floating-point types may meet.

    Attributes:
        kernels: Kernels launched, by operation.
        to_device: Copies from the host to the device, by the function that made them.
        to_host: Copies from the device to the host, likewise. What arrives is zeros.
    """

    def __init__(self, mixes: Collection[str] = ()) -> None:
        super().__init__()
        self._mixes = frozenset(mixes)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._capturing = False
        self._undo = contextlib.ExitStack()
        self.kernels: Counter[str] = Counter()
        self.to_device: Counter[str] = Counter()
        self.to_host: Counter[str] = Counter()

    def forget(self) -> None:
        """Count from zero again."""
        for counts in (self.kernels, self.to_device, self.to_host):
            counts.clear()

    def launch(self, name: str, *tensors: torch.Tensor | None) -> None:
        """Stand for a kernel that is not one of torch's: its tensors are on the device, and of one type.

        Raises:
            RuntimeError: One is not on the device.
            TypeMix: They differ in type.
        """
        given = [tensor for tensor in tensors if tensor is not None]
        for tensor in given:
            if not isinstance(tensor, FakeTensor):
                raise RuntimeError(f"{name} was given a tensor on {tensor.device}, of shape {tuple(tensor.shape)}")
        self._check_types(name, given)
        self.kernels[name] += 1

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """As while a CUDA graph is captured: nothing may be copied between host and device."""
        before, self._capturing = self._capturing, True
        try:
            yield
        finally:
            self._capturing = before

    def __enter__(self) -> CudaRules:
        with contextlib.ExitStack() as undo:
            # Torch makes tensors of lists on the CPU, below all modes; then it moves them, which a mode can see.
            undo.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
            torch._C._set_only_lift_cpu_tensors(True)
            undo.enter_context(mock.patch.object(torch.cuda, "_lazy_init", mock.Mock()))
            # One copy, as of any tensor on a device. A FakeTensor would ask for one number after the other.
            undo.enter_context(mock.patch.object(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()))
            for name, stand_in in self._graphs().items():
                undo.enter_context(mock.patch.object(torch.cuda, name, stand_in))
            super().__enter__()
            undo.callback(super().__exit__, None, None, None)
            # With a number: only then does torch not ask the driver which device is meant, here and from now on.
            torch.empty(0).to("cuda:0")
            self.forget()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        on_device = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
        devices = [leaf.type for leaf in leaves if isinstance(leaf, torch.device)]
        if not on_device and "cuda" not in devices:
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if _is_composite(func) and packet not in _FUSED:
            return self._decomposed(func, args, kwargs)
        if packet is aten._to_copy and "cpu" in devices:
            self._note(self.to_host, "a copy to the host")
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if packet is aten.copy_ and not isinstance(args[0], FakeTensor):
            self._note(self.to_host, "a copy to the host")
            return args[0].zero_()
        if packet in _COPIES:
            if not isinstance(args[-1], FakeTensor):
                self._note(self.to_device, "a copy from the host")
        else:
            self._check_reads(packet, args, kwargs)
            self._check_types(packet.__name__, on_device)
        if not func.is_view and packet not in _NO_KERNELS:
            self.kernels[packet.__name__] += 1
        with self._fake:
            return func(*args, **kwargs)

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What is one operation in inference mode only, by its parts."""
        super().__enter__()
        try:
            return func.decompose(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)

    def _check_reads(self, packet: Any, args: Any, kwargs: Any) -> None:
        if packet in _READS or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
            raise HostRead(f"{packet.__name__} in {_asker()} makes the host wait for the device")
        if packet in _INDEXING:
            for index in args[1]:
                if index is None:
                    continue
                if index.dtype in (torch.bool, torch.uint8):
                    raise HostRead(f"{packet.__name__} in {_asker()} makes the host wait for the number of its places")
                if not isinstance(index, FakeTensor):
                    self._note(self.to_device, "an index on the host")

    def _check_types(self, name: str, tensors: list[Any]) -> None:
        found = {tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dim()}
        if len(found) > 1 and _asker() not in self._mixes:
            raise TypeMix(f"{name} in {_asker()} mixes {' and '.join(sorted(map(str, found)))}")

    def _note(self, counts: Counter[str], what: str) -> None:
        if self._capturing:
            raise HostRead(f"{what} in {_asker()} cannot be captured")
        counts[_asker()] += 1

    def _graphs(self) -> dict[str, Callable[..., Any]]:
        """Stand-ins in `torch.cuda`: work is captured by doing it under the rules for that, and replayed by nothing."""
        stream = mock.Mock(spec=["wait_stream", "synchronize"])
        return {
            "graph_pool_handle": lambda: (0, 0),
            "Stream": lambda *args, **kwargs: stream,
            "current_stream": lambda *args: stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": lambda: mock.Mock(spec=["replay"]),
            "graph": lambda graph, **kwargs: self.captured(),
        }


@functools.cache
def _is_composite(func: Any) -> bool:
    name = "CompositeImplicitAutograd"
    return func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), name)


def _asker() -> str:
    """The function that asked for the operation under way, as ``module:name``: the nearest outside torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_globals['__name__']}:{frame.f_code.co_qualname}"
