"""What every call passes through: errors become statuses, trace context crosses the wire.

Spans are made for unary calls inside a trace. Long-lived streams (Attach, Execute, Decode) carry
many requests and get none: their messages carry the context of each request themselves.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from millrace.core.errors import InternalError, InvalidRequest, MillraceError
from millrace.telemetry.names import (
    ATTR_RPC_METHOD,
    ATTR_RPC_STATUS_CODE,
    ATTR_RPC_SYSTEM,
    RPC_SYSTEM_GRPC,
)
from millrace.telemetry.propagation import context_from_traceparent, traceparent_of
from millrace.wire.status import to_grpc_status

_log = logging.getLogger(__name__)

TRACEPARENT_KEY = "traceparent"

# The handlers of any method: their message types do not matter here.
Handler = Callable[[Any, Any], Any]
MethodHandler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler]]
ServicerContext = grpc.aio.ServicerContext[Any, Any]


def server_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """Outermost first."""
    return [TraceServerInterceptor(), ErrorServerInterceptor()]


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """For every channel."""
    return [TraceClientInterceptor()]


def _rpc_attributes(method: str) -> dict[str, str]:
    return {ATTR_RPC_SYSTEM: RPC_SYSTEM_GRPC, ATTR_RPC_METHOD: method}


class ErrorServerInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call that raised with the status of its error; what is not ours becomes INTERNAL.

    The traceback of a defect goes to the log, never to the caller.
    """

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler:
        """Wraps the handler of one method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _guard_stream(handler.stream_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.request_streaming:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _guard_unary(handler.unary_unary, method),
            _tolerant(handler.request_deserializer),
            handler.response_serializer,
        )


class _Undecodable:
    """Stands for a request that is no message of its type."""


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """gRPC itself would answer UNKNOWN and log a traceback for what a client got wrong."""
    if deserialize is None:
        return None

    def read(wire: bytes) -> Any:
        try:
            return deserialize(wire)
        except DecodeError:
            return _Undecodable()

    return read


def _require_decoded(request: Any) -> None:
    if isinstance(request, _Undecodable):
        raise InvalidRequest("the request is no message of this call, or has text that is no UTF-8")


def _guard_unary(behavior: Handler, method: str) -> Handler:
    async def guarded(request: Any, context: ServicerContext) -> Any:
        try:
            _require_decoded(request)
            return await behavior(request, context)
        except MillraceError as error:
            await context.abort_with_status(to_grpc_status(error))
        except Exception as exc:
            await _abort_unexpected(exc, method, context)

    return guarded


def _guard_stream(behavior: Handler, method: str) -> Handler:
    async def guarded(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
        try:
            _require_decoded(request)
            responses = behavior(request, context)
            if inspect.isawaitable(responses):
                # The health service's Watch writes by itself.
                await responses
                return
            # Closed at once where the call ends inside a write: its `finally` must not wait.
            async with aclosing(responses):
                async for response in responses:
                    yield response
        except MillraceError as error:
            await context.abort_with_status(to_grpc_status(error))
        except Exception as exc:
            await _abort_unexpected(exc, method, context)

    return guarded


async def _abort_unexpected(exc: Exception, method: str, context: ServicerContext) -> None:
    # AbortError, or RpcError when the peer is gone: both have ended the call already.
    if isinstance(exc, (grpc.aio.AbortError, grpc.RpcError)):
        raise exc
    _log.exception("%s failed", method)
    await context.abort_with_status(to_grpc_status(InternalError("internal error")))


class TraceServerInterceptor(grpc.aio.ServerInterceptor):
    """A SERVER span for every unary call whose caller is in a trace."""

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler:
        """Wraps the handler of one method."""
        handler = await continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata or ())
        traceparent = metadata.get(TRACEPARENT_KEY)
        is_unary = handler is not None and not (
            handler.request_streaming or handler.response_streaming
        )
        if not traceparent or not is_unary:
            return handler
        method = handler_call_details.method.lstrip("/")
        behavior = handler.unary_unary

        async def traced(request: Any, context: ServicerContext) -> Any:
            with trace.get_tracer(__name__).start_as_current_span(
                method,
                context=context_from_traceparent(cast(str, traceparent)),
                kind=SpanKind.SERVER,
                attributes=_rpc_attributes(method),
                record_exception=False,
            ):
                return await behavior(request, context)

        return grpc.unary_unary_rpc_method_handler(
            traced, handler.request_deserializer, handler.response_serializer
        )


class TraceClientInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """A CLIENT span for every unary call made inside a trace; its context goes with the call.

    The span ends by a callback on the call, so that a cancellation reaches the caller untouched.
    """

    def __init__(self) -> None:
        self._endings: set[asyncio.Task[None]] = set()

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Starts the span and sends its context along."""
        if not trace.get_current_span().get_span_context().is_valid:
            return await continuation(client_call_details, request)
        raw_method = client_call_details.method
        method = (raw_method.decode() if isinstance(raw_method, bytes) else raw_method).lstrip("/")
        span = trace.get_tracer(__name__).start_span(
            method, kind=SpanKind.CLIENT, attributes=_rpc_attributes(method)
        )
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()))
        metadata[TRACEPARENT_KEY] = traceparent_of(span)
        call = await continuation(
            grpc.aio.ClientCallDetails(
                client_call_details.method,
                client_call_details.timeout,
                metadata,
                client_call_details.credentials,
                client_call_details.wait_for_ready,
            ),
            request,
        )
        call.add_done_callback(lambda done: self._end(span, done))
        return call

    def _end(self, span: trace.Span, call: Any) -> None:
        ending = asyncio.ensure_future(_end_client_span(span, call, time.time_ns()))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


async def _end_client_span(span: trace.Span, call: Any, ended_unix_ns: int) -> None:
    # The call is done, so its status is there; only the accessor is a coroutine.
    code = await call.code()
    span.set_attribute(ATTR_RPC_STATUS_CODE, code.name)
    if code is not grpc.StatusCode.OK:
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end(ended_unix_ns)
