"""One Execute stream per worker: plans out, results in, at most two plans on their way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

import grpc

from millrace.core.errors import MillraceError
from millrace.core.membership import WorkerRegistration
from millrace.core.step import StepPlan, StepProgress, StepResult
from millrace.rpc.client import open_channel
from millrace.wire.worker_client import ExecuteStream, Opened

from .watchdog import StepWatchdog, WatchLimits

_log = logging.getLogger(__name__)

MAX_OUTSTANDING_PLANS = 2


class WorkerLink:
    """A claimed worker. `send` never waits: a writer task hands the plans to the stream.

    `round_trip_ns`: from the last result's plan sent to its result; None for one of a leased step.
    `frozen_s`: how long the worker had stood still when it was given up as frozen; else 0.
    """

    def __init__(
        self,
        worker_id: str,
        channel: grpc.aio.Channel,
        stream: ExecuteStream,
        limits: WatchLimits | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.watchdog = StepWatchdog(limits)
        self._channel = channel
        self._stream = stream
        self.round_trip_ns: int | None = None
        self.frozen_s = 0.0
        # When each was sent.
        self._outstanding: dict[int, int] = {}
        self._plans: asyncio.Queue[StepPlan] = asyncio.Queue()

    @classmethod
    async def open(
        cls,
        registration: WorkerRegistration,
        owner_epoch: int,
        scheduler_id: str,
        limits: WatchLimits | None = None,
    ) -> WorkerLink:
        """Claims the registered start of a worker; raises what `ExecuteStream.open` raises."""
        channel = open_channel(registration.advertise_address)
        try:
            stream = await ExecuteStream.open(
                channel, owner_epoch, scheduler_id, registration.boot_id
            )
        except BaseException:
            await channel.close()
            raise
        return cls(registration.worker_id, channel, stream, limits)

    @property
    def opened(self) -> Opened:
        """What the worker said of itself."""
        return self._stream.opened

    @property
    def has_room(self) -> bool:
        """True while another plan may be sent."""
        return len(self._outstanding) < MAX_OUTSTANDING_PLANS

    def send(self, plan: StepPlan) -> None:
        """Queues a plan."""
        self._outstanding[plan.plan_id] = time.perf_counter_ns()
        self._plans.put_nowait(plan)
        self.watchdog.plan_sent()

    async def results(self) -> AsyncGenerator[StepResult, None]:
        """In the order of the steps, until the stream breaks."""
        writer = asyncio.create_task(self._write_plans())
        try:
            async for event in self._stream.events():
                if isinstance(event, StepProgress):
                    self.watchdog.progress_heard(event.count)
                    continue
                sent_ns = self._outstanding.pop(event.plan_id, None)
                now_ns = time.perf_counter_ns()
                self.round_trip_ns = None if sent_ns is None else now_ns - sent_ns
                self.watchdog.result_heard(bool(self._outstanding))
                yield event
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def break_off(self) -> None:
        """Ends `results` with an error: nothing more is expected of the worker."""
        self._stream.close()

    async def close(self) -> None:
        """Gives the worker back; it drops the rows."""
        self._stream.close()
        await self._channel.close()

    async def _write_plans(self) -> None:
        try:
            while True:
                await self._stream.send(await self._plans.get())
        except MillraceError as error:
            told = {"worker_id": self.worker_id}
            _log.info("a plan could not be sent: %s", error, extra=told)
        except Exception:
            _log.exception("a plan cannot be sent", extra={"worker_id": self.worker_id})
        finally:
            # Whoever reads the results must not wait for those of plans that were never sent.
            self._stream.close()
