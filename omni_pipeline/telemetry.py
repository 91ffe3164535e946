"""Whether traces go to an OpenTelemetry collector, by configuration or by OpenTelemetry's environment variables."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping

from msgspec import structs

from omni_pipeline.config import Trace
from omni_pipeline.errors import StartupError

log = logging.getLogger(__name__)

_PACKAGES = "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_PATH = "/v1/traces"


def resolve(trace: Trace, environment: Mapping[str, str]) -> Trace:
    """`trace` with the full URL that spans are sent to, or without any.

    Raises:
        StartupError: the configuration asks for it, and the packages for it are not installed.
    """
    if trace.otlp_endpoint is not None:
        if not installed():
            raise StartupError(f"trace.otlp_endpoint: sending traces needs {_PACKAGES}: install them with pip.")
        return structs.replace(trace, otlp_endpoint=trace.otlp_endpoint.rstrip("/") + _PATH)
    endpoint = _from(environment)
    if endpoint is not None and not installed():
        log.warning("OpenTelemetry's endpoint %s is ignored: sending traces needs %s", endpoint, _PACKAGES)
        endpoint = None
    return structs.replace(trace, otlp_endpoint=endpoint)


def installed() -> bool:
    """Whether the packages are there; found out without importing them."""
    try:
        return importlib.util.find_spec(_EXPORTER) is not None and importlib.util.find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:  # not even the packages above
        return False


def _from(environment: Mapping[str, str]) -> str | None:
    """The URL that OpenTelemetry's environment variables name, unless they say that nothing is to be sent."""

    def of(name: str) -> str:
        return environment.get(f"OTEL_{name}", "").strip()

    if of("SDK_DISABLED").lower() == "true" or of("TRACES_EXPORTER") not in ("", "otlp"):
        return None
    protocol = of("EXPORTER_OTLP_TRACES_PROTOCOL") or of("EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    whole, base = of("EXPORTER_OTLP_TRACES_ENDPOINT"), of("EXPORTER_OTLP_ENDPOINT")
    endpoint = whole or (base and base.rstrip("/") + _PATH)
    if endpoint and protocol != "http/protobuf":
        log.warning("OpenTelemetry's endpoint %s is ignored: %s is not spoken here, only http/protobuf", endpoint, protocol)
        return None
    return endpoint or None
