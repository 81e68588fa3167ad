"""What every HTTP route works with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.types import Scope

from millrace.core.errors import Aborted
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.gateway.access_log import AccessLog
from millrace.gateway.calls import Call
from millrace.gateway.directory import ModelDirectory
from millrace.gateway.health import Health
from millrace.gateway.pipeline import Pipeline

from . import extensions
from .hosts import AllowedHosts
from .origins import AllowedOrigins

T = TypeVar("T")

CALL_KEY = "millrace.call"


@dataclass(frozen=True, slots=True)
class HttpEdge:
    """The parts behind the routes, and the settings they need."""

    pipeline: Pipeline
    directory: ModelDirectory
    health: Health
    registry: CollectorRegistry
    access_log: AccessLog
    max_body_bytes: int = 8 << 20
    max_batch_size: int = 1024
    max_batch_concurrency: int = 256
    ping_interval_s: float = 15.0
    write_timeout_s: float = 30.0
    hosts: AllowedHosts = AllowedHosts()
    origins: AllowedOrigins = AllowedOrigins()


def call_of(request: Request) -> Call:
    """The call that the middleware made for this request."""
    return cast(Call, request.scope[CALL_KEY])


@contextmanager
def telling_ignored(edge: HttpEdge, call: Call) -> Iterator[IgnoredFields]:
    """Around reading a request: what is put into it is told in the reply, and counted."""
    ignored = IgnoredFields()
    try:
        yield ignored
    finally:
        edge.pipeline.tell_ignored(call, ignored)


async def while_connected(
    request: Request, work: Coroutine[Any, Any, T], *, is_streamed: bool = False
) -> T:
    """The result of `work`, which is cancelled if the client goes away. Raises `Aborted` then.

    A client that has only ended its side of the connection may still read, but looks the same as
    one that is gone; it counts as gone unless the reply is a stream, whose writes will tell.
    The body must have been read.
    """
    watches: list[Coroutine[Any, Any, object]] = [_disconnected(request)]
    if not is_streamed and (client_end := client_end_of(request.scope)) is not None:
        watches.append(_ended(client_end, call_of(request)))
    task = asyncio.create_task(work)
    gone = [asyncio.create_task(watch) for watch in watches]
    try:
        await asyncio.wait((task, *gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Aborted("the client ended its side of the connection before its answer was whole")
    finally:
        for each in (task, *gone):
            each.cancel()
        await asyncio.gather(task, *gone, return_exceptions=True)


def client_end_of(scope: Scope) -> asyncio.Event | None:
    """Set once the client has ended its side of the connection; None if that cannot be told."""
    event: asyncio.Event | None = scope.get("extensions", {}).get(extensions.CLIENT_END)
    return event


async def _ended(client_end: asyncio.Event, call: Call) -> None:
    """Errors and answers from the cache are ready without an engine: they are still sent."""
    await client_end.wait()
    await call.accepted.wait()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
