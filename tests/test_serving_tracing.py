"""OpenTelemetry: a span for each request under the client's trace, and nothing of a text in it."""

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from scripted import SECRET, Scripted  # noqa: E402
from served import service_of, serving  # noqa: E402

from modeling_pfberxit.serving import tracing  # noqa: E402

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def spans(monkeypatch):
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "exporting", lambda: provider)
    return kept


def test_a_request_is_a_span_of_the_clients_trace_without_its_text(spans):
    with serving(service_of(Scripted()), trace=True) as address:
        spans.clear()
        header = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        httpx.post(f"{address}/predict", json={"inputs": f"1 2 {SECRET}"}, headers=header)
        httpx.post(f"{address}/models/{SECRET}/predict", json={"inputs": "1"})
        found = spans.get_finished_spans()
    asked, missing = (span for span in found if span.attributes["http.request.method"] == "POST")
    assert f"{asked.context.trace_id:032x}" == TRACE and asked.name == "POST /predict"
    assert asked.attributes["http.response.status_code"] == 200
    assert asked.attributes["pfberxit.exit_layer"] == str(2 + len(SECRET.split()))
    assert asked.attributes["pfberxit.exit_policy"] == "default"
    assert missing.attributes["http.response.status_code"] == 404
    assert not any(word in span.to_json() for span in found for word in ("client", "wrote"))


def test_without_the_packages_traces_are_refused(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match="trace=True: must be left out without"):
        tracing.exporting()
