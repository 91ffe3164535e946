"""Starts engines as far as fake GPUs allow, in a separate process: resolves SGLang's arguments and builds the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import msgspec
import torch
from torch.overrides import TorchFunctionMode

from faked_starts.data import Arguments, Built, PlannedEngine
from omni_pipeline.contract.graph import load_factory
from omni_pipeline.contract.stage import Ranks, StageContext
from omni_pipeline.worker.tensor_parallel import free_port
from stages.sglang_engine import process
from stages.topology import QWEN3_OMNI


class _Reached(BaseException):
    """Raised to end an engine's start once SGLang's arguments are known. It is a `BaseException`, so that handlers of
    `Exception` do not catch it.
    """


def resolve(engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Resolve the arguments of each `PlannedEngine`. Engines and results (`Arguments`) are plain values."""
    return [msgspec.to_builtins(_resolved(msgspec.convert(engine, PlannedEngine))) for engine in engines]


def build(engine: dict[str, Any]) -> dict[str, Any]:
    """Build the model of a `PlannedEngine`. Engine and result (`Built`) are plain values."""
    with built(msgspec.convert(engine, PlannedEngine)) as model:
        return msgspec.to_builtins(_described(model))


def _resolved(engine: PlannedEngine) -> Arguments:
    from sglang.srt.configs.model_config import ModelConfig

    arguments = server_arguments(engine)
    values = arguments.resolved_dict()
    graphs = values["cuda_graph_config"]
    model = ModelConfig.from_server_args(arguments)
    found = {
        "decode_graphs": _sizes(graphs["decode"]),
        "prefill_graphs": bool(_sizes(graphs["prefill"])),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization,
        "context_length": model.context_len,
    }
    return Arguments(**{name: found.get(name, values.get(name)) for name in Arguments.__struct_fields__})


def _sizes(graphs: dict[str, Any]) -> list[int]:
    """The batch sizes or token counts for which one phase has CUDA graphs."""
    return [] if graphs["backend"] == "disabled" else list(graphs["bs"])


def server_arguments(engine: PlannedEngine) -> Any:
    """SGLang's resolved arguments for the stage. The stage's worker would start the engine with the same arguments."""
    caught: list[Any] = []

    def stop(arguments: Any, rank: int) -> Any:
        caught.append(arguments)
        raise _Reached

    spec = QWEN3_OMNI.stage(engine.stage)
    factory = load_factory(spec)
    context = StageContext(
        name=engine.stage,
        model_path=engine.model_path,
        device="cuda",
        options=msgspec.convert(engine.options, spec.options),
        stages=frozenset(engine.stages),
        scratch=tempfile.mkdtemp(),
        ranks=Ranks(0, engine.ranks, free_port() if engine.ranks > 1 else 0),
        static=engine.static,
    )
    with mock.patch.object(process, "configure", stop), suppress(_Reached):
        factory(context)
    [arguments] = caught
    arguments.resolve_once()
    return arguments


@contextmanager
def built(engine: PlannedEngine) -> Iterator[Any]:
    """The engine's model, built on ``meta`` by SGLang's own loader code under the engine's configuration."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.layers.quantization.fp8_utils import initialize_fp8_gemm_config
    from sglang.srt.model_loader.loader import _get_quantization_config, _initialize_model
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    from stages.sglang_engine.process_groups import quiet_single_rank_groups

    arguments = server_arguments(engine)
    with process.configure(arguments, 0)(), quiet_single_rank_groups():
        config = ModelConfig.from_server_args(arguments)
        # A group of a single rank never communicates, so a Gloo group can replace the NCCL group.
        with mock.patch.object(bootstrap, "_resolve_backend", return_value="gloo"), _OnCpu():
            bootstrap.init_parallel_runtime(server_args=arguments, device="cuda", dist_port=free_port())
            bootstrap.init_layer_runtime(model_config=config)
        initialize_moe_config()
        initialize_fp8_gemm_config()
        with set_default_torch_dtype(config.dtype), torch.device("meta"):
            yield _initialize_model(config, LoadConfig(), _get_quantization_config(config, LoadConfig()))


class _OnCpu(TorchFunctionMode):
    """Makes tensors on the CPU in places where SGLang would make them on a GPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if str(options.get("device", "")).startswith("cuda"):
            options["device"] = "cpu"
        return function(*args, **options)


def _described(model: Any) -> Built:
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype

    devices: dict[str, list[str]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        devices.setdefault(tensor.device.type, []).append(name)
    layer = model.model.layers[0]
    parameters = dict(layer.named_parameters())
    experts = layer.mlp.experts
    _, cache = configure_kv_cache_dtype(
        server_args_kv_cache_dtype="auto",
        model=model,
        model_dtype=torch.get_default_dtype(),
        is_draft_worker=False,
        is_dflash=False,
        speculative_draft_attention_backend="",
    )
    forms: dict[str, set[str]] = {}
    for module in model.modules():
        if isinstance(module, BaseFusedOp):
            forms.setdefault(type(module).__name__, set()).add(_form(module))
    return Built(
        devices=devices,
        shapes={name: list(parameter.shape) for name, parameter in parameters.items()},
        dtypes={name: _name(parameter.dtype) for name, parameter in parameters.items()},
        linear=type(layer.self_attn.qkv_proj.quant_method).__name__,
        experts=type(experts.quant_method).__name__,
        moe_runner=_runner(experts),
        kv_cache_dtype=_name(cache),
        forms={name: sorted(found) for name, found in forms.items()},
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _form(operation: Any) -> str:
    return (operation._forward_method or operation._resolve_forward_method()).__name__


def _runner(experts: Any) -> str | None:
    runner = experts.runner_backend or getattr(getattr(experts.quant_method, "runner", None), "runner_backend", None)
    return None if runner is None else runner.value
