"""OpenTelemetry spans of calls, where the extra [tracing] is installed and OTEL_TRACES_EXPORTER is set.

A provider that is set already, as by `opentelemetry-instrument`, is used as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from stepscore.errors import ExtraMissing
from stepscore.server.envelope import Call, OpenSpan

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"


def no_span(call: Call, headers: Headers) -> AbstractContextManager[None]:
    """Return a context that traces nothing."""
    del call, headers
    return nullcontext()


def spans() -> OpenSpan:
    """Return what opens the span of a call; raise ExtraMissing for an exporter that is not installed."""
    exporter = os.environ.get(EXPORTER_VARIABLE, "none")
    if exporter == "none":
        return no_span
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise ExtraMissing(
            f"{EXPORTER_VARIABLE} is set, but OpenTelemetry is not installed",
            hint="pip install 'stepscore[tracing]', or unset the variable",
        )
    return spans_of(_provider(exporter))


def _provider(name: str) -> TracerProvider:
    from opentelemetry import trace  # noqa: PLC0415 (an extra)
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    given = trace.get_tracer_provider()
    if isinstance(given, TracerProvider):
        return given
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise ExtraMissing(
            f"no OpenTelemetry exporter is named {name!r}",
            hint="for otlp: pip install opentelemetry-exporter-otlp",
        )
    provider = TracerProvider()  # reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES; ends with the process
    provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    return provider


def spans_of(provider: TracerProvider) -> OpenSpan:
    """Return what opens the span of a call at a provider, below the caller's span where it has one."""
    from opentelemetry import propagate, trace  # noqa: PLC0415 (an extra)

    tracer = provider.get_tracer("stepscore.server")

    @contextmanager
    def span(call: Call, headers: Headers) -> Iterator[None]:
        parent = propagate.extract(dict(headers))
        name = f"{call.method} {call.route}"
        with tracer.start_as_current_span(name, parent, kind=trace.SpanKind.SERVER) as opened:
            yield
            opened.set_attributes(
                {
                    "http.request.method": call.method,
                    "http.route": call.route,
                    "http.response.status_code": call.status,
                    "stepscore.request_id": call.request_id,
                    "stepscore.items": call.items,
                    "stepscore.tokens": call.tokens,
                }
            )

    return span
