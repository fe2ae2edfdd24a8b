"""OpenTelemetry traces, where they are asked for: a span for each request, under the trace that its headers name.

A span knows the route, the status, where the texts left and under which points; nothing of a text, nor of a path.
"""

from __future__ import annotations

from typing import Any

from ..model.validation import refuse

ATTRIBUTES = {b"x-exit-layer": "pfberxit.exit_layer", b"x-exit-policy": "pfberxit.exit_policy"}  # by header


def exporting() -> Any:
    """What makes tracers that send to where `OTEL_EXPORTER_OTLP_ENDPOINT` and its kin say.

    Raises:
        ValueError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        refuse("trace", True, f"left out without {error.name}: pip install 'modeling-pfberxit[trace]'")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traced:
    """An application in front of which every request begins a span.

    Args:
        app: an ASGI application.
        provider: of tracers.
    """

    def __init__(self, app: Any, provider: Any) -> None:
        self.app, self.tracer = app, provider.get_tracer("pfberxit")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on, and note what it was answered."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        named = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self.tracer.start_as_current_span(scope["method"], extract(named), SpanKind.SERVER) as span:

            async def noting(message: dict[str, Any]) -> None:
                """Send a message on; the head of the response is noted in the span."""
                if message["type"] == "http.response.start":
                    note(span, scope, message)
                await send(message)

            await self.app(scope, receive, noting)


def note(span: Any, scope: dict[str, Any], message: dict[str, Any]) -> None:
    """A span's name and attributes, from what the routes have found and the head of the response."""
    span.set_attribute("http.request.method", scope["method"])
    span.set_attribute("http.response.status_code", message["status"])
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        span.set_attribute("http.route", route)
        span.update_name(f"{scope['method']} {route}")
    for header, value in message.get("headers", ()):
        if header.lower() in ATTRIBUTES:
            span.set_attribute(ATTRIBUTES[header.lower()], value.decode("latin-1"))
