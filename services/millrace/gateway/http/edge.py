"""What every HTTP route works with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from millrace.core.errors import Aborted
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.gateway.calls import Call
from millrace.gateway.directory import ModelDirectory
from millrace.gateway.health import Health
from millrace.gateway.pipeline import Pipeline

T = TypeVar("T")

CALL_KEY = "millrace.call"


@dataclass(frozen=True, slots=True)
class HttpEdge:
    """The parts behind the routes, and the settings they need."""

    pipeline: Pipeline
    directory: ModelDirectory
    health: Health
    registry: CollectorRegistry
    max_body_bytes: int = 8 << 20
    max_batch_size: int = 1024
    max_batch_concurrency: int = 256
    ping_interval_s: float = 15.0
    write_timeout_s: float = 30.0


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


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled where the client goes away. Raises `Aborted` then.

    The body must have been read.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Aborted("the client went away")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
