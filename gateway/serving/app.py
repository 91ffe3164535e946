"""Joins all HTTP endpoints into one application."""

from __future__ import annotations

import time
from pathlib import PurePath

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.admission import Admission
from gateway.answers.chat import ChatCompletions
from gateway.answers.collector import Collector
from gateway.answers.spoken_history import SpokenHistory
from gateway.api.openapi import openapi_document
from gateway.api.responses import Index, Model, ModelList
from gateway.api.voices import Voices
from gateway.http.cors import CrossOrigin
from gateway.http.hosts import AcceptedHosts
from gateway.http.middleware import add_request_id, expect, explain_errors, identify, json_response, require_key
from gateway.media.loading import MediaLoader
from gateway.media.remote import Resolve
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.serving.health import Health
from gateway.traces.traces import Traces
from omni_pipeline import __version__
from omni_pipeline.config.schema import Server
from omni_pipeline.errors import bad_request


class Gateway:
    """The HTTP front end of one pipeline.

    Args:
        pipeline: The running stages.
        server: Configuration of the server.
        model_path: Path of the checkpoint; it is the model's name if `server` gives none.
        traces: Records the timeline of each request.
        voices: Voices of the pipeline; None if the pipeline does not speak.
        resolver: Resolves the names of media hosts to addresses; None means the system's resolver.

    Attributes:
        app: The aiohttp application.
        health: Makes the report of `GET /health`.
        admission: Counts the chat requests in progress.
        collector: Sends requests to the pipeline and receives the answers.
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
        self.admission = Admission(server.limits)
        self.collector = Collector(
            pipeline, reader_bytes=server.limits.reader_bytes, restart_seconds=server.limits.restart_seconds
        )
        name = server.model_name or PurePath(model_path).name or model_path
        self._metrics = Metrics(
            pipeline,
            model=name,
            admission=self.admission,
            dropped_late=lambda: self.collector.dropped_late,
            healthy=lambda: self.health.report().status == "ok",
            traces=traces,
        )
        self._description = openapi_document(with_keys=bool(server.api_keys))
        self._model = Model(id=name, created=int(time.time()))
        chat = ChatCompletions(
            self.collector,
            MediaLoader(server.media, total_bytes=server.limits.body_bytes, resolver=resolver),
            self._metrics,
            self.admission,
            model=name,
            voices=voices,
            limits=server.limits,
            traces=traces,
            history=SpokenHistory(server.limits, private=bool(server.api_keys)),
        )
        middlewares: list[Middleware] = [identify, explain_errors]
        if server.allowed_hosts or not server.api_keys:
            middlewares.append(AcceptedHosts(server).check)
        cross_origin = CrossOrigin(server.allowed_origins) if server.allowed_origins else None
        if cross_origin is not None:
            middlewares.append(cross_origin.preflight)
        if server.api_keys:
            middlewares.append(require_key(server.api_keys))
        self.app = web.Application(middlewares=middlewares)
        self.app.on_response_prepare.append(add_request_id)
        if cross_origin is not None:
            self.app.on_response_prepare.append(cross_origin.add_headers)
        self.app.on_cleanup.append(self._end_threads)
        self._audio_threads = chat.audio_threads
        routes: list[tuple[str, str, Handler]] = [
            ("POST", "/v1/chat/completions", chat.post),
            ("GET", "/v1/models", self._list_models),
            ("GET", "/v1/models/{model:.+}", self._show_model),
            ("GET", "/health", self._show_health),
            ("GET", "/metrics", self._show_metrics),
            ("GET", "/openapi.json", self._show_description),
            ("GET", "/", self._show_endpoints),
        ]
        for method, path, handler in routes:
            add = self.app.router.add_get if method == "GET" else self.app.router.add_post
            add(path, handler, expect_handler=expect)
        # Routes for all other requests. Without these routes, aiohttp would check the Expect header of these requests
        # itself, and quote the header in an error that does not have the API's form.
        for resource in [*self.app.router.resources(), self.app.router.add_resource("/{path:(?s:.*)}")]:
            resource.add_route(hdrs.METH_ANY, _refuse, expect_handler=expect)

    async def _end_threads(self, app: web.Application) -> None:
        self._audio_threads.shutdown(wait=False, cancel_futures=True)

    async def _list_models(self, request: web.Request) -> web.Response:
        return json_response(ModelList([self._model]))

    async def _show_model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != self._model.id:
            raise bad_request(
                f"This server's only model is '{self._model.id}'.", param="model", code="model_not_found", status=404
            )
        return json_response(self._model)

    async def _show_health(self, request: web.Request) -> web.Response:
        report = self.health.report()
        return json_response(report, status=200 if report.status == "ok" else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        page, media_type = self._metrics.page(request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": media_type})

    async def _show_description(self, request: web.Request) -> web.Response:
        return json_response(self._description)

    async def _show_endpoints(self, request: web.Request) -> web.Response:
        endpoints = [
            f"{route.method} {route.resource.canonical}"
            for route in self.app.router.routes()
            if route.resource and route.method not in ("HEAD", hdrs.METH_ANY)
        ]
        return json_response(
            Index(name="omni-pipeline", version=__version__, model=self._model.id, endpoints=sorted(endpoints))
        )


async def _refuse(request: web.Request) -> web.StreamResponse:
    """Answer a request for a path or a method that no endpoint has."""
    resource = request.match_info.route.resource
    methods = {route.method for route in resource or ()} - {hdrs.METH_ANY}
    if not methods:
        raise web.HTTPNotFound()
    raise web.HTTPMethodNotAllowed(request.method, methods)
