"""Decides the destination of traces: a directory, or a collector that the settings or OpenTelemetry's environment
variables name.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import structs

from omni_pipeline.config.schema import Trace
from omni_pipeline.errors import StartupError

log = logging.getLogger(__name__)

_PACKAGES = "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_PATH = "/v1/traces"


def resolve_trace(trace: Trace, environment: Mapping[str, str]) -> Trace:
    """`trace` with the full URL to which spans are sent. The URL is None if neither the configuration nor
    `environment` names a collector, or if the packages for the collector in `environment` are not installed. An empty
    directory name becomes None.

    Raises:
        StartupError: the configuration names a collector, but the packages that send traces to a collector are not
            installed.
    """
    trace = structs.replace(trace, dir=trace.dir or None)
    if trace.otlp_endpoint is not None:
        if not installed():
            raise StartupError(
                f"trace.otlp_endpoint: sending traces needs the packages {_PACKAGES}; install these packages with pip."
            )
        return structs.replace(trace, otlp_endpoint=trace.otlp_endpoint.rstrip("/") + _PATH)
    endpoint = _from(environment)
    if endpoint is not None and not installed():
        log.warning(
            "OpenTelemetry's endpoint %s is ignored: install the packages %s to send traces", endpoint, _PACKAGES
        )
        endpoint = None
    return structs.replace(trace, otlp_endpoint=endpoint)


def prepare(trace: Trace) -> None:
    """Make the directory for traces, if one is configured. Raises StartupError if files cannot be written there."""
    if trace.dir is None:
        return
    directory = Path(trace.dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"Cannot make the directory for traces, {directory}: {error.strerror}.") from error
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise StartupError(f"Cannot write traces to {directory}: it is not writable.")


def installed() -> bool:
    """Whether the packages for sending traces are installed. Does not import them."""
    try:
        return (
            importlib.util.find_spec(_EXPORTER) is not None
            and importlib.util.find_spec("opentelemetry.sdk") is not None
        )
    except ModuleNotFoundError:  # not even a parent package is installed
        return False


def _from(environment: Mapping[str, str]) -> str | None:
    """The URL from OpenTelemetry's environment variables; None if the variables contain no URL, turn off sending, or
    ask for a protocol that is not supported.
    """

    def of(name: str) -> str:
        return environment.get(f"OTEL_{name}", "").strip()

    if of("SDK_DISABLED").lower() == "true" or of("TRACES_EXPORTER") not in ("", "otlp"):
        return None
    protocol = of("EXPORTER_OTLP_TRACES_PROTOCOL") or of("EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    whole, base = of("EXPORTER_OTLP_TRACES_ENDPOINT"), of("EXPORTER_OTLP_ENDPOINT")
    endpoint = whole or (base and base.rstrip("/") + _PATH)
    if endpoint and protocol != "http/protobuf":
        log.warning(
            "OpenTelemetry's endpoint %s is ignored: only the protocol http/protobuf is supported, not %s",
            endpoint,
            protocol,
        )
        return None
    return endpoint or None
