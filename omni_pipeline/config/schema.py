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

MAIN_HOST = "main"
"""The name of this server's own host in a configuration."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Niceness = Annotated[int, Meta(ge=0, le=19)]
GpuIndex = Annotated[int, Meta(ge=0)]
Replicas = Annotated[int, Meta(ge=1, le=64)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
Lease = Annotated[float, Meta(ge=1)]
Size = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)? *(GiB|MiB|GB|MB)$")]


class MediaPolicy(Struct, forbid_unknown_fields=True, kw_only=True):
    """The media that the server reads for a client, and limits on their number and size.

    Attributes:
        local_path: Directory that contains all local media files that the server may read. Relative paths of media
            files are relative to this directory. null means the directory in which the server was started. An empty
            string forbids local files.
        allowed_domains: Hosts (``example.org``, or ``10.0.0.5:9000``) from which the server may download media. An
            empty list allows every public host. A listed host is also allowed if its address is private.
        max_items: Maximum number of media items in one request.
        max_frames: Maximum number of pictures in a clip that is sent as pictures. Such a clip counts as one media item.
        max_bytes: Maximum size of one media item, in bytes. In a clip that is sent as pictures, the limit applies to
            each picture.
        max_redirects: Maximum number of HTTP redirects of one download. The server checks each new address like the
            first address.
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
    """Limits on load. The server refuses a request that exceeds a limit. The error contains the reason and, if a later
    retry can succeed, the time to wait before the retry.

    Attributes:
        requests: Maximum number of requests in the pipeline, including requests that wait for a stage. The last eighth
            of this number is reserved for clients with few requests. A client has few requests if it has at most 1/256
            of this number, or only one request.
        stage_requests: Maximum number of requests that need a stage at the same time, keyed by the stage's name. For
            example, a limit for the talker limits the number of spoken answers. If a stage has replicas, the limit
            applies to each replica that can accept requests. The last eighth of the limit is reserved for clients with
            few requests for this stage. A client has few such requests if it has at most 1/256 of the limit, or only
            one request.
        queued: Maximum number of requests that wait for admission to the pipeline. Clients with waiting requests take
            turns. The server does not read the body of a waiting request.
        gapless_speech: Whether a new streamed spoken answer waits while the pipeline cannot make speech fast enough for
            one more listener. So the answers that are already playing have no gaps. A new request gets 429 if
            `queued` requests are already waiting, or if it has waited until its deadline. Text answers and answers that
            are not streamed do not wait.
        connections: Maximum number of open connections.
        body_bytes: Maximum size of the HTTP body of one request, in bytes. Also the maximum total size of all media of
            one request.
        body_values: Maximum number of list entries and object fields in one request body.
        text_bytes: Maximum size of one request body, in bytes. The base64 data of media and long strings in ignored
            fields do not count.
        held_bytes: Maximum total size of the bodies and media of all requests, in bytes. The body and media of a
            request count until its answer begins. If no answer begins, they count until the request has ended and all
            workers have freed its data. Every piece of a body counts as soon as the piece arrives. A client can hold
            more bytes only if, afterwards, it does not hold more bytes than are still free. So a single client holds at
            most half of the limit. The last eighth of the limit is reserved for clients that hold at most 1/256 of the
            limit.
        decoded_bytes: Maximum total size of the decoded media of all requests in all stages, in bytes. Decoded media
            are pixels, features and embeddings. If the media of a request would exceed the limit, the request waits
            before its media are decoded. The last eighth of the limit is reserved for clients whose decoded media are
            at most 1/256 of the limit. If the media of a single request are larger than the other seven eighths, they
            are decoded while no other request has decoded media. null means a quarter of the main memory that the
            server may use.
        output_tokens: Maximum number of text tokens of one answer. A request that sets no limit gets this limit. If
            this setting is null, only the model's own limit applies, and a request that sets no limit gets the
            thinker's `default_max_tokens`.
        speech_tokens: Maximum number of talker tokens of one answer. A talker token is 80 ms of speech. A request that
            sets no limit gets this limit. If this setting is null, only the model's own limit applies, and a request
            that sets no limit gets the talker's `default_max_tokens`.
        speech_characters: Maximum number of characters of a text that is read aloud. A thousand characters of English
            text make about a minute of speech.
        idle_seconds: Maximum time until an open connection has sent the head of its next request.
        receive_seconds: Maximum time until the body of a request has arrived.
        request_seconds: Maximum time for one request, from its arrival until the last byte of its answer has been sent.
            If a text is read aloud, the length of the sound is added to this time, because a client may play the speech
            while it reads the answer.
        keep_alive_seconds: If a stream has no data for this time, the server sends a comment, so that proxies and
            clients do not close the stream.
        reader_bytes: Maximum size of the part of a streamed answer that the client has not read yet, in bytes. If this
            part is larger, the request ends with an error.
        restart_seconds: Maximum time that a request waits for a stage that is being restarted. After this time, the
            request gets 503.
        transcript_seconds: Time for which the server keeps the transcript of a spoken answer, so that a later request
            can refer to the answer by its id. `expires_at` in the answer is the end of this time.
        transcripts: Maximum number of transcripts that the server keeps. 0 means that the server keeps no transcripts.
            A single client uses at most half of the maximum. The last eighth of the maximum is reserved for clients
            that use at most 1/256 of the maximum. If the server does not keep a transcript, `expires_at` in the answer
            is the time of the answer itself.
        transcript_bytes: Maximum total size of the kept transcripts, in bytes. Clients share this size in the same way
            as the number `transcripts`.
        recording_pieces: Maximum number of pieces of one recording that are processed at the same time. (Long
            recordings are cut into pieces before they are transcribed or translated.)
        realtime_sessions: Maximum number of open realtime sessions. A single client gets at most half of the sessions.
            The last eighth of the sessions is reserved for clients with few sessions: at most 1/256 of the maximum, or
            one session. Each session also counts in `connections`, and each of its responses counts in `requests` until
            the response is done. A session with turn detection needs 10 MB for the network that detects speech.
        realtime_session_seconds: Maximum length of a realtime session. After this time, the client gets an error event,
            and the server closes the connection.
        realtime_idle_seconds: Maximum time without an event from the client and without a response. After this time,
            the client gets an error event, and the server closes the connection.
        realtime_items: Maximum number of items in the conversation of a realtime session.
        realtime_bytes: Maximum size of all data that a realtime session keeps, in bytes: the sound that is not
            committed yet, and the sounds, pictures and texts of its items. This data also counts in `held_bytes`. While
            a response begins, the data counts twice.
        realtime_speculations: Maximum number of answers that are prepared at the same time. The server prepares an
            answer during a pause of the user, before it is certain that the turn has ended. The parts of long speech
            that the server computes while the user speaks count in this limit too. 0 means that the server prepares no
            answers and computes no parts of speech early. The same is true while requests wait for admission, and while
            the pipeline has at least half as many requests as `requests` allows.
        realtime_event_bytes: Maximum size of one event that a client sends, in bytes.
    """

    requests: Positive = 256
    stage_requests: dict[str, Positive] = {}
    queued: Annotated[int, Meta(ge=0)] = 256
    gapless_speech: bool = False
    connections: Positive = 768
    body_bytes: Positive = 512 * 1024 * 1024
    body_values: Positive = 50_000
    text_bytes: Positive = 16 * 1024 * 1024
    held_bytes: Positive = 4 * 1024 * 1024 * 1024
    decoded_bytes: Positive | None = None
    output_tokens: Positive | None = None
    speech_tokens: Positive | None = None
    speech_characters: Positive = 100_000
    idle_seconds: Seconds = 75.0
    receive_seconds: Seconds = 120.0
    request_seconds: Seconds = 600.0
    restart_seconds: Seconds = 10.0
    keep_alive_seconds: Seconds = 15.0
    reader_bytes: Positive = 16 * 1024 * 1024
    transcript_seconds: Seconds = 3600.0
    transcripts: Annotated[int, Meta(ge=0)] = 10_000
    transcript_bytes: Positive = 16 * 1024 * 1024
    recording_pieces: Positive = 4
    realtime_sessions: Positive = 256
    realtime_session_seconds: Seconds = 3600.0
    realtime_idle_seconds: Seconds = 900.0
    realtime_items: Positive = 1000
    realtime_bytes: Positive = 128 * 1024 * 1024
    realtime_speculations: Annotated[int, Meta(ge=0)] = 8
    realtime_event_bytes: Positive = 32 * 1024 * 1024


class Server(Struct, forbid_unknown_fields=True, kw_only=True):
    """The HTTP server.

    Attributes:
        host, port: Address and port to listen on. Port 0 means any free port.
        model_name: The model's name in `/v1/models`; null means the last part of the model path. The server accepts any
            model name in requests.
        api_keys: If this list is not empty, each request must have one of these keys as bearer token.
        allowed_hosts: Host names that clients use for this server: ``gpu1.example.org``, ``*.example.org`` for all
            names below ``example.org``, or ``*`` for all names. The server refuses requests to other host names, so
            that no web page can access the server through the page's own host name. IP addresses, ``localhost``, the
            value of `host` and the machine's own name are always accepted. If this list is empty and there are API
            keys, every name is accepted.
        drain_seconds: When the server stops, requests in progress have this time to finish.
        allowed_origins: Origins whose web pages may use the API from a browser: ``https://example.org``, or ``*`` for
            all origins. The list is empty by default.
        playground: Whether the server offers the page `/playground`, on which people can try the server in a browser.
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
    playground: bool = True
    media: MediaPolicy = field(default_factory=MediaPolicy)
    limits: Limits = field(default_factory=Limits)


class Trace(Struct, forbid_unknown_fields=True, kw_only=True):
    """The destination of traces of individual requests, and limits on the trace files. If neither `dir` nor
    `otlp_endpoint` is set, no traces are recorded.

    Attributes:
        dir: Directory for trace files, one for each request. Perfetto and Chrome can open these files. The server
            creates the directory if it does not exist.
        files: Maximum number of files in `dir`; the oldest files are removed.
        total_bytes: Maximum size of all files in `dir` together; the oldest files are removed.
        otlp_endpoint: Base URL of an OpenTelemetry collector (OTLP over HTTP, such as ``http://localhost:4318``). null
            means that OpenTelemetry's environment variables are used.
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
        worker: Name of the stage's worker process. Stages with the same worker share a process and pass messages by
            reference. null means that the stage has its own process with the stage's name. If `colocate` is set, null
            means that a stage that computes on a GPU shares a process with the other stages on the GPU.
        device: ``cpu``, ``cuda`` or ``auto``. ``auto`` means that the stage uses a GPU if it can use a GPU and a GPU is
            visible.
        gpus: Indices of the stage's GPUs, among the GPUs that the server may use (``CUDA_VISIBLE_DEVICES``). The
            stage's worker process sees only these GPUs. If this list is empty, the server chooses the GPUs.
        memory: Total memory that the stage may use on each of its GPUs: a fraction of the whole GPU (``0.75``), or a
            size (``12GiB``). null means that the server decides. Its decision depends on the checkpoint, and on the
            other stages and programs on the GPU.
        tp_size: Number of tensor-parallel ranks. Each rank uses one GPU or, on the CPU, one process. null means one
            rank for each of the stage's GPUs.
        threads: Number of Torch threads of the stage's worker on the CPU. If stages share a worker, the largest number
            applies. null means that the server chooses. A stage whose hidden states have less than 1024 numbers then
            gets one thread. A stage with wider states on a CPU gets a share of the cores.
        niceness: Niceness of the stage's worker, see ``nice(2)``. While more processes compute than there are cores,
            those with a higher niceness get less time. If stages share a worker, the smallest number applies. null
            means that the server chooses: 5 for thinker and talker on a CPU, and 0 for all other stages.
        environment: Environment variables of the stage's worker, set before the worker imports anything.
        options: The stage's own options.
    """

    worker: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: list[GpuIndex] = []
    memory: Fraction | Size | None = None
    tp_size: Positive | None = None
    threads: Positive | None = None
    niceness: Niceness | None = None
    environment: dict[str, str] = {}
    options: dict[str, Any] = {}


class GroupConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """A group of stages with several replicas. Each request uses the same replica of the group from beginning to end.

    Attributes:
        stages: Names of the stages; ``*`` means all stages. null means that the group's name determines the stages. The
            name ``all`` means all stages. Any other name means the model's predefined group with this name or, if there
            is no such group, the stage with this name. A stage cannot be in more than one group. A stage that is in no
            group has no replicas.
        replicas: Number of replicas when the server starts.
        max_replicas: Number of replicas for which the server plans memory. While the server runs, ``sgl-omni scale``
            can start replicas up to this number. null means the same number as `replicas`.
        gpus: The GPUs of the replicas: one list of GPU indices for each of the `max_replicas` replicas. These lists
            replace the stages' own `gpus`. The server distributes the stages of a replica over the GPUs in the list of
            the replica. If `gpus` is empty, all replicas use the GPUs that the stages use without replicas. The
            indices are the ones of the replica's host: each host counts its GPUs from 0.
        hosts: The hosts on which the replicas run. Replica i runs on entry i of the list. If the list is shorter than
            the number of replicas, it is repeated. ``main`` is the host of this server, and all other names are keys
            of `hosts`. If the list is empty, all replicas run on the host of this server.
    """

    stages: list[str] | Literal["*"] | None = None
    replicas: Replicas = 1
    max_replicas: Replicas | None = None
    gpus: list[list[GpuIndex]] = []
    hosts: list[str] = []


class HostConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """Another host that runs replicas of groups. The host joins this server with ``sgl-omni join``. If
    `cluster.ray_address` is set, Ray starts the host's agent.

    Attributes:
        listen: The address at which this host accepts connections from other hosts. null means the address from which
            this host has joined.
        model_path: The checkpoint directory on this host. null means the same path as on the host of this server.
        label: Labels that the host's Ray node must have, such as ``{gpu: h100}``. Used only with `cluster.ray_address`.
        resources: The resources that Ray reserves for this host on the host's Ray node, such as ``{GPU: 2}``. The keys
            are Ray's names of the resources. If ``CPU`` is missing, Ray reserves one CPU. If ``GPU`` is missing, Ray
            reserves enough GPUs for the highest GPU index that the configuration lists for this host. If the
            configuration lists no GPUs for this host, the number of GPUs is the largest number of ranks of a stage that
            computes on GPUs of this host. Used only with `cluster.ray_address`.
    """

    listen: str | None = None
    model_path: str | None = None
    label: dict[str, str] = {}
    resources: dict[str, Annotated[float, Meta(gt=0)]] = {}


class Cluster(Struct, forbid_unknown_fields=True, kw_only=True):
    """How hosts reach each other. These settings have no effect without `hosts`.

    Attributes:
        listen: The address at which this server's host accepts connections from other hosts. This setting is required
            if there are `hosts`.
        port: The port on which this server waits for hosts that join. Port 0 means any free port.
        ports: The ports on which the processes of each host receive messages from other hosts, as ``FIRST-LAST``. null
            means any free ports.
        lease_seconds: Maximum time without a message from a host. After this time, the server treats the host as dead,
            and the host ends its own workers.
        ray_address: A Ray cluster that starts the agents of all hosts and restarts them: the address and port of its
            head, such as ``10.0.0.1:6379``, or ``auto`` for the cluster of this machine. null means that the hosts join
            with ``sgl-omni join``. This setting needs the package ``omni-pipeline[ray]``.
        ray_unauthenticated: Accept a Ray cluster that accepts clients without a token. Everybody who reaches the ports
            of this cluster can run programs on its nodes.
    """

    listen: str | None = None
    port: Port = 20000
    ports: str | None = None
    lease_seconds: Lease = 5.0
    ray_address: str | None = None
    ray_unauthenticated: bool = False

    @property
    def port_range(self) -> range | None:
        """The ports of `ports`; None for any free ports. Raises ValueError if `ports` is not ``FIRST-LAST``."""
        if self.ports is None:
            return None
        first, dash, last = (part.strip() for part in self.ports.partition("-"))
        if not (dash and all(part.isascii() and part.isdigit() for part in (first, last))):
            raise ValueError(f"{self.ports!r} is not a range of ports; write it as in 20001-20199.")
        if not 1 <= int(first) <= int(last) <= 65535:
            raise ValueError(
                f"{self.ports!r} is not a range of ports between 1 and 65535, with the smaller port first."
            )
        return range(int(first), int(last) + 1)


class Routing(Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """How the server chooses a replica for a request, in groups of stages with a prefix cache. See docs/scaling.md.

    Attributes:
        prefix: ``auto`` means that a request prefers a replica that has the beginning of the request's prompt in its
            prefix cache. ``off`` means that each request uses the replica with the fewest open requests. In YAML,
            ``off`` without quotation marks means false, so false is accepted as ``off``, and true as ``auto``.
        overload: If the load of a replica is more than this number times the mean load of the replicas, the prefix
            cache of this replica is ignored. The load is measured in tokens. The mean includes the new request.
    """

    prefix: Literal["auto", "off"] | bool = "auto"
    overload: Annotated[float, Meta(ge=1)] = 1.5

    @property
    def by_prefix(self) -> bool:
        return self.prefix not in ("off", False)


class Supervision(Struct, forbid_unknown_fields=True, kw_only=True):
    """Time limits after which a running worker counts as hung. A hung worker is killed and restarted.

    Attributes:
        silent_seconds: Maximum time without any activity of a worker that has finished loading. A worker is active if
            it sends heartbeats, or if it uses the CPU or a disk.
        step_seconds: Maximum time of one step of a worker. Time in which other processes compile kernels for the
            worker's GPU does not count. For a worker that is still loading, this is the maximum time without any
            activity.
        gpu_wait_seconds: Maximum time for which the main thread of a worker on a GPU may wait in one call of a library,
            for example because a kernel never ends. Time in which kernels are compiled for the worker does not count.
    """

    silent_seconds: Annotated[float, Meta(ge=5)] = 10.0
    step_seconds: Annotated[float, Meta(ge=5)] = 600.0
    gpu_wait_seconds: Annotated[float, Meta(ge=5)] = 30.0


class Config(Struct, forbid_unknown_fields=True, kw_only=True):
    """The configuration of a deployment.

    Attributes:
        model_path: Checkpoint directory or hub name.
        graph: The stage graph, as ``package.module:NAME``.
        text_only: Leave out the speech stages. The server sets this to true itself if the checkpoint cannot speak.
        colocate: Use a single GPU for all stages that compute on a GPU. All of these stages without a `worker` of their
            own share the worker process ``gpu``.
        device: Device of every stage whose own `device` is ``auto``.
        log_level: Log level of the main process and the workers.
        log_format: ``text``, or ``json`` for one JSON object per line.
        trace: Traces of individual requests.
        supervision: Time limits after which a worker counts as hung.
        server: The HTTP server.
        stages: Settings of each stage, by the stage's name. A stage that is not listed has the default settings.
        groups: Groups of stages that have several replicas, by the group's name. See docs/scaling.md.
        routing: How the server chooses a replica for a request.
        hosts: Other hosts that run replicas, by the host's name. Groups refer to the hosts by these names. See
            docs/placement.md.
        cluster: How hosts reach each other.
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
    groups: dict[str, GroupConfig] = {}
    routing: Routing = field(default_factory=Routing)
    hosts: dict[str, HostConfig] = {}
    cluster: Cluster = field(default_factory=Cluster)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises StartupError if the file cannot be read, contains no mapping, or contains a
    key twice.
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
    """Returns `base` with the values of `over`. A mapping in `over` is merged into the mapping in `base`. Any other
    value in `over` replaces the value in `base`.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def convert(tree: Any, kind: type[Kind], path: str, *, source: str = "") -> Kind:
    """`tree` as an instance of the struct type `kind`.

    Args:
        path: The dotted path of `tree` in the configuration, for error messages.
        source: The beginning of error messages.

    Raises:
        StartupError: a key is unknown, or a value has the wrong type or is out of range. For an unknown key, the
            message has the path of the key and a similar known key.
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
