"""The command-line flags that set something in the configuration, as data; `commands.options` makes options of them."""

from __future__ import annotations

from enum import StrEnum

from omni_pipeline.contract.flag import INSIGHT, LIMITS, MEDIA, MODEL, NETWORK, PLACEMENT, Flag
from omni_pipeline.contract.flag_values import port, positive, seconds, size


class Device(StrEnum):
    """Choices of ``--device``."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class LogFormat(StrEnum):
    """Choices of ``--log-format``."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """Choices of ``--log-level``."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


# The flags that every model has.
COMMON = (
    Flag(
        "--model-path",
        ("model_path",),
        "Checkpoint directory or hub name. Required unless the configuration names it.",
        MODEL,
        metavar="DIR|NAME",
    ),
    Flag(
        "--model-name",
        ("server.model_name",),
        "Name of the model in /v1/models.",
        MODEL,
        metavar="NAME",
        default="last part of the model path",
    ),
    Flag("--text-only", ("text_only",), "Leave the speech stages out.", MODEL, kind=bool, default="off"),
    Flag(
        "--device",
        ("device",),
        "Where the model computes; auto takes a GPU if there is one.",
        PLACEMENT,
        kind=Device,
        default="auto",
    ),
    Flag(
        "--colocate",
        ("colocate",),
        "Put all stages that use a GPU on one GPU and in one worker process.",
        PLACEMENT,
        kind=bool,
        default="off",
    ),
    Flag(
        "--host",
        ("server.host",),
        "Address to listen on; 0.0.0.0 for every interface.",
        NETWORK,
        metavar="ADDRESS",
        default="127.0.0.1",
    ),
    Flag(
        "--port",
        ("server.port",),
        "Port to listen on; 0 takes a free one.",
        NETWORK,
        metavar="PORT",
        parse=port,
        default="8000",
        environment="SGL_OMNI_LISTEN_PORT",  # Kubernetes sets SGL_OMNI_PORT to a URL beside a service called sgl-omni
    ),
    Flag(
        "--api-key",
        ("server.api_keys",),
        "Require this key as bearer token; of several, any one. Repeatable. Better set as SGL_OMNI_API_KEY, which "
        "process lists do not show.",
        NETWORK,
        metavar="KEY",
        kind=list[str],
        default="open to everyone",
    ),
    Flag(
        "--allowed-local-media-path",
        ("server.media.local_path",),
        "Directory that local media paths must be in; an empty string forbids local files.",
        MEDIA,
        metavar="DIR",
        default="current directory",
    ),
    Flag(
        "--allowed-media-domain",
        ("server.media.allowed_domains",),
        "Only fetch from these hosts (example.org, 10.0.0.5:9000). Repeatable. A listed host may have a private "
        "address.",
        MEDIA,
        metavar="HOST",
        kind=list[str],
        default="any public host",
    ),
    Flag(
        "--max-media", ("server.media.max_items",), "Most media items in one request.", MEDIA, metavar="N",
        parse=positive, default="64",
    ),
    Flag(
        "--max-media-bytes", ("server.media.max_bytes",), "Greatest size of one media item.", MEDIA, metavar="SIZE",
        parse=size, default="256MiB",
    ),
    Flag(
        "--max-requests",
        ("server.limits.requests",),
        "Requests in the pipeline at a time. Further ones wait (see server.limits.queued) or get 429.",
        LIMITS,
        metavar="N",
        parse=positive,
        default="256",
    ),
    Flag(
        "--max-body-bytes", ("server.limits.body_bytes",), "Greatest size of one HTTP request.", LIMITS, metavar="SIZE",
        parse=size, default="512MiB",
    ),
    Flag(
        "--request-timeout", ("server.limits.request_seconds",), "Longest time that a request may take.", LIMITS,
        metavar="SECONDS", parse=seconds, default="600",
    ),
    Flag(
        "--log-level", ("log_level",), "Log level of the main process and the workers.", INSIGHT, kind=LogLevel,
        default="info",
    ),
    Flag(
        "--log-format", ("log_format",), "Log lines for people, or one JSON object a line.", INSIGHT, kind=LogFormat,
        default="text",
    ),
    Flag(
        "--trace-dir", ("trace.dir",), "Write a timeline of each request to this directory, for ui.perfetto.dev.",
        INSIGHT, metavar="DIR", default="off",
    ),
)  # fmt: skip
