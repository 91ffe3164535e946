"""The SGLang platform plugin (entry-point group ``sglang.srt.platforms``) for machines without a GPU.

SGLang's in-tree CPU engine needs a build of its kernel package that no registry has. An out-of-tree platform takes the
torch-native code paths instead: attention by SDPA, experts by grouped matrix products, norms and sampling in torch.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


def activate() -> str | None:
    """Dotted path of the platform class, or None where CUDA is there and SGLang's own platform is right."""
    import torch

    return None if torch.cuda.is_available() else f"{__name__}:TorchNativeCpu"


class TorchNativeCpu(CpuDeviceMixin, SRTPlatform):
    """A plain CPU, driven through torch alone."""

    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def init_backend(self) -> None:
        from stages.sglang_engine import cpu_kernels

        cpu_kernels.install(self.get_dispatch_key_name())
