"""Simulates tensors on a GPU. Operations on such tensors are checked against CUDA's rules and counted, not computed.

`CudaRules` is a dispatch mode. A tensor on ``cuda`` is one of torch's FakeTensors: it has a shape, a type and a device,
but no values. Tensors on the CPU are computed as usual. An operation that CUDA refuses fails at once, for example an
operation over two devices or with a wrong shape. A type promotion fails too, unless an argument allows it. If data are
copied between host and device, the host may have to wait for the device, or the device may have to wait for the host.
So each copy is counted under the name of the function that caused the copy.
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

# Operations that launch no kernel and are not views. They allocate memory, or make another tensor of existing memory.
_NO_KERNELS = frozenset(
    {
        aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.detach,
        aten.lift_fresh, aten._unsafe_view, aten._reshape_alias, aten.resize_, aten.set_, torch.ops.prim.device,
    }
)  # fmt: skip

# Operations that read values from the device's memory, because their result or the size of their result depends on
# these values.
_READS = frozenset(
    {
        aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_dim,
        aten.unique_consecutive, aten.bincount, aten.is_nonzero,
    }
)  # fmt: skip

# Operations that torch composes from other operations, and that CUDA runs as one kernel.
_FUSED = frozenset({aten.scaled_dot_product_attention})

# Operations whose purpose is to change a type or a device.
_COPIES = frozenset({aten.copy_, aten._to_copy})

_PINNING = frozenset({aten.pin_memory, aten._pin_memory})

_INDEXING = frozenset({aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_})

_TORCH = ("aten", "prim", "prims")

# Modules whose stack frames lie between an operation and the function that called the operation.
_BETWEEN = (str(Path(torch.__file__).parent), __file__)


class HostRead(Exception):
    """The host read a value from the device in a function that must not wait for the device."""


class TypeMix(Exception):
    """Two floating-point types met in one operation, which silently promotes one of them."""


class _WithoutDriver(FakeTensorMode):
    """A FakeTensorMode that never calls a GPU driver, even if GPUs are simulated."""

    avoid_device_init = True


class _Unpinned(TorchFunctionMode):
    """Makes tensors in memory that is not pinned, since pinning needs a driver."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if options.get("pin_memory"):
            options = {**options, "pin_memory": False}
        return function(*args, **options)


class CudaRules(TorchDispatchMode):
    """Makes ``cuda`` a device with the rules that this module describes, while this context is active.

    Args:
        mixes: Functions, as ``module:name``, in which one operation may mix floating-point types.
        reads: Functions that may read single numbers from the device. The numbers are zeros, and each read is counted
            as a copy to the host.
        beyond: Results of other libraries' operations, by the name of the operation. Operations that are not listed
            return None.

    Attributes:
        kernels: Kernels launched, by operation.
        captures: Number of kernels in each capture.
        to_device: Copies from the host to the device, by the function that made them; non-blocking copies are
            left out.
        to_host: Copies from the device to the host, by the function that made them. The copied values are zeros.
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
        """Reset all counts to zero."""
        for counts in (self.kernels, self.captures, self.to_device, self.to_host):
            counts.clear()

    def launch(self, name: str, *arguments: Any, alike: bool = False) -> None:
        """Stand in for a kernel of another library: check that the tensors are on the device, and count one launch.

        Args:
            alike: Whether all floating-point tensors of the kernel must have the same type.

        Raises:
            RuntimeError: A tensor is not on the device.
            TypeMix: The tensors differ in type.
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
        """Apply the rules of a CUDA graph capture: nothing may be copied between host and device."""
        before, self._capturing = self._capturing, True
        launched = self.kernels.total()
        try:
            yield
            self.captures.append(self.kernels.total() - launched)
        finally:
            self._capturing = before

    def __enter__(self) -> CudaRules:
        with contextlib.ExitStack() as undo:
            # With this setting, torch first makes tensors from lists on the CPU, and then moves them to the device.
            # A dispatch mode sees only the second step.
            undo.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
            torch._C._set_only_lift_cpu_tensors(True)
            undo.enter_context(mock.patch.object(torch.cuda, "_lazy_init", _nothing))
            undo.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", _nothing))
            # With this replacement, `tolist` counts as one copy to the host. A FakeTensor's own `tolist` would read the
            # numbers one by one.
            undo.enter_context(mock.patch.object(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()))
            for name, stand_in in self._graphs().items():
                undo.enter_context(mock.patch.object(torch.cuda, name, stand_in))
            undo.enter_context(_Unpinned())
            super().__enter__()
            undo.callback(super().__exit__, None, None, None)
            # The device is named with its index 0. Without the index, torch would ask the driver for the current
            # device, in this call and in later calls.
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
            if packet in _PINNING:  # only a driver can pin memory
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
        """Runs the parts of a composed operation. In inference mode, torch does not split such an operation into its
        parts, so this method splits it.
        """
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
        """Replacements in `torch.cuda` for CUDA graphs. A capture runs its work under the rules for captures. A replay
        computes nothing and counts one launch of a graph.
        """
        graphs: dict[str, Callable[..., Any]] = {
            "graph_pool_handle": lambda: (0, 0),
            "is_current_stream_capturing": lambda: self._capturing,
            "CUDAGraph": lambda: mock.Mock(spec=["replay"], **{"replay.side_effect": lambda: self.launch("graph")}),
            "graph": lambda cuda_graph, **options: self.captured(),
        }
        if torch.cuda.is_available():  # true also if GPUs are simulated
            return graphs
        stream = mock.Mock(spec=["wait_stream"])
        streams: dict[str, Callable[..., Any]] = {
            "Stream": lambda *args, **kwargs: stream,
            "current_stream": lambda *args: stream,
            "stream": lambda stream: contextlib.nullcontext(),
        }
        return graphs | streams


def _nothing(*arguments: Any) -> None:
    """Does nothing. It replaces functions that would call a driver."""


@functools.cache
def _is_composite(func: Any) -> bool:
    name = "CompositeImplicitAutograd"
    return func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), name)


def _asker() -> str:
    """The function that called the current operation, as ``module:name``: the nearest function on the stack outside
    torch.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_globals['__name__']}:{frame.f_code.co_qualname}"
