"""The gateway's end of `Attach`: core types in, core types out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import grpc

from millrace.core.errors import MillraceError, Unavailable
from millrace.core.membership import ResumeQuery, SchedulerStatus
from millrace.core.step import PROTOCOL_VERSION
from millrace.core.tokens import TokenFrame
from millrace.internal.v1 import scheduler_pb2, scheduler_pb2_grpc

from .frames import token_frame_from_proto
from .membership import scheduler_status_from_proto
from .stream_errors import stream_errors

AttachEvent = TokenFrame | ResumeQuery | SchedulerStatus

ATTACH_TIMEOUT_S = 5.0


class AttachStream:
    """One open stream; made by `open`. After it broke, every call raises `Unavailable`."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[scheduler_pb2.AttachRequest, scheduler_pb2.AttachResponse],
    ) -> None:
        self._call = call
        # Not `read`: once the status is in, it says EOF although there is more to read.
        self._responses = aiter(call)
        self._first: scheduler_pb2.AttachResponse | None = None
        self._write_lock = asyncio.Lock()

    @classmethod
    async def open(cls, channel: grpc.aio.Channel, gateway_id: str) -> AttachStream:
        """Says hello, and returns when the scheduler has answered: no frame can be missed then.

        Raises the scheduler's error, or `Unavailable` where it does not answer in time.
        """
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        stream = cls(stub.Attach())
        hello = scheduler_pb2.Hello(gateway_id=gateway_id, protocol=PROTOCOL_VERSION)
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                await stream._send(scheduler_pb2.AttachRequest(hello=hello))
                stream._first = await stream._receive()
        except TimeoutError as exc:
            stream._call.cancel()
            raise Unavailable("the scheduler does not answer", retry_after_s=1.0) from exc
        return stream

    async def events(self) -> AsyncIterator[AttachEvent]:
        """What the scheduler says, in order; raises its error where the stream breaks."""
        response = self._first
        while response is not None:
            kind = response.WhichOneof("message")
            if kind == "frame":
                yield token_frame_from_proto(response.frame)
            elif kind == "status":
                yield scheduler_status_from_proto(response.status)
            elif kind == "query":
                yield ResumeQuery(tuple(response.query.request_ids))
            response = await self._receive()

    async def register(self, request_id: str) -> None:
        """Before a request is published."""
        message = scheduler_pb2.Register(request_id=request_id)
        await self._send(scheduler_pb2.AttachRequest(register=message))

    async def resume(self, request_id: str, cursors: Mapping[int, Sequence[int]]) -> None:
        """Tells the tokens accepted so far, by choice."""
        message = scheduler_pb2.Resume(
            request_id=request_id,
            cursors=[
                scheduler_pb2.Cursor(choice=choice, token_ids=token_ids)
                for choice, token_ids in cursors.items()
            ],
        )
        await self._send(scheduler_pb2.AttachRequest(resume=message))

    async def gone(self, request_id: str) -> None:
        """Nobody waits for this request."""
        message = scheduler_pb2.Gone(request_id=request_id)
        await self._send(scheduler_pb2.AttachRequest(gone=message))

    async def done(self, request_id: str) -> None:
        """The terminal event of every choice has arrived."""
        message = scheduler_pb2.Done(request_id=request_id)
        await self._send(scheduler_pb2.AttachRequest(done=message))

    async def abort(self, request_id: str, reason: str) -> None:
        """Ends a request."""
        message = scheduler_pb2.Abort(request_id=request_id, reason=reason)
        await self._send(scheduler_pb2.AttachRequest(abort=message))

    async def close(self) -> None:
        """Ends the stream; safe to repeat."""
        self._call.cancel()

    async def _receive(self) -> scheduler_pb2.AttachResponse | None:
        with stream_errors(self._call, "the scheduler", "the scheduler is not attached"):
            return await anext(self._responses, None)

    async def _send(self, message: scheduler_pb2.AttachRequest) -> None:
        # A write that is cancelled, as with the client whose request it is about, would end the
        # stream of all others.
        writing = asyncio.create_task(self._write(message))
        writing.add_done_callback(_hear)
        await asyncio.shield(writing)

    async def _write(self, message: scheduler_pb2.AttachRequest) -> None:
        # grpc.aio allows one write at a time per call.
        async with self._write_lock:
            try:
                with stream_errors(self._call, "the scheduler", "the scheduler is not attached"):
                    await self._call.write(message)
            except MillraceError as exc:
                raise Unavailable("the scheduler is not attached", retry_after_s=1.0) from exc


def _hear(writing: asyncio.Task[None]) -> None:
    """Whoever waited for a write may have gone; then nobody is to be told how it ended."""
    if not writing.cancelled():
        writing.exception()
