"""Combines all HTTP endpoints into one application."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.admission import Admission
from gateway.answers.chat import ChatCompletions
from gateway.answers.collector import Collector
from gateway.answers.exchange import Exchanges
from gateway.answers.responses import Responses
from gateway.answers.speech import SpeechReader
from gateway.answers.spoken_history import SpokenHistory
from gateway.answers.transcripts import Transcripts
from gateway.api.health_report import SERVING
from gateway.api.openapi import openapi_document
from gateway.api.responses import Index, Model, ModelList
from gateway.api.speech_responses import VoiceList
from gateway.api.voices import Voices
from gateway.http.cors import CrossOrigin
from gateway.http.hosts import AcceptedHosts
from gateway.http.middleware import add_request_id, expect, explain_errors, identify, json_response, require_key
from gateway.media.loading import MediaLoader
from gateway.media.remote import Resolve
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.playground import page_files
from gateway.playground.page_files import PageFiles
from gateway.realtime.client_secrets import PATH, ClientSecrets
from gateway.realtime.endpoint import Realtime
from gateway.realtime.protocol.session import SessionRules
from gateway.serving.health import Health
from gateway.serving.pipeline_watch import PipelineWatch
from gateway.traces.traces import Traces
from omni_pipeline import __version__
from omni_pipeline.config.schema import Server
from omni_pipeline.errors import bad_request

# Number of threads that encode speech. One thread encodes a hundred times faster than real time, so a few threads are
# enough.
AUDIO_THREADS = 2


class Gateway:
    """The HTTP front end of one pipeline.

    Args:
        pipeline: The running stages.
        server: Configuration of the server.
        model_path: Path of the checkpoint. If `server` contains no model name, the last part of this path is the name.
        traces: Records the timeline of each request.
        voices: Voices of the pipeline; None if the pipeline does not speak.
        resolver: Resolves the names of media hosts to addresses; None means the system's resolver.

    Attributes:
        app: The aiohttp application.
        health: Makes the report of `GET /health`.
        admission: Admits requests, and counts the requests in progress.
        collector: Sends requests to the pipeline and receives the answers.
        realtime: Serves the realtime sessions.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        server: Server,
        *,
        model_path: str,
        traces: Traces,
        voices: Voices | None = None,
        resolver: Resolve | None = None,
    ) -> None:
        self.health = Health(pipeline)
        self.admission = Admission(server.limits, pipeline.live_replicas)
        self.collector = Collector(
            pipeline, reader_bytes=server.limits.reader_bytes, restart_seconds=server.limits.restart_seconds
        )
        name = server.model_name or PurePath(model_path).name or model_path
        self._metrics = Metrics(
            pipeline,
            model=name,
            admission=self.admission,
            dropped_late=lambda: self.collector.dropped_late,
            healthy=lambda: self.health.report().status in SERVING,
            traces=traces,
        )
        self.collector.aborted = self._metrics.abort_seconds.observe
        self._description = openapi_document(with_keys=bool(server.api_keys))
        self._model = Model(id=name, created=int(time.time()))
        self._audio_threads = ThreadPoolExecutor(AUDIO_THREADS, thread_name_prefix="audio")
        exchanges = Exchanges(
            self.collector,
            MediaLoader(server.media, total_bytes=server.limits.body_bytes, resolver=resolver),
            self._metrics,
            self.admission,
            model=name,
            limits=server.limits,
            traces=traces,
        )
        chat = ChatCompletions(
            exchanges,
            model=name,
            voices=voices,
            history=SpokenHistory(server.limits, private=bool(server.api_keys)),
            audio_threads=self._audio_threads,
        )
        transcripts = Transcripts(exchanges, server.media)
        speech = SpeechReader(exchanges, voices=voices, audio_threads=self._audio_threads)
        rules = SessionRules(voices, server.limits)
        client_secrets = ClientSecrets(exchanges, rules, model=name)
        origins = CrossOrigin(server.allowed_origins)
        self.realtime = Realtime(exchanges, rules, client_secrets, origins, model=name)
        self._voices = VoiceList(list(voices.names), voices.default) if voices else VoiceList([], None)
        watch = PipelineWatch(pipeline, self.admission, self.health.report, traces.recent)
        middlewares: list[Middleware] = [identify, explain_errors]
        if server.allowed_hosts or not server.api_keys:
            middlewares.append(AcceptedHosts(server).check)
        if server.allowed_origins:
            middlewares.append(origins.preflight)
        if server.api_keys:
            middlewares.append(require_key(server.api_keys, client_secrets.client_of))
        self.app = web.Application(middlewares=middlewares)
        self.app.on_response_prepare.append(add_request_id)
        if server.allowed_origins:
            self.app.on_response_prepare.append(origins.add_headers)
        self.app.on_cleanup.append(self._end_threads)
        routes: list[tuple[str, str, Handler]] = [
            ("POST", "/v1/chat/completions", chat.post),
            ("POST", "/v1/audio/transcriptions", transcripts.transcribe),
            ("POST", "/v1/audio/translations", transcripts.translate),
            ("POST", "/v1/audio/speech", speech.post),
            ("GET", "/v1/audio/voices", self._list_voices),
            ("GET", "/v1/models", self._list_models),
            ("GET", "/v1/models/{model:.+}", self._show_model),
            ("POST", "/v1/responses", Responses(exchanges, model=name).post),
            ("GET", PATH, self.realtime.connect),
            ("POST", f"{PATH}/client_secrets", client_secrets.post),
            ("GET", "/v1/pipeline", watch.show_pipeline),
            ("GET", "/v1/pipeline/timelines/{answer}", watch.show_timeline),
            ("GET", "/health", self._show_health),
            ("GET", "/metrics", self._show_metrics),
            ("GET", "/openapi.json", self._show_description),
            ("GET", "/", self._show_endpoints),
        ]
        self._endpoints = sorted(f"{method} {path.replace(':.+', '')}" for method, path, _ in routes)
        self._has_page = server.playground
        if server.playground:
            page = PageFiles()
            routes += [
                ("GET", page_files.PATH, page.show_page),
                ("GET", f"{page_files.PATH}/{{name}}", page.show_file),
            ]
        for method, path, handler in routes:
            add = self.app.router.add_get if method == "GET" else self.app.router.add_post
            add(path, handler, expect_handler=expect)
        # Routes for all other requests. Without these routes, aiohttp itself would check the Expect header of these
        # requests. The error of aiohttp quotes the header and does not have the API's form.
        for resource in [*self.app.router.resources(), self.app.router.add_resource("/{path:(?s:.*)}")]:
            resource.add_route(hdrs.METH_ANY, _refuse, expect_handler=expect)

    async def _end_threads(self, app: web.Application) -> None:
        self._audio_threads.shutdown(wait=False, cancel_futures=True)
        self.realtime.close()

    async def _list_models(self, request: web.Request) -> web.Response:
        return json_response(ModelList([self._model]))

    async def _show_model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != self._model.id:
            raise bad_request(
                f"This server's only model is '{self._model.id}'.", param="model", code="model_not_found", status=404
            )
        return json_response(self._model)

    async def _list_voices(self, request: web.Request) -> web.Response:
        return json_response(self._voices)

    async def _show_health(self, request: web.Request) -> web.Response:
        report = self.health.report()
        return json_response(report, status=200 if report.status in SERVING else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        page, media_type = self._metrics.page(request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": media_type})

    async def _show_description(self, request: web.Request) -> web.Response:
        return json_response(self._description)

    async def _show_endpoints(self, request: web.Request) -> web.Response:
        """Answers a program with the list of endpoints, and redirects a browser to the playground."""
        headers = {"Vary": "Accept"}
        if self._has_page and page_files.wants_page(request):
            raise web.HTTPFound(page_files.PATH.removeprefix("/"), headers=headers)
        index = Index(name="omni-pipeline", version=__version__, model=self._model.id, endpoints=self._endpoints)
        return json_response(index, headers=headers)


async def _refuse(request: web.Request) -> web.StreamResponse:
    """Answer a request for a path or a method that no endpoint has."""
    resource = request.match_info.route.resource
    methods = {route.method for route in resource or ()} - {hdrs.METH_ANY}
    if not methods:
        raise web.HTTPNotFound()
    raise web.HTTPMethodNotAllowed(request.method, methods)
