"""A real server shows its work in traces, in spans for a collector, in metrics, and in JSON logs at every level."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.server import Server, split

SECRET_KEY = "sk-never-to-be-logged"
SECRET_TEXT = "the-butler-did-it"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

TEXT: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True}
SPEECH: dict[str, Any] = {
    "modalities": ["text", "audio"],
    "images": ["tests/data/cars.jpg"],
    "max_tokens": 12,
    "talker_max_new_tokens": 31,
    "ignore_eos": True,
    "stream": True,
}
WRITING = ("preprocessing", "mm_aggregate", "thinker", "decode")
SPEAKING = (*WRITING, "image_encoder", "talker_ar", "code_predictor", "code2wav")


class Collector:
    """An OpenTelemetry collector that keeps the spans it receives."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Observed:
    """A server, the requests that were sent to it, and the records of these requests: traces, spans, metrics and
    logs.
    """

    def __init__(self, server: Server, traces: Path, collector: Collector) -> None:
        self.server = server
        self.directory = traces
        self.collector = collector
        self.client_seconds: dict[str, float] = {}
        self.metrics = ""

    def ask(self, request_id: str, body: dict[str, Any], **headers: str) -> None:
        content = {"messages": [{"role": "user", "content": f"Say that {SECRET_TEXT}."}], **body}
        own = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {SECRET_KEY}",
            "X-Request-Id": request_id,
            "Connection": "close",
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        connection.connect()
        with connection.sock.dup() as socket:
            begin = time.monotonic()
            connection.request("POST", "/v1/chat/completions", json.dumps(content).encode(), own | headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            # A trace ends after the last byte of its answer, but before the server closes the connection.
            assert socket.recv(1) == b""
            self.client_seconds[request_id] = time.monotonic() - begin

    def has_all_edges(self) -> bool:
        """Read the metrics. Returns whether the metrics contain the edge from the code predictor back to the talker.
        The talker reports this edge in its next heartbeat.
        """
        with urllib.request.urlopen(f"{self.server.url}/metrics") as page:
            self.metrics = page.read().decode()
        return 'source="code_predictor",target="talker_ar"' in self.metrics

    def trace(self, request_id: str) -> dict[str, Any]:
        documents = [json.loads(path.read_text()) for path in self.directory.iterdir()]
        [found] = [document for document in documents if document["otherData"]["request_id"] == request_id]
        return found

    def spans(self, request_id: str) -> list[Any]:
        trace_id = bytes.fromhex(self.trace(request_id)["otherData"]["trace_id"])
        return [span for span in self.collector.spans if span.trace_id == trace_id]

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.server.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def observed(tiny_checkpoint: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    traces = tmp_path_factory.mktemp("traces")
    collector = Collector()
    config = split() | {"server": {"api_keys": [SECRET_KEY]}, "trace": {"otlp_endpoint": collector.url}}
    arguments = ["--trace-dir", str(traces), "--log-format", "json", "--log-level", "debug"]
    server = Server(tiny_checkpoint, repository, config, arguments, speech=True)
    observed = Observed(server, traces, collector)
    try:
        server.start()
        observed.ask("text", TEXT, traceparent=PARENT)
        observed.ask("speech", SPEECH)
        server.until(observed.has_all_edges, 20)
        assert server.stop() == 0  # the server writes the remaining records when it ends
        yield observed
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
        collector.close()


# --- traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", ["text", "speech"])
def test_trace_explains_the_whole_time_of_a_request(observed: Observed, request_id: str) -> None:
    """Transfers, queues and steps together cover all but 5 % of the time."""
    about = observed.trace(request_id)["otherData"]
    print(f"{request_id}: {about['covered_seconds'] / about['wall_seconds']:.2%} of {about['wall_seconds']:.3f} s")
    assert about["covered_seconds"] >= 0.95 * about["wall_seconds"]
    assert about["wall_seconds"] <= observed.client_seconds[request_id]
    assert about["outcome"] == "ok"


@pytest.mark.parametrize(("request_id", "stages"), [("text", WRITING), ("speech", SPEAKING)])
def test_trace_has_every_stage_with_its_transfers_and_steps(
    observed: Observed, request_id: str, stages: tuple[str, ...]
) -> None:
    events = observed.trace(request_id)["traceEvents"]
    summaries = {event["name"]: event["args"] for event in events if event["name"] in stages}
    assert summaries.keys() == set(stages)
    for summary in summaries.values():
        assert min(summary["transfers"], summary["steps"]) >= 1
    processes = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert sorted(processes) == sorted(["main", *stages])


def test_trace_has_each_token_and_each_frame(observed: Observed) -> None:
    events = observed.trace("speech")["traceEvents"]
    [thinker] = [event for event in events if event["name"] == "thinker"]
    assert thinker["args"]["steps"] == SPEECH["max_tokens"]
    seeds = [event for event in events if event["ph"] == "b" and event["name"] == "talker_ar → code_predictor"]
    # One transfer for each frame, and two for the start and the end of the stream.
    assert len(seeds) == SPEECH["talker_max_new_tokens"] - 1 + 2


@pytest.mark.parametrize("request_id", ["text", "speech"])
def test_trace_opens_in_perfetto(observed: Observed, request_id: str) -> None:
    """Slices of one thread do not overlap unless one contains the other, and every asynchronous slice ends."""
    events = observed.trace(request_id)["traceEvents"]
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        assert event["ph"] in "MXbe"
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for slices in threads.values():
        open_until: list[float] = []
        for begin, end in sorted(slices, key=lambda both: (both[0], -both[1])):
            # Times in the file are rounded to a thousandth of a microsecond.
            while open_until and open_until[-1] <= begin + 0.01:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 0.01
            open_until.append(end)
    begun = [event["id"] for event in events if event["ph"] == "b"]
    assert sorted(begun) == sorted(event["id"] for event in events if event["ph"] == "e")


def test_same_spans_go_to_a_collector(observed: Observed) -> None:
    for request_id in ("text", "speech"):
        slices = [event for event in observed.trace(request_id)["traceEvents"] if event["ph"] in "Xb"]
        assert len(observed.spans(request_id)) == len(slices)


def test_request_joins_the_trace_of_its_caller(observed: Observed) -> None:
    [root] = [span for span in observed.spans("text") if span.name.startswith("chat ")]
    _, trace_id, parent_id, _ = PARENT.split("-")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (trace_id, parent_id)
    attributes = {attribute.key: attribute.value for attribute in root.attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value == TEXT["max_tokens"]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_of_a_real_server_can_be_parsed_and_all_have_names(observed: Observed) -> None:
    families = {family.name: family for family in text_string_to_metric_families(observed.metrics)}
    assert "omni_stage_figure" not in families
    [requests] = [sample for sample in families["omni_requests"].samples if sample.labels == {"outcome": "ok"}]
    assert requests.value == 2
    stages = {sample.labels["stage"] for sample in families["omni_stage_queued_requests"].samples}
    assert stages == {*SPEAKING, "audio_encoder"}
    edges = {(sample.labels["source"], sample.labels["target"]) for sample in families["omni_edge_messages"].samples}
    assert {("gateway", "preprocessing"), ("code_predictor", "talker_ar"), ("code2wav", "collector")} <= edges
    assert {sample.value for sample in families["omni_worker_up"].samples} == {1}


# --- logs -------------------------------------------------------------------------------------------------------------


def test_every_line_of_every_process_is_one_json_object(observed: Observed) -> None:
    records = observed.log()
    assert {"main", "preprocessing"} <= {record["process"] for record in records}
    for record in records:
        assert {"time", "level", "process", "pid", "logger", "message"} <= record.keys()


def test_line_of_a_request_names_it_in_every_way(observed: Observed) -> None:
    [line] = [record for record in observed.log() if record.get("request_id") == "speech"]
    assert (line["status"], line["outcome"], line["codec_frames"]) == (200, "ok", SPEECH["talker_max_new_tokens"] - 1)
    about = observed.trace("speech")["otherData"]
    assert (line["trace_id"], line["answer_id"]) == (about["trace_id"], about["answer_id"])
    assert 0 < line["first_text_seconds"] < line["seconds"]


def test_keys_texts_and_media_are_in_no_log_trace_or_metric(observed: Observed) -> None:
    shown = [observed.server.log.read_text(), observed.metrics, str(observed.collector.spans)]
    shown += [path.read_text() for path in observed.directory.iterdir()]
    for secret in (SECRET_KEY, SECRET_TEXT, "cars.jpg"):
        assert not any(secret in text for text in shown)
