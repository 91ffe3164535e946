"""The configuration as one strict tree of settings; `layers` joins the places that it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct, field

from omni_pipeline.errors import StartupError, suggestion

Kind = TypeVar("Kind")

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
GpuIndex = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
Size = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)? *(GiB|MiB|GB|MB)$")]


class MediaPolicy(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which media the server will read for a client, and how much of it.

    Attributes:
        local_path: Directory under which local paths may be read; relative paths start from it.
            None is the directory the server was started in; an empty string forbids local files.
        allowed_domains: Hosts (``example.org``, or ``10.0.0.5:9000``) that remote media may come from. When empty, any
            public host. A listed host may also have a private address: the operator vouches for it.
        max_items: Media in one request.
        max_bytes: Bytes of one medium.
        max_redirects: HTTP redirects followed, each checked like the first address.
        fetch_seconds: Time for one download.
    """

    local_path: str | None = None
    allowed_domains: list[str] = []
    max_items: Positive = 64
    max_bytes: Positive = 256 * 1024 * 1024
    max_redirects: Annotated[int, Meta(ge=0)] = 5
    fetch_seconds: Seconds = 30.0


class Limits(Struct, forbid_unknown_fields=True, kw_only=True):
    """Bounds on load. What goes beyond is refused, with a reason and, where that helps, a time to try again.

    Attributes:
        requests: Requests in the pipeline at a time, those that wait for a stage included.
        stage_requests: For some stages, by name, requests at a time that need it, so that, say, few may speak at once.
        queued: Requests that wait to be let in, in turns of their clients. Nothing of them is read meanwhile.
        connections: Connections at a time.
        body_bytes: Size of one HTTP request body, and of the media of one request together.
        held_bytes: Bytes of bodies and media that all requests together hold until their answers begin.
        output_tokens: Text tokens of one answer; also what a request gets that names no limit. None: no bound but the
            model's, and without a limit in the request the thinker's `default_max_tokens`.
        speech_tokens: The same for talker tokens, of 80 ms each.
        idle_seconds: Time for a connection to send the head of its next request.
        receive_seconds: Time for one request body to arrive.
        request_seconds: Time for one request, from its arrival to the end of its answer.
        keep_alive_seconds: A stream that is quiet for so long gets a comment, so that nothing takes it for dead.
        reader_bytes: Answer bytes kept for a client that reads slowly, before its request is ended.
        restart_seconds: Time a request may wait for a stage that is being restarted, before it is refused with 503.
    """

    requests: Positive = 256
    stage_requests: dict[str, Positive] = {}
    queued: Annotated[int, Meta(ge=0)] = 256
    connections: Positive = 768
    body_bytes: Positive = 512 * 1024 * 1024
    held_bytes: Positive = 4 * 1024 * 1024 * 1024
    output_tokens: Positive | None = None
    speech_tokens: Positive | None = None
    idle_seconds: Seconds = 75.0
    receive_seconds: Seconds = 120.0
    request_seconds: Seconds = 600.0
    restart_seconds: Seconds = 10.0
    keep_alive_seconds: Seconds = 15.0
    reader_bytes: Positive = 16 * 1024 * 1024


class Server(Struct, forbid_unknown_fields=True, kw_only=True):
    """The HTTP side.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        model_name: Name in `/v1/models`; None takes the last part of the model path. Requests may name any model.
        api_keys: When not empty, requests must carry one of them as bearer token.
        drain_seconds: Time that the requests in progress have to end once the server has been told to stop.
        allowed_origins: Origins (``https://example.org``, or ``*`` for all) whose web pages browsers may let use the
            API. None by default.
        media: What it reads for its clients.
        limits: What it takes on.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    model_name: str | None = None
    api_keys: list[str] = []
    drain_seconds: Seconds = 30.0
    allowed_origins: list[str] = []
    media: MediaPolicy = field(default_factory=MediaPolicy)
    limits: Limits = field(default_factory=Limits)


class Trace(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is noted about every single request, and where it goes; nothing, unless one of the two is given.

    Attributes:
        dir: Directory that gets a file for each request, to be opened in Perfetto or Chrome; made when missing.
        files: Most files kept there; the oldest are removed.
        otlp_endpoint: Base URL of an OpenTelemetry collector (OTLP over HTTP, such as ``http://localhost:4318``).
            None takes what OpenTelemetry's environment variables say.
    """

    dir: str | None = None
    files: Positive = 1000
    otlp_endpoint: str | None = None

    @property
    def on(self) -> bool:
        return self.dir is not None or self.otlp_endpoint is not None


class StageConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where one stage runs and how.

    Attributes:
        worker: Name of its worker process; stages with the same name share one and pass messages by reference.
            None gives it a process of its own, named like the stage; with `colocate`, stages on the GPU share one.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if the stage uses one and there is one.
        gpus: Indices of its GPUs, as counted among those that the server may see (``CUDA_VISIBLE_DEVICES``). Empty
            leaves the choice to the server. The worker sees these and no others.
        memory: What the stage may take of each of its GPUs, all in all: a fraction of the whole GPU (``0.75``), or a
            size (``12GiB``). None lets the server decide from the checkpoint and from what else is on the GPU.
        tp_size: Tensor-parallel ranks, each with one GPU, or one process on the CPU. None is one for each of its GPUs.
        threads: Torch threads of its worker on the CPU (the largest of its stages counts).
        environment: Environment variables of its worker, set before it imports anything.
        options: The stage's own options, checked against its options struct.
    """

    worker: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: list[GpuIndex] = []
    memory: Fraction | Size | None = None
    tp_size: Positive | None = None
    threads: Positive = 1
    environment: dict[str, str] = {}
    options: dict[str, Any] = {}


class Supervision(Struct, forbid_unknown_fields=True, kw_only=True):
    """When a worker that still runs is taken for dead, killed and restarted.

    Attributes:
        silent_seconds: It gives no sign of life, although it has loaded: no heartbeat comes and it does not compute.
        step_seconds: It computes, but a single step takes longer than this, the time in which other processes compile
            its GPU's kernels not counted; or it loads without computing.
        gpu_wait_seconds: On a GPU: it is busy, but its main thread stays in one call, as when it waits for a kernel
            that never ends, and nothing is compiled for it.
    """

    silent_seconds: Annotated[float, Meta(ge=5)] = 10.0
    step_seconds: Annotated[float, Meta(ge=5)] = 600.0
    gpu_wait_seconds: Annotated[float, Meta(ge=5)] = 30.0


class Config(Struct, forbid_unknown_fields=True, kw_only=True):
    """A whole deployment.

    Attributes:
        model_path: Checkpoint directory or hub name.
        graph: ``package.module:NAME`` of the stage graph.
        text_only: Leave the speech stages out.
        colocate: Put every stage that computes on a GPU on one and the same, and, unless it names a worker, into the
            one worker ``gpu``.
        device: Device of every stage whose own is ``auto``.
        log_level: Of the main process and the workers.
        log_format: ``text``, or ``json`` for one object in each line.
        trace: Traces of requests.
        supervision: When a worker counts as hung.
        server: The HTTP side.
        stages: Stages by name; those that are not named have the defaults.
    """

    model_path: str | None = None
    graph: str = "stages.topology:QWEN3_OMNI"
    text_only: bool = False
    colocate: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    supervision: Supervision = field(default_factory=Supervision)
    trace: Trace = field(default_factory=Trace)
    server: Server = field(default_factory=Server)
    stages: dict[str, StageConfig] = {}


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises StartupError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"Cannot read the configuration {path}: it is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise StartupError(f"Cannot read the configuration {path}: it is not YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise StartupError(f"The configuration {path} must be a mapping, not a {type(tree).__name__}.")
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def convert(tree: Any, kind: type[Kind], path: str, *, source: str = "") -> Kind:
    """`tree` as an instance of the struct type `kind`.

    Args:
        path: Where `tree` stands in the configuration, for messages.
        source: What to begin messages with.

    Raises:
        StartupError: an unknown key (with its path and the key it resembles), or a value of wrong type or range.
    """
    _refuse_unknown_keys(tree, msgspec.inspect.type_info(kind), path, source)
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        place = f"{path}{where.rstrip('`')}".lstrip(".")
        raise StartupError(f"{source}{place or 'configuration'}: {reason[:1].lower()}{reason[1:]}.") from error


def _refuse_unknown_keys(tree: Any, kind: msgspec.inspect.Type, path: str, source: str) -> None:
    """msgspec refuses them too, but cannot say what was probably meant."""
    if not isinstance(tree, dict):
        return
    if isinstance(kind, msgspec.inspect.DictType):
        for key, value in tree.items():
            _refuse_unknown_keys(value, kind.value_type, f"{path}.{key}", source)
    if isinstance(kind, msgspec.inspect.StructType):
        fields = {field.encode_name: field.type for field in kind.fields}
        for key, value in tree.items():
            place = f"{path}.{key}".lstrip(".")
            if key not in fields:
                raise StartupError(f"{source}{place}: there is no such setting; {suggestion(str(key), fields)}")
            _refuse_unknown_keys(value, fields[key], place, source)
