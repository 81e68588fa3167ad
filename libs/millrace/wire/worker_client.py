"""The scheduler's end of `Execute`: plans in, results out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from millrace.core.errors import MillraceError, Unavailable
from millrace.core.model import ModelInfo
from millrace.core.step import PROTOCOL_VERSION, StepPlan, StepProgress, StepResult
from millrace.internal.v1 import worker_pb2, worker_pb2_grpc

from .membership import model_info_from_proto
from .steps import step_plan_to_proto, step_result_from_proto
from .stream_errors import stream_errors

OPEN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker says when a scheduler has claimed it: it is empty and ready."""

    boot_id: str
    model: ModelInfo
    num_blocks: int
    block_size: int
    max_num_seqs: int


class ExecuteStream:
    """One open stream; made by `open`."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[worker_pb2.ExecuteRequest, worker_pb2.ExecuteResponse],
        opened: Opened,
    ) -> None:
        self._call = call
        self.opened = opened

    @classmethod
    async def open(
        cls, channel: grpc.aio.Channel, owner_epoch: int, scheduler_id: str, boot_id: str = ""
    ) -> ExecuteStream:
        """Claims the worker. Raises its error, or `Unavailable` where it does not answer."""
        call = worker_pb2_grpc.WorkerServiceStub(channel).Execute()
        request = worker_pb2.ExecuteRequest(
            open=worker_pb2.Open(
                owner_epoch=owner_epoch,
                protocol=PROTOCOL_VERSION,
                scheduler_id=scheduler_id,
                boot_id=boot_id,
            )
        )
        try:
            with stream_errors(call, "the worker", "the worker closed the stream"):
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    await call.write(request)
                    response = await call.read()
        except TimeoutError as exc:
            call.cancel()
            raise Unavailable("the worker does not answer") from exc
        if not isinstance(response, worker_pb2.ExecuteResponse):
            raise Unavailable("the worker closed the stream")
        message = response.opened
        return cls(
            call,
            Opened(
                boot_id=message.boot_id,
                model=model_info_from_proto(message.model),
                num_blocks=message.num_blocks,
                block_size=message.block_size,
                max_num_seqs=message.max_num_seqs,
            ),
        )

    async def send(self, plan: StepPlan) -> None:
        """Raises `Unavailable` where the stream is broken."""
        request = worker_pb2.ExecuteRequest(plan=step_plan_to_proto(plan))
        try:
            with stream_errors(self._call, "the worker", "the worker is gone"):
                await self._call.write(request)
        except MillraceError as exc:
            raise Unavailable("the worker is gone") from exc

    async def results(self) -> AsyncIterator[StepResult]:
        """The results of `events`."""
        async for event in self.events():
            if isinstance(event, StepResult):
                yield event

    async def events(self) -> AsyncIterator[StepResult | StepProgress]:
        """In the order of the steps; raises the worker's error where the stream breaks."""
        while True:
            with stream_errors(self._call, "the worker", "the worker is gone"):
                # Not `async for`: grpc.aio refuses to iterate over a call that was read before.
                response = await self._call.read()
            if not isinstance(response, worker_pb2.ExecuteResponse):
                return
            kind = response.WhichOneof("message")
            if kind == "result":
                yield step_result_from_proto(response.result)
            elif kind == "progress":
                yield StepProgress(response.progress.count)

    def close(self) -> None:
        """Ends the stream; safe to repeat."""
        self._call.cancel()
