"""A collector of traces on this machine: takes what OpenTelemetry sends over HTTP, and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was sent; ids are hexadecimal digits, an empty parent is none."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, str | int]
    is_error: bool


@dataclass
class Collector:
    """What came, and from whom. While ``answers`` is clear nothing is answered."""

    url: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    resources: list[dict[str, str | int]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    answers: threading.Event = field(default_factory=threading.Event)

    def take(self, path: str, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.paths.add(path)
        for resource in request.resource_spans:
            self.resources.append(_attributes(resource.resource.attributes))
            self.spans += [_received(span) for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> ReceivedSpan:
        """Return the only span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            received.answers.wait(60)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        received = Collector(f"http://127.0.0.1:{server.server_port}")
        received.answers.set()
        thread = threading.Thread(target=server.serve_forever, name="collector")
        thread.start()
        try:
            yield received
        finally:
            received.answers.set()
            server.shutdown()
            thread.join()


def _received(span) -> ReceivedSpan:  # noqa: ANN001 - protobuf makes its classes at run time
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _attributes(pairs) -> dict[str, str | int]:  # noqa: ANN001 - as above
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
