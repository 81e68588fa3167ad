"""Records spans in memory, and says whether a trace is whole.

The asserting functions take span records, so they serve unit tests (a recorder), whole-stack tests
(the span store) and users' own tests alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

from millrace.telemetry.names import (
    SERVICE_EDGES,
    SERVICE_GATEWAY,
    SERVICE_TOKENIZER,
    Edge,
    EdgeKind,
    matches_span,
)
from millrace.telemetry.otlp import decode_spans, records_of
from millrace.telemetry.setup import create_resource
from millrace.telemetry.span_record import SpanRecord, clip, find_root, subtree, total_s


class SpanRecorder:
    """Keeps every span that ends under its tracers; several services may share one recorder."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._providers: dict[str, TracerProvider] = {}

    def provider(self, service: str) -> TracerProvider:
        """The provider whose spans carry this service's name."""
        if service not in self._providers:
            provider = TracerProvider(
                sampler=ALWAYS_ON, resource=create_resource(service), shutdown_on_exit=False
            )
            provider.add_span_processor(SimpleSpanProcessor(self._exporter))
            self._providers[service] = provider
        return self._providers[service]

    def tracer(self, service: str) -> Tracer:
        """A tracer of the service."""
        return self.provider(service).get_tracer(f"millrace.{service}")

    def install(self, service: str) -> None:
        """Record what the global tracers make, too.

        A process has one global provider: the first call of a test run sets it, later ones add this
        recorder to it, and then the spans carry the first service's name.
        """
        current = trace.get_tracer_provider()
        if isinstance(current, TracerProvider):
            current.add_span_processor(SimpleSpanProcessor(self._exporter))
        else:
            trace.set_tracer_provider(self.provider(service))

    def spans(self) -> list[SpanRecord]:
        """The spans that have ended, in that order, as they would arrive at a collector."""
        return decode_spans(encode_spans(self._exporter.get_finished_spans()).SerializeToString())

    def spans_of_services(self) -> list[SpanRecord]:
        """The same if all services share one process: each span's service by its tracer."""
        request = encode_spans(self._exporter.get_finished_spans())
        found = []
        for resource_spans in request.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                service = _service_of(scope_spans.scope.name)
                alone = ExportTraceServiceRequest()
                alone.resource_spans.add().scope_spans.append(scope_spans)
                found += [replace(span, service=service) for span in records_of(alone)]
        return found

    def clear(self) -> None:
        """Forget them."""
        self._exporter.clear()


def _service_of(tracer: str) -> str:
    """`millrace.worker.row_spans` is the worker; calls go from the gateway to the tokenizer."""
    package = tracer.split(".")[1] if tracer.startswith("millrace.") else ""
    if package == "rpc":
        return SERVICE_TOKENIZER if tracer.endswith("interceptors") else SERVICE_GATEWAY
    return package


def assert_edges(spans: Sequence[SpanRecord], edges: Iterable[Edge] = SERVICE_EDGES) -> None:
    """Every edge is there, and no span of an edge lacks its parent; names what is missing."""
    missing = [problem for edge in edges for problem in _problems(spans, edge)]
    if missing:
        seen = sorted({f"{span.service}:{span.name}" for span in spans})
        raise AssertionError(
            "the trace is broken:\n  " + "\n  ".join(missing) + "\nspans: " + ", ".join(seen)
        )


def _problems(spans: Sequence[SpanRecord], edge: Edge) -> list[str]:
    parents = {span.span_id for span in spans if _is(span, edge.parent_service, edge.parent_span)}
    children = [span for span in spans if _is(span, edge.child_service, edge.child_span)]
    # A client span and its server span share a name, as do the two ends of no other edge.
    if not children:
        return [f"{edge}: there is no such child span"]
    if edge.kind is EdgeKind.LINK:
        linked = any(link.span_id in parents for child in children for link in child.links)
        return [] if linked else [f"{edge}: no such link"]
    orphans = [span for span in children if span.parent_id not in parents]
    return [f"{edge}: the parent of span {span.span_id} is another or missing" for span in orphans]


def _is(span: SpanRecord, service: str, template: str) -> bool:
    return span.service == service and matches_span(template, span.name)


def assert_one_trace(spans: Sequence[SpanRecord]) -> None:
    """All spans but batch steps share a trace id, and one root."""
    traces = {span.trace_id for span in spans if not span.links}
    if len(traces) != 1:
        raise AssertionError(f"the spans lie in {len(traces)} traces: {sorted(traces)}")
    known = {span.span_id for span in spans}
    tops = [span for span in spans if not span.links and span.parent_id not in known]
    if len(tops) != 1:
        names = ", ".join(f"{span.service}:{span.name}" for span in tops)
        raise AssertionError(f"{len(tops)} spans have no parent here: {names}")


def leaf_coverage(spans: Sequence[SpanRecord]) -> float:
    """Share of the root's time that its descendants' leaf spans cover together, 0 to 1."""
    root = find_root(spans)
    if root is None or root.end_ns <= root.start_ns:
        return 0.0
    below = [span for span in subtree(spans, root) if span is not root]
    inner = {span.parent_id for span in below}
    leaves = [(span.start_ns, span.end_ns) for span in below if span.span_id not in inner]
    return total_s(clip(leaves, root.start_ns, root.end_ns)) / root.duration_s
