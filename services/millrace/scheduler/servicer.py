"""The gRPC edge of the scheduler: convert, hand over, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from millrace.core.cancellation import CancelReason
from millrace.core.errors import Conflict, InvalidRequest
from millrace.core.membership import ResumeQuery, SchedulerStatus
from millrace.core.step import PROTOCOL_VERSION
from millrace.core.tokens import TokenFrame
from millrace.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from millrace.rpc.server import RpcServer
from millrace.wire.frames import token_frame_to_proto
from millrace.wire.membership import scheduler_status_to_proto

from .gateway_links import GatewayLink, GatewayLinks, LinkEvent
from .intake import Intake
from .outcome import SchedulerStats

ServicerContext = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = "millrace.internal.v1.SchedulerService"


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Serves gateways while this process is the active scheduler of its model."""

    def __init__(
        self,
        links: GatewayLinks,
        intake: Intake,
        status: Callable[[], SchedulerStatus],
        stats: Callable[[], SchedulerStats],
    ) -> None:
        self._links = links
        self._intake = intake
        self._status = status
        self._stats = stats

    def add_to(self, server: RpcServer) -> None:
        """Serves it."""
        server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self, SERVICE_NAME)

    async def GetStats(
        self, request: scheduler_pb2.GetStatsRequest, context: ServicerContext
    ) -> scheduler_pb2.GetStatsResponse:
        """The counters since start."""
        stats = self._stats()
        return scheduler_pb2.GetStatsResponse(
            status=scheduler_status_to_proto(self._status()),
            workers=[
                scheduler_pb2.WorkerStats(
                    worker_id=worker.worker_id,
                    num_steps=worker.num_steps,
                    num_decode_steps=worker.num_decode_steps,
                    num_decode_rows=worker.num_decode_rows,
                    num_prefill_tokens=worker.num_prefill_tokens,
                    num_cached_tokens=worker.num_cached_tokens,
                    num_admissions=worker.num_admissions,
                    num_used_blocks=worker.num_used_blocks,
                    num_blocks=worker.num_blocks,
                )
                for worker in stats.workers
            ],
            num_preemptions=stats.num_preemptions,
            num_finished=stats.num_finished,
        )

    async def Attach(
        self,
        request_iterator: AsyncIterator[scheduler_pb2.AttachRequest],
        context: ServicerContext,
    ) -> AsyncIterator[scheduler_pb2.AttachResponse]:
        """One gateway's stream, until either side ends it."""
        requests = aiter(request_iterator)
        hello = await anext(requests, None)
        if hello is None or hello.WhichOneof("message") != "hello":
            raise InvalidRequest("the first message must be hello")
        if hello.hello.protocol != PROTOCOL_VERSION:
            raise Conflict(f"protocol {hello.hello.protocol} is not {PROTOCOL_VERSION}")
        link = self._links.attach(hello.hello.gateway_id)
        link.push(self._status())
        reader = asyncio.create_task(self._hear(link, requests))
        reader.add_done_callback(lambda _: link.close())
        try:
            self._intake.gateway_attached(link.gateway_id)
            async for event in link.events():
                yield _to_response(event)
            if reader.done():
                reader.result()
        finally:
            self._links.detach(link)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _hear(
        self, link: GatewayLink, requests: AsyncIterator[scheduler_pb2.AttachRequest]
    ) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "register":
                link.want(request.register.request_id)
                self._intake.registered(request.register.request_id)
            elif kind == "resume":
                cursors = {
                    cursor.choice: list(cursor.token_ids) for cursor in request.resume.cursors
                }
                link.want(request.resume.request_id)
                self._intake.resumed(request.resume.request_id, cursors)
            elif kind == "gone":
                link.forget(request.gone.request_id)
                self._intake.aborted(request.gone.request_id, CancelReason.GONE)
            elif kind == "done":
                link.forget(request.done.request_id)
                self._intake.confirmed(request.done.request_id)
            elif kind == "abort":
                link.forget(request.abort.request_id)
                reason = CancelReason.parse(request.abort.reason)
                self._intake.aborted(request.abort.request_id, reason)


def _to_response(event: LinkEvent) -> scheduler_pb2.AttachResponse:
    if isinstance(event, TokenFrame):
        return scheduler_pb2.AttachResponse(frame=token_frame_to_proto(event))
    if isinstance(event, ResumeQuery):
        query = scheduler_pb2.ResumeQuery(request_ids=event.request_ids)
        return scheduler_pb2.AttachResponse(query=query)
    return scheduler_pb2.AttachResponse(status=scheduler_status_to_proto(event))
