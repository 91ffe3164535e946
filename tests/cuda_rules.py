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
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch._subclasses import FakeTensor, FakeTensorMode, fake_tensor
from torch.overrides import TorchFunctionMode
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

_PINNING = frozenset({aten.pin_memory, aten._pin_memory})

_INDEXING = frozenset({aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_})

_TORCH = ("aten", "prim", "prims")

# What lies between an operation and the function that asked for it.
_BETWEEN = (str(Path(torch.__file__).parent), __file__)


class HostRead(Exception):
    """The host asked for what only the device knows, where it must not wait for it."""


class TypeMix(Exception):
    """Two floating-point types met in one operation, which promotes one of them without a word."""


class _WithoutDriver(FakeTensorMode):
    """Asks no driver for anything, also where GPUs are said to be there."""

    avoid_device_init = True


class _Unpinned(TorchFunctionMode):
    """Makes tensors in memory that is not pinned, for which a driver would be asked."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if options.get("pin_memory"):
            options = {**options, "pin_memory": False}
        return function(*args, **options)


class CudaRules(TorchDispatchMode):
    """While it is entered, ``cuda`` is a device, and these rules hold on it.

    Args:
        mixes: Functions, as ``module:name``, in which floating-point types may meet.
        reads: Functions that may ask for single numbers, which are zero; each is counted as a copy to the host.
        beyond: What operations of other libraries give, by name; those that are not here give nothing.

    Attributes:
        kernels: Kernels launched, by operation.
        captures: Kernels of each stretch of work that was captured.
        to_device: Copies from the host to the device, by the function that made them; those that are said not to block
            are left out.
        to_host: Copies from the device to the host, likewise. What arrives is zeros.
    """

    def __init__(
        self,
        mixes: Collection[str] = (),
        reads: Collection[str] = (),
        beyond: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__()
        self._mixes = frozenset(mixes)
        self._numbers = frozenset(reads)
        self._beyond = dict(beyond or {})
        self._fake = _WithoutDriver(allow_non_fake_inputs=True)
        self._capturing = False
        self._undo = contextlib.ExitStack()
        self.kernels: Counter[str] = Counter()
        self.captures: list[int] = []
        self.to_device: Counter[str] = Counter()
        self.to_host: Counter[str] = Counter()

    def forget(self) -> None:
        """Count from zero again."""
        for counts in (self.kernels, self.captures, self.to_device, self.to_host):
            counts.clear()

    def launch(self, name: str, *arguments: Any, alike: bool = False) -> None:
        """Stand for a kernel that is not one of torch's, with what it is given: its tensors are on the device.

        Args:
            alike: Whether its floating-point tensors must be of one type.

        Raises:
            RuntimeError: One is not on the device.
            TypeMix: They differ in type.
        """
        given = [argument for argument in tree_leaves(arguments) if isinstance(argument, torch.Tensor)]
        for tensor in given:
            if not isinstance(tensor, FakeTensor):
                raise RuntimeError(f"{name} was given a tensor on {tensor.device}, of shape {tuple(tensor.shape)}")
        if alike:
            self._check_types(name, given)
        self.kernels[name] += 1

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """As while a CUDA graph is captured: nothing may be copied between host and device."""
        before, self._capturing = self._capturing, True
        launched = self.kernels.total()
        try:
            yield
            self.captures.append(self.kernels.total() - launched)
        finally:
            self._capturing = before

    def __enter__(self) -> CudaRules:
        with contextlib.ExitStack() as undo:
            # Torch makes tensors of lists on the CPU, below all modes; then it moves them, which a mode can see.
            undo.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
            torch._C._set_only_lift_cpu_tensors(True)
            undo.enter_context(mock.patch.object(torch.cuda, "_lazy_init", _nothing))
            undo.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", _nothing))
            # One copy, as of any tensor on a device. A FakeTensor would ask for one number after the other.
            undo.enter_context(mock.patch.object(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()))
            for name, stand_in in self._graphs().items():
                undo.enter_context(mock.patch.object(torch.cuda, name, stand_in))
            undo.enter_context(_Unpinned())
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
        packet = func.overloadpacket
        if not on_device and "cuda" not in devices:
            if packet in _PINNING:  # memory that only a driver can pin
                return args[0]
            return func(*args, **kwargs)
        if func.namespace not in _TORCH:
            self.launch(packet.__name__, args, kwargs)
            if not func._schema.returns:
                return None
            with self._fake:
                return self._beyond[packet.__name__](*args, **kwargs)
        if _is_composite(func) and packet not in _FUSED:
            return self._decomposed(func, args, kwargs)
        if packet is aten._to_copy and "cpu" in devices:
            self._note(self.to_host, "a copy to the host")
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if packet is aten.copy_ and not isinstance(args[0], FakeTensor):
            self._note(self.to_host, "a copy to the host")
            return args[0].zero_()
        if packet is aten._local_scalar_dense and _asker() in self._numbers:
            self._note(self.to_host, "a number")
            return torch.zeros((), dtype=args[0].dtype).item()
        if packet in _COPIES:
            waits = not (kwargs.get("non_blocking") or (packet is aten.copy_ and args[2:] == (True,)))
            if waits and not isinstance(args[packet is aten.copy_], FakeTensor):
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
        graphs: dict[str, Callable[..., Any]] = {
            "graph_pool_handle": lambda: (0, 0),
            "is_current_stream_capturing": lambda: self._capturing,
            "CUDAGraph": lambda: mock.Mock(spec=["replay"], **{"replay.side_effect": lambda: self.launch("graph")}),
            "graph": lambda cuda_graph, **options: self.captured(),
        }
        if torch.cuda.is_available():  # or said to be
            return graphs
        stream = mock.Mock(spec=["wait_stream"])
        streams: dict[str, Callable[..., Any]] = {
            "Stream": lambda *args, **kwargs: stream,
            "current_stream": lambda *args: stream,
            "stream": lambda stream: contextlib.nullcontext(),
        }
        return graphs | streams


def _nothing(*arguments: Any) -> None:
    """In place of what would ask a driver."""


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
