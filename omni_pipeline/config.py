"""The configuration schema: one strict tree, from a YAML file and the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


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
    """Bounds on load; what goes beyond is answered with 413 or 429.

    Attributes:
        body_bytes: Size of one HTTP request body.
        requests: Requests in the pipeline at a time, waiting ones included.
        reader_bytes: Answer bytes kept for a client that reads slowly, before its request is ended.
        request_seconds: Time one request may take.
    """

    body_bytes: Positive = 512 * 1024 * 1024
    requests: Positive = 256
    reader_bytes: Positive = 16 * 1024 * 1024
    request_seconds: Seconds = 600.0


class Server(Struct, forbid_unknown_fields=True, kw_only=True):
    """The HTTP side.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        model_name: Name in `/v1/models`; None takes the last part of the model path. Requests may name any model.
        api_keys: When not empty, requests must carry one of them as bearer token.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    model_name: str | None = None
    api_keys: list[str] = []
    media: MediaPolicy = field(default_factory=MediaPolicy)
    limits: Limits = field(default_factory=Limits)


class StageConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where one stage runs and how.

    Attributes:
        worker: Name of its worker process; stages with the same name share one and pass messages by reference.
            None gives it a process of its own, named like the stage.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if the stage uses one and there is one.
        threads: Torch threads of its worker on the CPU (the largest of its stages counts).
        options: The stage's own options, checked against its options struct.
    """

    worker: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive = 1
    options: dict[str, Any] = {}


class Config(Struct, forbid_unknown_fields=True, kw_only=True):
    """A whole deployment.

    Attributes:
        model_path: Checkpoint directory or hub name.
        graph: ``package.module:NAME`` of the stage graph.
        text_only: Leave the speech stages out.
        device: Device of every stage whose own is ``auto``.
        log_level: Of the main process and the workers.
        server, stages: See there.
    """

    model_path: str | None = None
    graph: str = "stages.topology:QWEN3_OMNI"
    text_only: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    server: Server = field(default_factory=Server)
    stages: dict[str, StageConfig] = {}
