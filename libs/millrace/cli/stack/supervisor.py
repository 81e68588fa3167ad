"""Starts the processes of a stack in order, restarts what ends, stops everything in reverse."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from millrace.config.home import Home
from millrace.core.errors import Unavailable

from .log_file import START_MARK, LogFile, begin_log, last_lines
from .process import ManagedProcess, ShowLine, describe_exit
from .run_file import StackRecord, end_leftovers, remove_run_file, write_run_file
from .wiring import Instance, Wiring

NUM_SHOWN_LINES = 15


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long to wait before a restart, and when to give up."""

    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    window_s: float = 60.0
    max_exits: int = 5

    def delay_s(self, num_exits: int) -> float:
        """The wait before the next start, after `num_exits` ends inside the window."""
        return float(min(self.first_delay_s * 2 ** (num_exits - 1), self.max_delay_s))


class PartFailed(Exception):
    """A part of the stack cannot be kept up; holds the last lines of its log."""

    def __init__(self, message: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log_lines = list(log_lines)


RunInit = Callable[[tuple[str, ...]], Awaitable[None]]


class Supervisor:
    """Runs a wired stack until `request_stop` or until a part fails for good.

    `run_init` runs one `millrace` command that prepares a server; `note` gets messages about
    the stack itself; `show` gets (name, line) of everything the processes print.
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
    ) -> None:
        self._wiring = wiring
        self._home = home
        self._record = record
        self._note = note
        self._run_init = run_init
        self._policy = policy or RestartPolicy()
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
        self._publish()
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
        exits: deque[float] = deque()
        while True:
            reason = describe_exit(await process.wait_exit())
            await process.finish()
            while reason:
                await self._back_off(process, exits, reason)
                reason = await self._restart(process)

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

    async def _back_off(self, process: ManagedProcess, exits: deque[float], reason: str) -> None:
        now = time.monotonic()
        exits.append(now)
        while exits and now - exits[0] > self._policy.window_s:
            exits.popleft()
        if len(exits) >= self._policy.max_exits:
            raise PartFailed(
                f"{process.name} ended {len(exits)} times within {self._policy.window_s:g} s, "
                f"last with {reason}; giving up",
                self._last_lines(process),
            )
        delay_s = self._policy.delay_s(len(exits))
        process.record.state = "waiting"
        self._publish()
        self._note(f"{process.name} ended with {reason}; starting it again in {delay_s:g} s")
        await asyncio.sleep(delay_s)

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
        write_run_file(self._home, self._record)
