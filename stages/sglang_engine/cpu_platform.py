"""Provides the SGLang platform plugin (entry-point group ``sglang.srt.platforms``) for machines without a GPU.

SGLang's own CPU engine needs SGLang's kernel package, built for a CPU. No package registry has this build. So this
plugin defines another platform, for which SGLang uses its torch-native code: SDPA for attention, grouped matrix
products for experts, and plain torch for norms and sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

if TYPE_CHECKING:
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.model_executor.model_runner import ModelRunner


def activate() -> str | None:
    """Dotted path of the platform class. None if CUDA is available, because SGLang has its own platform for CUDA."""
    import torch

    return None if torch.cuda.is_available() else f"{__name__}:TorchNativeCpu"


class TorchNativeCpu(CpuDeviceMixin, SRTPlatform):
    """The platform of a CPU on which torch alone computes, without SGLang's kernels."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities(graph_capture=True)  # see `cpu_graph_runner`

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def init_backend(self) -> None:
        from stages.sglang_engine import cpu_graph_runner, cpu_kernels

        cpu_kernels.install(self.get_dispatch_key_name(), _attention_of)
        cpu_graph_runner.install()

    def post_load_model(self, model: Any) -> None:
        from stages import cuda_habits
        from stages.sglang_engine import cuda_like_kernels

        if cuda_habits.enabled():
            cuda_like_kernels.put_into(model)

    def get_full_graph_backend_cls(self) -> type[Any]:
        from stages.sglang_engine.cpu_graph_runner import CpuGraphBackend

        return CpuGraphBackend


def _attention_of(runner: ModelRunner) -> TorchNativeAttnBackend:
    """The attention backend of a starting engine."""
    from stages import cuda_habits
    from stages.sglang_engine.cpu_kernels import PaddedDecodeAttention
    from stages.sglang_engine.cuda_like_kernels import StaticDecodeAttention

    return StaticDecodeAttention(runner) if cuda_habits.enabled() else PaddedDecodeAttention(runner)
