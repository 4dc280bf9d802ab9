"""Traces of requests, sent to a collector by OpenTelemetry. Spans are made when a request has ended.

Imported only if a collector is configured: the packages are the extra `otel`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import perf_counter, time_ns

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vigor_service.observability.request_record import RequestRecord, Stage

MAX_QUEUED_SPANS = 2048
"""Maximum number of spans that wait to be sent; beyond it, the oldest are dropped."""
EXPORT_SECONDS = 10.0
"""Maximum time for the collector to take a batch of spans, all retries included."""
CLOSE_SECONDS = 2.0
"""Maximum time to send what is still queued when the service ends."""


class Tracing:
    """Sends one trace for each request, as a part of the caller's trace if it sent a W3C ``traceparent``.

    ``endpoint`` is the URL at which the collector receives traces, with its path. If it is None, OpenTelemetry's
    standard environment variables name it.
    """

    def __init__(self, endpoint: str | None, *, version: str) -> None:
        named = Resource.create({"service.name": "vigor-service", "service.version": version})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED_SPANS))
        self._tracer = self._provider.get_tracer("vigor_service", version)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        record: RequestRecord,
        *,
        method: str,
        route: str,
        status: int,
        request_id: str,
        headers: Mapping[str, str],
    ) -> None:
        """Queue the spans of a request that ends now. Never waits for the collector."""
        ended, to_ns = perf_counter(), _clock()
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "vigor.request_id": request_id,
        }
        if record.weight_version is not None and status < 400:
            attributes["vigor.weight_version"] = record.weight_version
        caller = self._propagator.extract(headers)
        root = self._tracer.start_span(
            f"{method} {route}", caller, SpanKind.SERVER, attributes, start_time=to_ns(record.began)
        )
        if status >= 500:
            root.set_status(StatusCode.ERROR)
        for stage in record.stages(ended):
            self._add(root, stage, to_ns)
        root.end(to_ns(ended))

    def close(self) -> None:
        """Send what is queued, for at most ``CLOSE_SECONDS``."""
        # Without this thread, a collector that does not answer would delay the end of the service for too long.
        closing = threading.Thread(target=self._provider.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _add(self, parent: Span, stage: Stage, to_ns: Callable[[float], int]) -> None:
        attributes = {} if stage.num_scores is None else {"vigor.num_scores": stage.num_scores}
        within = set_span_in_context(parent)
        span = self._tracer.start_span(stage.name, within, attributes=attributes, start_time=to_ns(stage.began))
        for part in stage.parts:
            self._add(span, part, to_ns)
        span.end(to_ns(stage.ended))


def _clock() -> Callable[[float], int]:
    """Return a function from seconds of ``perf_counter`` to nanoseconds since the epoch."""
    now, now_ns = perf_counter(), time_ns()
    return lambda seconds: now_ns - round((now - seconds) * 1e9)
