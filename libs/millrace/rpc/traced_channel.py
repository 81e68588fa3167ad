"""A channel whose unary calls inside a trace are CLIENT spans, and carry its context.

Not an interceptor: grpc.aio runs intercepted calls in tasks of their own, which costs a call more
than its span does.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from millrace.telemetry.names import ATTR_RPC_STATUS_CODE
from millrace.telemetry.propagation import traceparent_of

from .interceptors import TRACEPARENT_KEY, rpc_attributes

# Made once: making one costs as much as a span. It finds the process's provider by itself.
_tracer = trace.get_tracer(__name__)


class TracedChannel(grpc.aio.Channel):
    """Passes everything on to `inner`."""

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner
        self._endings: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> TracedChannel:
        """Itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Closes it."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Ends calls that are not over within `grace` seconds."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state of its connection."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when it is another one."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when it is connected."""
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """What makes calls of `method`, with a span each."""
        return _TracedCalls(self._inner.unary_unary(method, *args, **options), method, self)

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """What makes calls of `method`."""
        return self._inner.unary_stream(method, *args, **options)

    def stream_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """What makes calls of `method`."""
        return self._inner.stream_unary(method, *args, **options)

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """What makes calls of `method`."""
        return self._inner.stream_stream(method, *args, **options)

    def end_with(self, span: Span, call: Any) -> None:
        """Ends the span of a call that is done, with its status."""
        ending = asyncio.ensure_future(_end(span, call, time.time_ns()))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


class _TracedCalls(grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """Spans end by a callback on the call, so that a cancellation reaches the caller as ever."""

    def __init__(self, calls: Any, method: str, channel: TracedChannel) -> None:
        self._calls = calls
        self._method = method.lstrip("/")
        self._channel = channel

    def __call__(self, request: Any, *, metadata: Any = None, **options: Any) -> Any:
        if not trace.get_current_span().get_span_context().is_valid:
            return self._calls(request, metadata=metadata, **options)
        span = _tracer.start_span(
            self._method, kind=SpanKind.CLIENT, attributes=rpc_attributes(self._method)
        )
        sent = (*(metadata or ()), (TRACEPARENT_KEY, traceparent_of(span)))
        call = self._calls(request, metadata=sent, **options)
        call.add_done_callback(lambda done: self._channel.end_with(span, done))
        return call


async def _end(span: Span, call: Any, ended_unix_ns: int) -> None:
    # The call is done, so its status is there; only the accessor is a coroutine.
    code = await call.code()
    span.set_attribute(ATTR_RPC_STATUS_CODE, code.name)
    if code is not grpc.StatusCode.OK:
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end(ended_unix_ns)
