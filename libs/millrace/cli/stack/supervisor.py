"""Starts the processes of a stack in order, restarts what ends, stops everything in reverse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from millrace.config.home import Home
from millrace.core.errors import Unavailable

from .liveness import Liveness
from .log_file import START_MARK, LogFile, begin_log, last_lines
from .ping import can_ask
from .process import ManagedProcess, ShowLine, describe_exit
from .restarts import RestartPolicy, Restarts
from .run_file import StackRecord, end_leftovers, remove_run_file, write_run_file
from .wiring import Instance, Wiring

NUM_SHOWN_LINES = 15
NUM_NOTED_LINES = 3


class PartFailed(Exception):
    """A part of the stack did not come up at the first start; holds the last lines of its log."""

    def __init__(self, message: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log_lines = list(log_lines)


RunInit = Callable[[tuple[str, ...]], Awaitable[None]]


class Supervisor:
    """Runs a wired stack until `request_stop`, or until a part fails at its first start.

    A part that ends later is started again for as long as it takes: its neighbours serve what can
    be served without it.

    `run_init` runs one `millrace` command that prepares a server; `note` gets messages about
    the stack itself; `show` gets (name, line) of everything the processes print. A process that
    does not answer for `max_stall_s` is ended, and started again; 0 allows any time.
    """

    def __init__(
        self,
        wiring: Wiring,
        home: Home,
        record: StackRecord,
        *,
        environ: Mapping[str, str],
        show: ShowLine,
        note: Callable[[str], None],
        run_init: RunInit,
        policy: RestartPolicy | None = None,
        max_stall_s: float = 0.0,
    ) -> None:
        self._wiring = wiring
        self._home = home
        self._record = record
        self._note = note
        self._run_init = run_init
        self._policy = policy or RestartPolicy()
        self._max_stall_s = max_stall_s
        self._is_published = True
        self._stop_requested = asyncio.Event()
        self._hurry = asyncio.Event()
        self._processes = [
            ManagedProcess(instance, environ, self._open_log(instance), show)
            for instance in wiring.instances
        ]
        self._ready = {process.name: asyncio.Event() for process in self._processes}
        record.processes = [process.record for process in self._processes]

    def request_stop(self) -> None:
        """Begins an orderly stop; asked a second time, stops without grace."""
        if self._stop_requested.is_set():
            self._hurry.set()
        self._stop_requested.set()

    async def run(self, when_ready: Callable[[], Awaitable[None]]) -> None:
        """Runs until a stop is requested; nothing is left when it returns or raises.

        `when_ready` runs once, when every process is ready. Raises `PartFailed`.
        """
        for name in end_leftovers(self._home):
            self._note(f"ended {name}, left over from a stack that was killed")
        (self._home.data / "valkey").mkdir(parents=True, exist_ok=True)
        write_run_file(self._home, self._record)
        keepers: list[asyncio.Task[None]] = []
        try:
            for command in self._wiring.init_commands:
                await self._until_stop([], self._run_init(command))
            keepers = [asyncio.create_task(self._keep(process)) for process in self._processes]
            await self._until_stop(keepers, self._all_ready())
            await self._until_stop(keepers, when_ready())
            if not self._stop_requested.is_set():
                self._record.state = "ready"
                self._publish()
            await self._until_stop(keepers, asyncio.Event().wait())
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await self._stop_all()
            remove_run_file(self._home)

    async def _until_stop(
        self, keepers: Sequence[asyncio.Task[None]], work: Awaitable[object]
    ) -> None:
        """Waits for `work`, or less long where a stop is requested. Raises what a keeper raised."""
        job = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait([job, stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for task in (*keepers, job):
                if task.done() and not self._stop_requested.is_set():
                    task.result()
        finally:
            for task in (job, stop):
                task.cancel()
            await asyncio.gather(job, stop, return_exceptions=True)

    async def _all_ready(self) -> None:
        for event in self._ready.values():
            await event.wait()

    async def _keep(self, process: ManagedProcess) -> None:
        """Starts a process when what it needs is ready, and again whenever it ends."""
        for other in self._processes:
            if other.instance.spec.name in process.instance.spec.needs:
                await self._ready[other.name].wait()
        await self._start(process)
        restarts = Restarts(self._policy)
        while True:
            failure = await self._watch(process)
            await process.finish()
            while failure:
                await self._back_off(process, restarts, failure)
                failure = await self._restart(process)

    async def _watch(self, process: ManagedProcess) -> str:
        """Returns how the process ended; one that does not answer for too long is killed."""
        liveness = asyncio.create_task(self._end_if_stalled(process))
        try:
            return f"{process.name} ended with {describe_exit(await process.wait_exit())}"
        finally:
            liveness.cancel()
            await asyncio.gather(liveness, return_exceptions=True)

    async def _end_if_stalled(self, process: ManagedProcess) -> None:
        if not (self._max_stall_s and can_ask(process.instance)):
            return
        liveness = Liveness(process.instance, self._max_stall_s)
        async for is_answering in liveness.changes():
            process.record.state = "ready" if is_answering else "not answering"
            self._publish()
        self._note(f"{process.name} has not answered for {self._max_stall_s:g} s; ending it")
        process.kill()

    async def _start(self, process: ManagedProcess) -> None:
        """The first start: a part that does not come up ends the whole stack."""
        began = time.monotonic()
        try:
            await self._bring_up(process)
        except Unavailable as exc:
            await process.stop()
            raise PartFailed(exc.message, self._last_lines(process)) from exc
        self._ready[process.name].set()
        took_s = time.monotonic() - began
        self._note(f"{process.name} ready in {took_s:.1f} s, {process.record.address}")

    async def _restart(self, process: ManagedProcess) -> str:
        """Starts a process again; returns why it did not come up, or an empty text."""
        process.record.num_restarts += 1
        try:
            await self._bring_up(process)
        except Unavailable as exc:
            await process.stop()
            return exc.message
        self._note(f"{process.name} is back, {process.record.address}")
        return ""

    async def _bring_up(self, process: ManagedProcess) -> None:
        await process.start()
        self._publish()
        await process.wait_ready()
        if process.instance.init:
            await self._run_init(process.instance.init)
        self._publish()

    async def _back_off(self, process: ManagedProcess, restarts: Restarts, failure: str) -> None:
        was_failing = restarts.is_failing
        delay_s = restarts.ended(time.monotonic())
        process.record.state = "failing" if restarts.is_failing else "waiting"
        self._publish()
        self._note(f"{failure}; starting it again in {delay_s:g} s")
        if restarts.is_failing and not was_failing:
            self._note_failing(process, restarts)
        await asyncio.sleep(delay_s)

    def _note_failing(self, process: ManagedProcess, restarts: Restarts) -> None:
        self._note(
            f"{process.name} is failing: {restarts.num_exits} ends within "
            f"{self._policy.window_s:g} s; its log is {process.log.path}"
        )
        for line in self._last_lines(process)[-NUM_NOTED_LINES:]:
            self._note(f"{process.name}: {line}")

    async def _stop_all(self) -> None:
        self._record.state = "stopping"
        self._publish()
        for process in reversed(self._processes):
            stopping = asyncio.create_task(process.stop())
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not stopping.done():
                stopping.cancel()
                await process.stop(grace_s=0)
            await asyncio.gather(stopping, hurry, return_exceptions=True)
            process.log.close()

    def _open_log(self, instance: Instance) -> LogFile:
        return begin_log(self._home.logs / f"{instance.name}.log")

    def _last_lines(self, process: ManagedProcess) -> list[str]:
        """The end of this run's log, without what earlier runs wrote."""
        lines = last_lines(process.log.path, NUM_SHOWN_LINES)
        starts = [index for index, line in enumerate(lines) if START_MARK in line]
        return lines[starts[-1] + 1 :] if starts else lines

    def _publish(self) -> None:
        """Writes the run file; a disk that takes nothing is no reason to end the stack."""
        try:
            write_run_file(self._home, self._record)
        except OSError as exc:
            if self._is_published:
                self._note(f"cannot write the run file, so `status` may be stale: {exc}")
            self._is_published = False
        else:
            self._is_published = True
