"""Queued requests to protobuf and back: pure and lossless, as every conversion here."""

from __future__ import annotations

from millrace.core.request import SCHEMA_VERSION, Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.internal.v1 import bus_pb2


def sampling_spec_to_proto(spec: SamplingSpec) -> bus_pb2.SamplingSpec:
    """Of a sequence's resolved sampling values."""
    return bus_pb2.SamplingSpec(
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        min_p=spec.min_p,
        repetition_penalty=spec.repetition_penalty,
        presence_penalty=spec.presence_penalty,
        frequency_penalty=spec.frequency_penalty,
        logit_bias_ids=[token_id for token_id, _ in spec.logit_bias],
        logit_bias_values=[bias for _, bias in spec.logit_bias],
        seed=spec.seed,
        top_logprobs=spec.top_logprobs,
        min_tokens=spec.min_tokens,
    )


def sampling_spec_from_proto(message: bus_pb2.SamplingSpec) -> SamplingSpec:
    """Of a sequence's resolved sampling values."""
    return SamplingSpec(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(zip(message.logit_bias_ids, message.logit_bias_values, strict=True)),
        seed=message.seed,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        min_tokens=message.min_tokens,
    )


def queued_request_to_proto(request: QueuedRequest) -> bus_pb2.QueuedRequest:
    """The traceparent is not part of the message: it travels in the NATS header."""
    return bus_pb2.QueuedRequest(
        schema_version=SCHEMA_VERSION,
        request_id=request.request_id,
        gateway_id=request.gateway_id,
        model=request.model,
        prompt_token_ids=request.prompt_token_ids,
        sampling=sampling_spec_to_proto(request.sampling),
        stop_token_ids=request.stop_token_ids,
        max_tokens=request.max_tokens,
        num_choices=request.num_choices,
        priority=request.priority.value,  # type: ignore[arg-type]
        deadline_unix_ms=request.deadline_unix_ms,
        arrival_unix_ns=request.arrival_unix_ns,
        tenant=request.tenant,
    )


def queued_request_from_proto(
    message: bus_pb2.QueuedRequest, traceparent: str = ""
) -> QueuedRequest:
    """Raises `ValueError` for a schema version that this release does not know."""
    if message.schema_version != SCHEMA_VERSION:
        raise ValueError(f"request schema version {message.schema_version} is not {SCHEMA_VERSION}")
    return QueuedRequest(
        request_id=message.request_id,
        gateway_id=message.gateway_id,
        model=message.model,
        prompt_token_ids=list(message.prompt_token_ids),
        sampling=sampling_spec_from_proto(message.sampling),
        stop_token_ids=tuple(message.stop_token_ids),
        max_tokens=message.max_tokens,
        num_choices=message.num_choices,
        priority=Priority(message.priority),
        deadline_unix_ms=message.deadline_unix_ms,
        arrival_unix_ns=message.arrival_unix_ns,
        tenant=message.tenant,
        traceparent=traceparent,
    )
