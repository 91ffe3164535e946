"""Defines, as data, the command-line flags that change the configuration. `commands.options` adds them to commands."""

from __future__ import annotations

from enum import StrEnum

from omni_pipeline.contract.flag import INSIGHT, LIMITS, MEDIA, MODEL, NETWORK, PLACEMENT, Flag
from omni_pipeline.contract.flag_values import port, positive, replicas, seconds, size


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


# Flags for every model.
COMMON = (
    Flag(
        "--model-path",
        ("model_path",),
        "Checkpoint directory or hub name. Required, except if the configuration file contains model_path.",
        MODEL,
        metavar="DIR|NAME",
    ),
    Flag(
        "--model-name",
        ("server.model_name",),
        "The model's name in /v1/models.",
        MODEL,
        metavar="NAME",
        default="last part of the model path",
    ),
    Flag(
        "--text-only",
        ("text_only",),
        "Leave out the speech stages.",
        MODEL,
        kind=bool,
        default="off; on for a checkpoint that cannot speak",
    ),
    Flag(
        "--device",
        ("device",),
        "Device that the model computes on; auto uses a GPU if there is one.",
        PLACEMENT,
        kind=Device,
        default="auto",
    ),
    Flag(
        "--colocate",
        ("colocate",),
        "Use a single GPU for all stages that compute on a GPU, in one worker process.",
        PLACEMENT,
        kind=bool,
        default="off",
    ),
    Flag(
        "--replicas",
        ("groups",),
        "Number of replicas of groups of stages, such as voice=2,vocoder=3; all=2 runs the whole pipeline twice.",
        PLACEMENT,
        metavar="GROUP=N,…",
        parse=replicas,
        default="one replica of each stage",
    ),
    Flag(
        "--ray-address",
        ("cluster.ray_address",),
        "Ray cluster that starts the agents of the hosts in the configuration file; auto means the cluster of this "
        "machine. See docs/scaling.md.",
        PLACEMENT,
        metavar="ADDRESS:PORT|auto",
        default="hosts join with sgl-omni join",
    ),
    Flag(
        "--host",
        ("server.host",),
        "Address to listen on; 0.0.0.0 means every interface.",
        NETWORK,
        metavar="ADDRESS",
        default="127.0.0.1",
    ),
    Flag(
        "--port",
        ("server.port",),
        "Port to listen on; 0 picks a free port.",
        NETWORK,
        metavar="PORT",
        parse=port,
        default="8000",
        # Kubernetes sets SGL_OMNI_PORT to a URL if a service in the same namespace is called sgl-omni
        environment="SGL_OMNI_LISTEN_PORT",
    ),
    Flag(
        "--api-key",
        ("server.api_keys",),
        "Require this API key as bearer token. Repeat the flag to allow several keys. The environment variable "
        "SGL_OMNI_API_KEY is safer, because process listings show flags.",
        NETWORK,
        metavar="KEY",
        kind=list[str],
        default="open to everyone",
        guards=True,
    ),
    Flag(
        "--allowed-host",
        ("server.allowed_hosts",),
        "Host name that clients use for this server, for example behind a proxy (gpu1.example.org, *.example.org, or * "
        "for all names). Repeatable. If there is no API key, requests to other host names are refused.",
        NETWORK,
        metavar="NAME",
        kind=list[str],
        default="localhost, IP addresses, the machine's name",
        guards=True,
    ),
    Flag(
        "--allowed-local-media-path",
        ("server.media.local_path",),
        "Directory that contains all local media files that clients may name; an empty string forbids local files.",
        MEDIA,
        metavar="DIR",
        default="current directory",
        guards=True,
    ),
    Flag(
        "--allowed-media-domain",
        ("server.media.allowed_domains",),
        "Download media only from this host (example.org, 10.0.0.5:9000). Repeat the flag to allow several hosts. A "
        "listed host is also allowed if its address is private.",
        MEDIA,
        metavar="HOST",
        kind=list[str],
        default="any public host",
        guards=True,
    ),
    Flag(
        "--max-media", ("server.media.max_items",), "Maximum number of media items in one request.", MEDIA, metavar="N",
        parse=positive, default="64",
    ),
    Flag(
        "--max-media-bytes", ("server.media.max_bytes",), "Maximum size of one media item.", MEDIA, metavar="SIZE",
        parse=size, default="256MiB",
    ),
    Flag(
        "--max-requests",
        ("server.limits.requests",),
        "Maximum number of requests in the pipeline. Further requests wait (see server.limits.queued) or are "
        "refused with status 429.",
        LIMITS,
        metavar="N",
        parse=positive,
        default="256",
    ),
    Flag(
        "--max-body-bytes", ("server.limits.body_bytes",), "Maximum size of one HTTP request.", LIMITS, metavar="SIZE",
        parse=size, default="512MiB",
    ),
    Flag(
        "--request-timeout", ("server.limits.request_seconds",), "Maximum time for one request.", LIMITS,
        metavar="SECONDS", parse=seconds, default="600",
    ),
    Flag(
        "--log-level", ("log_level",), "Log level of the main process and the workers.", INSIGHT, kind=LogLevel,
        default="info",
    ),
    Flag(
        "--log-format", ("log_format",), "Format of the log: lines of text, or one JSON object per line.", INSIGHT,
        kind=LogFormat, default="text",
    ),
    Flag(
        "--trace-dir", ("trace.dir",),
        "Directory for trace files, one for each request, to open in Perfetto (ui.perfetto.dev).",
        INSIGHT, metavar="DIR", default="off",
    ),
)  # fmt: skip
