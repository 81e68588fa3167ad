"""The gRPC edge of the worker: convert, hand over, convert."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from millrace.core.errors import Conflict, InvalidRequest, MillraceError, Unavailable
from millrace.core.membership import WorkerLoad, WorkerRegistration
from millrace.core.step import PROTOCOL_VERSION, StepProgress, StepResult
from millrace.internal.v1 import worker_pb2, worker_pb2_grpc
from millrace.telemetry.metrics import WorkerMetrics
from millrace.wire.membership import (
    model_info_to_proto,
    worker_load_to_proto,
    worker_registration_to_proto,
)
from millrace.wire.steps import step_plan_from_proto, step_result_to_proto

from .engine_loop import EngineLoop, Session
from .hand_over import HandOver, Ready, ResultQueue
from .load import current_load
from .row_spans import RowSpans
from .step_metrics import StepMetrics
from .step_notes import StepNotes

_log = logging.getLogger(__name__)

ServicerContext = grpc.aio.ServicerContext[Any, Any]


PROGRESS_EVERY_S = 0.5


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Serves one engine to one scheduler at a time; a newer owner takes it from an older one."""

    def __init__(
        self, registration: WorkerRegistration, loop: EngineLoop, metrics: WorkerMetrics
    ) -> None:
        self.registration = registration
        self._engine_loop = loop
        self._metrics = metrics
        self._owner_epoch = 0
        self._owner_results: ResultQueue | None = None
        self._is_ending = False

    def advertise(self, address: str) -> None:
        """Sets the address that schedulers are told, known once the server is bound."""
        self.registration = replace(self.registration, advertise_address=address)

    def end(self) -> None:
        """Closes the owner's stream in order, so that its requests are not suspected of a crash."""
        self._is_ending = True
        if self._owner_results is not None:
            self._owner_results.put_nowait(None)

    async def GetInfo(
        self, request: worker_pb2.GetInfoRequest, context: ServicerContext
    ) -> worker_pb2.GetInfoResponse:
        """Who this is and how busy."""
        return worker_pb2.GetInfoResponse(
            registration=worker_registration_to_proto(self.registration),
            load=worker_load_to_proto(self.load()),
        )

    def load(self) -> WorkerLoad:
        """The load now."""
        return current_load(self.registration.worker_id, self._engine_loop)

    async def Execute(
        self,
        request_iterator: AsyncIterator[worker_pb2.ExecuteRequest],
        context: ServicerContext,
    ) -> AsyncIterator[worker_pb2.ExecuteResponse]:
        """Runs the plans of one owner until its stream ends or a newer owner comes."""
        results: ResultQueue = asyncio.Queue()
        self._claim(await _read_open(request_iterator), results)
        hand_over = HandOver(results)
        session = self._engine_loop.open_session(
            hand_over.deliver, lambda: hand_over.put(Ready()), hand_over.put
        )
        notes = StepNotes(RowSpans(self.registration.worker_id), StepMetrics(self._metrics))
        reader = asyncio.create_task(self._read_plans(request_iterator, session, notes))
        reader.add_done_callback(lambda _: results.put_nowait(None))
        is_ready = asyncio.Event()
        reporter = asyncio.create_task(self._report_progress(results, is_ready))
        try:
            while (result := await results.get()) is not None:
                if isinstance(result, MillraceError):
                    raise result
                if isinstance(result, Ready):
                    is_ready.set()
                elif isinstance(result, StepResult):
                    notes.add(result, self._engine_loop.num_rows)
                yield self._response_of(result)
                hand_over.sent()
                notes.catch_up()
            if reader.done():
                reader.result()
        finally:
            self._engine_loop.close_session(session)
            notes.end()
            if self._owner_results is results:
                self._owner_results = None
            reader.cancel()
            reporter.cancel()
            await asyncio.gather(reader, reporter, return_exceptions=True)

    def _response_of(self, result: StepResult | StepProgress | Ready) -> worker_pb2.ExecuteResponse:
        if isinstance(result, Ready):
            # Not before: a worker whose engine hangs in a step of another owner is none.
            return worker_pb2.ExecuteResponse(opened=self._opened())
        if isinstance(result, StepProgress):
            progress = worker_pb2.StepProgress(count=result.count)
            return worker_pb2.ExecuteResponse(progress=progress)
        return worker_pb2.ExecuteResponse(result=step_result_to_proto(result))

    async def _report_progress(self, results: ResultQueue, is_ready: asyncio.Event) -> None:
        await is_ready.wait()
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            # A result that is still in the queue says more.
            if self._engine_loop.is_stepping and results.empty():
                results.put_nowait(StepProgress(self._engine_loop.progress))

    def _claim(self, opening: worker_pb2.Open, results: ResultQueue) -> None:
        if self._is_ending:
            raise Unavailable("the worker is ending")
        if opening.protocol != PROTOCOL_VERSION:
            raise Conflict(f"protocol {opening.protocol} is not {PROTOCOL_VERSION}")
        if opening.boot_id not in ("", self.registration.boot_id):
            raise Conflict("the claim is meant for an earlier run of this worker")
        if opening.owner_epoch < self._owner_epoch:
            raise Conflict(
                f"owner epoch {opening.owner_epoch} is lower than {self._owner_epoch}, seen before"
            )
        told = {"scheduler_id": opening.scheduler_id, "epoch": opening.owner_epoch}
        _log.info("a scheduler takes this worker", extra=told)
        self._owner_epoch = opening.owner_epoch
        if self._owner_results is not None:
            # Cancelling its task would end the call without a word to its client.
            self._owner_results.put_nowait(
                Conflict(f"{opening.scheduler_id}, epoch {opening.owner_epoch}, took the worker")
            )
        self._owner_results = results

    def _opened(self) -> worker_pb2.Opened:
        return worker_pb2.Opened(
            boot_id=self.registration.boot_id,
            protocol=PROTOCOL_VERSION,
            model=model_info_to_proto(self.registration.model),
            num_blocks=self.registration.num_blocks,
            block_size=self.registration.block_size,
            max_num_seqs=self.registration.max_num_seqs,
        )

    async def _read_plans(
        self,
        request_iterator: AsyncIterator[worker_pb2.ExecuteRequest],
        session: Session,
        notes: StepNotes,
    ) -> None:
        async for request in request_iterator:
            if request.WhichOneof("message") != "plan":
                raise InvalidRequest("after open, only plans are expected")
            plan = step_plan_from_proto(request.plan)
            notes.observe_plan(plan)
            self._engine_loop.submit(session, plan)


async def _read_open(
    request_iterator: AsyncIterator[worker_pb2.ExecuteRequest],
) -> worker_pb2.Open:
    with contextlib.suppress(StopAsyncIteration):
        request = await anext(aiter(request_iterator))
        if request.WhichOneof("message") == "open":
            return request.open
    raise InvalidRequest("the first message must be open")
