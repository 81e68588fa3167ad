"""Makes an export request fit for a tracing UI that knows neither services nor links.

Phoenix reads spans only: the resource with the service's name and the span links are lost there.
So each span below the root is named with its service, batch steps go to a project of their own
instead of filling the list of requests, and each step is shown again inside the traces of its
members, as a span `step (linked)` below the span that it links to. Kinds, input and output are
those of OpenInference, which Phoenix shows in its columns; input and output are there only if the
gateway was told to write content into spans.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from millrace.telemetry.names import (
    ATTR_INPUT_MESSAGES,
    ATTR_OPERATION_NAME,
    ATTR_OUTPUT_MESSAGES,
    ATTR_RESPONSE_ID,
    ATTR_RESPONSE_MODEL,
    ATTR_STACK_ID,
    RPC_PREFIX,
    SPAN_STEP,
)
from millrace.telemetry.otlp import is_step, service_of

PROJECT = "millrace"
STEP_PROJECT = "millrace-steps"
LINKED_STEP = f"{SPAN_STEP} (linked)"
ATTR_PROJECT = "openinference.project.name"
ATTR_KIND = "openinference.span.kind"
KIND_LLM, KIND_CHAIN = "LLM", "CHAIN"
ATTR_INPUT_VALUE = "input.value"
ATTR_OUTPUT_VALUE = "output.value"
ATTR_SERVICE = "service.name"
ATTR_STEP_TRACE_ID = "millrace.step.trace_id"
# Members of one step that are shown; more would only slow the UI down.
MAX_MEMBERS = 64


def fit_for_ui(request: ExportTraceServiceRequest) -> bytes:
    """The request as the UI shows it best, serialized; `request` itself stays as it is.

    Each stack has projects of its own.
    """
    fitted = ExportTraceServiceRequest()
    for resource_spans in request.resource_spans:
        service = service_of(resource_spans)
        spans = [span for scope in resource_spans.scope_spans for span in scope.spans]
        steps = [span for span in spans if is_step(span)]
        others = [span for span in spans if not is_step(span)]
        copies = [copy for step in steps for copy in _copies(step)]
        _add(fitted, resource_spans, PROJECT, service, [*others, *copies])
        _add(fitted, resource_spans, STEP_PROJECT, service, steps)
    return fitted.SerializeToString()


def _add(
    fitted: ExportTraceServiceRequest,
    source: ResourceSpans,
    project: str,
    service: str,
    spans: list[Span],
) -> None:
    if not spans:
        return
    target = fitted.resource_spans.add()
    target.resource.CopyFrom(source.resource)
    stack = _stack_id(source)
    target.resource.attributes.append(
        _pair(ATTR_PROJECT, f"{project}-{stack}" if stack else project)
    )
    added = target.scope_spans.add().spans
    added.extend(spans)
    for span in added:
        _describe(span)
        span.attributes.append(_pair(ATTR_SERVICE, service))
        if span.parent_span_id:
            span.name = f"{_short(span.name)} · {service}"


def _describe(span: Span) -> None:
    """Kind, input, output and status in the words of the UI."""
    texts = {pair.key: pair.value.string_value for pair in span.attributes}
    is_generation = ATTR_OPERATION_NAME in texts
    span.attributes.append(_pair(ATTR_KIND, KIND_LLM if is_generation else KIND_CHAIN))
    if said := _said(texts.get(ATTR_INPUT_MESSAGES, ""))[-1:]:
        span.attributes.append(_pair(ATTR_INPUT_VALUE, said[0]))
    if said := _said(texts.get(ATTR_OUTPUT_MESSAGES, "")):
        span.attributes.append(_pair(ATTR_OUTPUT_VALUE, "\n\n".join(said)))
    # Else the UI makes an output of them.
    for name in (ATTR_RESPONSE_ID, ATTR_RESPONSE_MODEL):
        for pair in [pair for pair in span.attributes if pair.key == name]:
            span.attributes.remove(pair)
    if span.status.code == Status.STATUS_CODE_UNSET:
        span.status.code = Status.STATUS_CODE_OK


def _said(messages: str) -> list[str]:
    """The texts of messages as the conventions write them; none if they are no such messages."""
    try:
        turns: Any = json.loads(messages or "[]")
        return ["".join(str(part["content"]) for part in turn["parts"]) for turn in turns]
    except (ValueError, TypeError, KeyError):
        return []


def _stack_id(source: ResourceSpans) -> str:
    attributes = source.resource.attributes
    return next((item.value.string_value for item in attributes if item.key == ATTR_STACK_ID), "")


def _copies(step: Span) -> list[Span]:
    """The step once per member, in the member's trace."""
    copies = []
    for link in step.links[:MAX_MEMBERS]:
        copy = Span()
        copy.CopyFrom(step)
        del copy.links[:]
        copy.name = LINKED_STEP
        copy.trace_id = link.trace_id
        copy.parent_span_id = link.span_id
        seed = step.trace_id + step.span_id + link.span_id
        copy.span_id = hashlib.blake2b(seed, digest_size=8).digest()
        copy.attributes.append(_pair(ATTR_STEP_TRACE_ID, step.trace_id.hex()))
        copies.append(copy)
    return copies


def _short(name: str) -> str:
    """A call by its method alone: the tree of the UI cuts long names, and so the service, off."""
    return name.rpartition("/")[2] if name.startswith(RPC_PREFIX) else name


def _pair(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))
