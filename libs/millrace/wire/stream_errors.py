"""Every way in which grpc.aio says that a call has ended, as errors of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from millrace.core.errors import Unavailable

from .status import error_from_rpc

StreamCall = grpc.aio.StreamStreamCall[Any, Any]


@contextmanager
def stream_errors(call: StreamCall, peer: str, message: str) -> Iterator[None]:
    """Raises the error of `peer`, or `Unavailable` with `message` where the call has ended.

    A call that this end has closed raises `CancelledError` from every read and write, which would
    pass for the cancellation of the task that reads or writes.
    """
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        raise error_from_rpc(exc, peer) from exc
    except asyncio.InvalidStateError as exc:
        raise Unavailable(message) from exc
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if not call.cancelled() or (task is not None and task.cancelling()):
            raise
        raise Unavailable(message) from exc
