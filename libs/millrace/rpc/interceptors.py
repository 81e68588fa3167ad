"""What every call passes through at a server: errors become statuses, a trace goes on.

Spans are made for unary calls inside a trace. Long-lived streams (Attach, Execute, Decode) carry
many requests and get none: their messages carry the context of each request themselves.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from millrace.core.errors import InternalError, InvalidRequest, MillraceError
from millrace.telemetry.names import (
    ATTR_RPC_METHOD,
    ATTR_RPC_SYSTEM,
    RPC_SYSTEM_GRPC,
)
from millrace.telemetry.propagation import context_from_traceparent
from millrace.wire.status import to_grpc_status

from .call_watch import CallWatch, ServicerContext

_log = logging.getLogger(__name__)
# Made once: making one costs as much as a span. It finds the process's provider by itself.
_tracer = trace.get_tracer(__name__)

TRACEPARENT_KEY = "traceparent"

# The handlers of any method: their message types do not matter here.
Handler = Callable[[Any, Any], Any]
MethodHandler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler]]


def server_interceptors(watch: CallWatch | None = None) -> list[grpc.aio.ServerInterceptor]:
    """Outermost first."""
    return [TraceServerInterceptor(), ErrorServerInterceptor(watch)]


def rpc_attributes(method: str) -> dict[str, str]:
    """Of the span of a call, at either end."""
    return {ATTR_RPC_SYSTEM: RPC_SYSTEM_GRPC, ATTR_RPC_METHOD: method}


class ErrorServerInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call that raised with the status of its error; what is not ours becomes INTERNAL.

    The traceback of a defect goes to the log, never to the caller. `watch` hears of every call.
    """

    def __init__(self, watch: CallWatch | None = None) -> None:
        self._watch = watch

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler:
        """Wraps the handler of one method."""
        handler = await continuation(handler_call_details)
        method, watch = handler_call_details.method, self._watch
        if handler is None:
            if watch is not None:
                watch.unknown(method)
            return handler
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _guard_stream(handler.stream_stream, method, watch),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method, watch),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.request_streaming:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _guard_unary(handler.unary_unary, method, watch),
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


def _guard_unary(behavior: Handler, method: str, watch: CallWatch | None) -> Handler:
    async def guarded(request: Any, context: ServicerContext) -> Any:
        if watch is not None:
            watch.begin(method, context)
        try:
            _require_decoded(request)
            return await behavior(request, context)
        except MillraceError as error:
            await _abort(error, context, watch)
        except Exception as exc:
            await _abort_unexpected(exc, method, context, watch)

    return guarded


def _guard_stream(behavior: Handler, method: str, watch: CallWatch | None) -> Handler:
    async def guarded(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
        if watch is not None:
            watch.begin(method, context)
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
            await _abort(error, context, watch)
        except Exception as exc:
            await _abort_unexpected(exc, method, context, watch)

    return guarded


async def _abort(error: MillraceError, context: ServicerContext, watch: CallWatch | None) -> None:
    if watch is not None:
        watch.failed(error)
    await context.abort_with_status(to_grpc_status(error))


async def _abort_unexpected(
    exc: Exception, method: str, context: ServicerContext, watch: CallWatch | None
) -> None:
    # AbortError, or RpcError when the peer is gone: both have ended the call already.
    if isinstance(exc, (grpc.aio.AbortError, grpc.RpcError)):
        raise exc
    _log.exception("%s failed", method)
    await _abort(InternalError("internal error"), context, watch)


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
            with _tracer.start_as_current_span(
                method,
                context=context_from_traceparent(cast(str, traceparent)),
                kind=SpanKind.SERVER,
                attributes=rpc_attributes(method),
                record_exception=False,
            ):
                return await behavior(request, context)

        return grpc.unary_unary_rpc_method_handler(
            traced, handler.request_deserializer, handler.response_serializer
        )
