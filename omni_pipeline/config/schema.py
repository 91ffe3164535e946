"""Defines the configuration as one strict tree of settings. `layers` merges the sources of settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct, field

from omni_pipeline.config import strict_yaml
from omni_pipeline.errors import StartupError, suggestion

Kind = TypeVar("Kind")

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
GpuIndex = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
Size = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)? *(GiB|MiB|GB|MB)$")]


class MediaPolicy(Struct, forbid_unknown_fields=True, kw_only=True):
    """The media that the server reads for a client, and limits on their number and size.

    Attributes:
        local_path: Directory that local media files must be in; relative paths start there. null means the directory in
            which the server was started; an empty string forbids local files.
        allowed_domains: Hosts (``example.org``, or ``10.0.0.5:9000``) from which media may be downloaded. An empty list
            allows every public host. A listed host may also have a private address, because the operator trusts it.
        max_items: Maximum number of media items in one request.
        max_frames: Maximum number of pictures of a clip that is sent as pictures; the clip is one media item.
        max_bytes: Maximum size of one media item, in bytes; of a clip that is sent as pictures, of each picture.
        max_redirects: Maximum number of HTTP redirects. Each new address is checked like the first address.
        fetch_seconds: Maximum time for one download.
    """

    local_path: str | None = None
    allowed_domains: list[str] = []
    max_items: Positive = 64
    max_frames: Positive = 2048
    max_bytes: Positive = 256 * 1024 * 1024
    max_redirects: Annotated[int, Meta(ge=0)] = 5
    fetch_seconds: Seconds = 30.0


class Limits(Struct, forbid_unknown_fields=True, kw_only=True):
    """Limits on load. A request beyond a limit is refused with a reason and, if a retry can succeed, with the time
    after which to try again.

    Attributes:
        requests: Maximum number of requests in the pipeline, including those that wait for a stage.
        stage_requests: Maximum number of requests that need a stage at the same time, keyed by the stage's name. For
            example, a limit for the talker limits the number of spoken answers.
        queued: Maximum number of requests that wait for admission. Waiting clients take turns. The body of a waiting
            request is not read.
        connections: Maximum number of open connections.
        body_bytes: Maximum size of one HTTP request body, and of all media of one request together.
        body_values: Maximum number of list entries and object fields in one request body.
        text_bytes: Maximum size of one request body without the base64 of its media and without long strings that are
            not read.
        held_bytes: Maximum size of the bodies and media that all requests together hold. A request holds them until its
            answer begins, or until it has ended and every worker has forgotten it. Every piece counts as soon as it
            arrives.
        decoded_bytes: Maximum size of the decoded media of all requests together, in all stages: pixels, features and
            embeddings. A request whose media would exceed the limit waits before its media are decoded. A request that
            alone exceeds the limit is decoded while no other request holds decoded media. null means a quarter of the
            main memory that the server may use.
        output_tokens: Maximum number of text tokens of one answer, and the limit of a request that sets no limit. With
            null, only the model's own limit applies, and a request that sets no limit gets the thinker's
            `default_max_tokens`.
        speech_tokens: Maximum number of talker tokens of one answer, each 80 ms of speech, and the limit of a request
            that sets no limit. With null, only the model's own limit applies, and a request that sets no limit gets the
            talker's `default_max_tokens`.
        idle_seconds: Maximum time that an open connection may take to send the head of its next request.
        receive_seconds: Maximum time for the arrival of one request body.
        request_seconds: Maximum time for one request, from its arrival until the last byte of its answer has been sent.
        keep_alive_seconds: After this time without data, a stream gets a comment, so that proxies and clients do not
            close it.
        reader_bytes: Maximum size of the unread part of a streamed answer. If the unread part is larger, the request
            ends with an error.
        restart_seconds: Maximum time that a request waits for a stage that is being restarted; then it gets 503.
        transcript_seconds: Time for which the transcript of a spoken answer is kept, so that a later request may name
            the answer by its id. `expires_at` in the answer says when the time ends.
        transcripts: Maximum number of transcripts that are kept; 0 keeps none. A client keeps one more only while it
            has fewer of them than are free, so a single client gets at most half. The transcript of an answer beyond
            this limit is not kept, and its `expires_at` says so.
        transcript_bytes: Maximum size of all transcripts that are kept, shared by clients in the same way.
    """

    requests: Positive = 256
    stage_requests: dict[str, Positive] = {}
    queued: Annotated[int, Meta(ge=0)] = 256
    connections: Positive = 768
    body_bytes: Positive = 512 * 1024 * 1024
    body_values: Positive = 50_000
    text_bytes: Positive = 16 * 1024 * 1024
    held_bytes: Positive = 4 * 1024 * 1024 * 1024
    decoded_bytes: Positive | None = None
    output_tokens: Positive | None = None
    speech_tokens: Positive | None = None
    idle_seconds: Seconds = 75.0
    receive_seconds: Seconds = 120.0
    request_seconds: Seconds = 600.0
    restart_seconds: Seconds = 10.0
    keep_alive_seconds: Seconds = 15.0
    reader_bytes: Positive = 16 * 1024 * 1024
    transcript_seconds: Seconds = 3600.0
    transcripts: Annotated[int, Meta(ge=0)] = 10_000
    transcript_bytes: Positive = 16 * 1024 * 1024


class Server(Struct, forbid_unknown_fields=True, kw_only=True):
    """The HTTP server.

    Attributes:
        host, port: Address and port to listen on; port 0 picks a free port.
        model_name: The model's name in `/v1/models`; null means the last part of the model path. Requests may name any
            model.
        api_keys: If not empty, each request must carry one of these keys as bearer token.
        allowed_hosts: Host names by which clients reach this server (``gpu1.example.org``, ``*.example.org`` for all
            names below ``example.org``, or ``*`` for all). Requests to other host names are refused, so that no web
            page can reach the server under the page's own host name. IP addresses, ``localhost``, `host` and the
            machine's own name are always accepted. If the list is empty and there are API keys, every name is accepted.
        drain_seconds: Maximum time that requests in progress may take to finish when the server stops.
        allowed_origins: Origins (``https://example.org``, or ``*`` for all) whose web pages may use the API from a
            browser. Empty by default.
        media: The media that the server reads for its clients.
        limits: Limits on load.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    model_name: str | None = None
    api_keys: list[str] = []
    allowed_hosts: list[str] = []
    drain_seconds: Seconds = 30.0
    allowed_origins: list[str] = []
    media: MediaPolicy = field(default_factory=MediaPolicy)
    limits: Limits = field(default_factory=Limits)


class Trace(Struct, forbid_unknown_fields=True, kw_only=True):
    """The destination of traces of single requests, and limits on their files. Without `dir` and `otlp_endpoint`, no
    traces are recorded.

    Attributes:
        dir: Directory for one trace file per request, to open in Perfetto or Chrome; created if it does not exist.
        files: Maximum number of files in `dir`; the oldest files are removed.
        total_bytes: Maximum size of all files in `dir` together; the oldest files are removed.
        otlp_endpoint: Base URL of an OpenTelemetry collector (OTLP over HTTP, such as ``http://localhost:4318``).
            null uses OpenTelemetry's environment variables.
    """

    dir: str | None = None
    files: Positive = 1000
    total_bytes: Positive = 1024 * 1024 * 1024
    otlp_endpoint: str | None = None

    @property
    def on(self) -> bool:
        return self.dir is not None or self.otlp_endpoint is not None


class StageConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The settings of one stage: its worker, its device, and its options.

    Attributes:
        worker: Name of the stage's worker process. Stages that name the same worker share a process and pass messages
            by reference. null gives the stage its own process, which has the stage's name. With `colocate`, stages on
            the GPU without a `worker` share a process.
        device: ``cpu`` or ``cuda``; ``auto`` uses a GPU if the stage can use a GPU and a GPU is visible.
        gpus: Indices of the stage's GPUs, among the GPUs that the server may see (``CUDA_VISIBLE_DEVICES``). If empty,
            the server chooses. The worker sees only these GPUs.
        memory: Total memory that the stage may use on each of its GPUs: a fraction of the whole GPU (``0.75``), or a
            size (``12GiB``). null lets the server decide from the checkpoint and from the other stages and programs on
            the GPU.
        tp_size: Number of tensor-parallel ranks. Each rank needs one GPU, or one process on the CPU. null means one
            rank for each of the stage's GPUs.
        threads: Number of Torch threads of the stage's worker on the CPU. If stages share a worker, the largest number
            counts.
        environment: Environment variables of the stage's worker, set before the worker imports anything.
        options: The stage's own options.
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
    """Time limits after which a running worker counts as hung. A hung worker is killed and restarted.

    Attributes:
        silent_seconds: Maximum time without a sign of life (a heartbeat or computation) from a worker that has finished
            loading.
        step_seconds: Maximum time for which a worker computes in one step. Time in which other processes compile
            kernels for the worker's GPU does not count. Also the maximum time without computation for a worker that is
            still loading.
        gpu_wait_seconds: Maximum time for which a worker on a GPU is busy while its main thread stays in one call, for
            example because a kernel never ends. Time in which kernels are compiled for the worker does not count.
    """

    silent_seconds: Annotated[float, Meta(ge=5)] = 10.0
    step_seconds: Annotated[float, Meta(ge=5)] = 600.0
    gpu_wait_seconds: Annotated[float, Meta(ge=5)] = 30.0


class Config(Struct, forbid_unknown_fields=True, kw_only=True):
    """The configuration of a deployment.

    Attributes:
        model_path: Checkpoint directory or hub name.
        graph: The stage graph, as ``package.module:NAME``.
        text_only: Leave out the speech stages.
        colocate: Put all stages that compute on a GPU on the same GPU. Stages among them that name no worker share the
            worker ``gpu``.
        device: Device of every stage whose own `device` is ``auto``.
        log_level: Log level of the main process and the workers.
        log_format: ``text``, or ``json`` for one JSON object per line.
        trace: Traces of single requests.
        supervision: Time limits after which a worker counts as hung.
        server: The HTTP server.
        stages: Settings of each stage, by the stage's name. A stage that is not listed has the defaults.
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
    """The mapping in a YAML file. Raises StartupError if the file cannot be read, is not a mapping, or has a key
    twice.
    """
    try:
        tree = strict_yaml.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"Cannot read the configuration {path}: it is not UTF-8 text.") from error
    except strict_yaml.RepeatedKeyError as error:
        raise StartupError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise StartupError(f"Cannot read the configuration {path}: it is not YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise StartupError(f"The configuration {path} must be a mapping, not a {type(tree).__name__}.")
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base`, where values of `over` replace the values of `base`. Mappings are merged instead of replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def convert(tree: Any, kind: type[Kind], path: str, *, source: str = "") -> Kind:
    """`tree` as an instance of the struct type `kind`.

    Args:
        path: The place of `tree` in the configuration, for error messages.
        source: The beginning of error messages.

    Raises:
        StartupError: an unknown key (with its path and the key that it resembles), or a value of the wrong type or out
            of range.
    """
    _refuse_unknown_keys(tree, msgspec.inspect.type_info(kind), path, source)
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        place = f"{path}{where.rstrip('`')}".lstrip(".")
        raise StartupError(f"{source}{place or 'configuration'}: {reason[:1].lower()}{reason[1:]}.") from error


def _refuse_unknown_keys(tree: Any, kind: msgspec.inspect.Type, path: str, source: str) -> None:
    """Refuse unknown keys, and suggest a similar known key. msgspec refuses unknown keys too, but without a
    suggestion.
    """
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
