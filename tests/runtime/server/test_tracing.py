"""Spans: one for a call, below the caller's; none without OTEL_TRACES_EXPORTER."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from testing.served import ITEM, ScriptedScorer, app_of, call, score

from stepscore.errors import ExtraMissing
from stepscore.server.tracing import EXPORTER_VARIABLE, no_span, spans, spans_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_call_is_a_span_below_that_of_its_caller() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = app_of(ScriptedScorer(), span=spans_of(provider))
    score(app, ITEM, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    call(app, "GET", "/secret")
    scored, unknown = exporter.get_finished_spans()
    assert scored.parent is not None
    assert (scored.context.trace_id, scored.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert (scored.name, unknown.name) == ("POST /v1/score", "GET unknown")
    assert scored.attributes is not None
    assert scored.attributes["http.response.status_code"] == 200
    assert scored.attributes["stepscore.tokens"] == 7
    provider.shutdown()


def test_nothing_is_traced_unless_an_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EXPORTER_VARIABLE, raising=False)
    assert spans() is no_span
    monkeypatch.setenv(EXPORTER_VARIABLE, "none")
    assert spans() is no_span


def test_an_exporter_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPORTER_VARIABLE, "nowhere")
    with pytest.raises(ExtraMissing, match="no OpenTelemetry exporter is named 'nowhere'"):
        spans()
