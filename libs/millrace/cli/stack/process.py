"""One supervised process: start, readiness, its output, its end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from millrace.core.errors import Unavailable
from millrace.telemetry.log_line import stamped

from .log_file import LogFile
from .parent_death import death_with_parent
from .process_info import start_mark
from .run_file import ProcessRecord
from .wiring import Instance

MAX_LINE_BYTES = 16_384
_READ_BYTES = 65_536
_CONNECT_POLL_S = 0.05
_OUTPUT_END_S = 1.0
ShowLine = Callable[[str, str], None]


class ManagedProcess:
    """Runs an instance in its own process group; every line it prints goes to its log file.

    A line without a time gets one. `show` gets (name, line) for each line, except the ready line.
    """

    def __init__(
        self, instance: Instance, environ: Mapping[str, str], log: LogFile, show: ShowLine
    ) -> None:
        self.instance = instance
        self.record = ProcessRecord(instance.name, address=instance.address)
        if instance.metrics_address:
            self.record.metrics_url = f"http://{instance.metrics_address}/metrics"
        self.log = log
        self._environ = {**environ, **instance.environ}
        self._show = show
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        # The whole line, the end of a line of text, or the message of one in JSON.
        ready = rf"ready {re.escape(instance.spec.name)} "
        self._ready_line = re.compile(rf'(?:^|[ "]){ready}[^\s"]+(?:$|")')

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    async def start(self) -> None:
        """Starts it. Raises `Unavailable` where the program cannot be run."""
        self._ready.clear()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.instance.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
                preexec_fn=death_with_parent(),
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise Unavailable(f"{self.name} cannot be started: {exc}") from exc
        pid = self._process.pid
        self.record.state, self.record.pid = "starting", pid
        self.record.mark, self.record.started = start_mark(pid), time.time()
        self._pump = asyncio.create_task(self._read_output(self._process))

    async def wait_ready(self) -> None:
        """Returns when it is ready. Raises `Unavailable` where it ends first or takes too long."""
        kind, timeout_s = self.instance.spec.ready, self.instance.spec.ready_timeout_s
        ready = asyncio.create_task(self._accepts() if kind == "tcp" else self._is_told())
        exited = asyncio.create_task(self.wait_exit())
        try:
            await asyncio.wait(
                [ready, exited], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if exited.done() and not ready.done() and self._pump is not None:
                # It may have said so in its last words.
                await asyncio.wait([ready, self._pump], timeout=_OUTPUT_END_S)
            if not ready.done():
                raise Unavailable(
                    f"{self.name} ended with {describe_exit(exited.result())}"
                    if exited.done()
                    else f"{self.name} was not ready within {timeout_s:g} s"
                )
        finally:
            ready.cancel()
            exited.cancel()
            await asyncio.gather(ready, exited, return_exceptions=True)
        self.record.state = "ready"

    async def wait_exit(self) -> int:
        """Returns its exit status, negative for a signal."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, `grace_s`, SIGKILL; then sweeps what is left of its group."""
        if self._process is None:
            return
        if grace_s is None:
            grace_s = self.instance.spec.stop_grace_s
        self.record.state = "stopping"
        if self._process.returncode is None and grace_s > 0:
            self._signal(signal.SIGTERM)
            await asyncio.wait([asyncio.ensure_future(self._process.wait())], timeout=grace_s)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        await self.finish()

    def kill(self) -> None:
        """Ends it and its group at once, frozen or not."""
        self._signal(signal.SIGKILL)

    async def finish(self) -> None:
        """After its end: takes in the rest of its output and forgets it."""
        self._signal(signal.SIGKILL)
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=_OUTPUT_END_S)
            self._pump.cancel()
        self._process = self._pump = None
        self.record.state, self.record.pid, self.record.mark = "stopped", 0, ""

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group, which outlives its leader where a grandchild stays."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            # Gone already; macOS answers EPERM for a group of zombies.
            return

    async def _is_told(self) -> None:
        await self._ready.wait()

    async def _accepts(self) -> None:
        port = next(iter(self.instance.ports.values()))
        while True:
            try:
                _, writer = await asyncio.open_connection(self.instance.host, port)
            except OSError:
                await asyncio.sleep(_CONNECT_POLL_S)
                continue
            writer.close()
            return

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        pending = b""
        while data := await process.stdout.read(_READ_BYTES):
            *lines, pending = (pending + data).split(b"\n")
            if len(pending) > MAX_LINE_BYTES:
                lines, pending = [*lines, pending], b""
            for line in lines:
                self._take_line(line[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r"))
        if pending:
            self._take_line(pending.decode(errors="replace"))

    def _take_line(self, line: str) -> None:
        line = stamped(self.name, line)
        self.log.write_line(line)
        if self.instance.spec.ready == "line" and self._ready_line.search(line):
            self._ready.set()
        else:
            self._show(self.name, line)


def describe_exit(status: int) -> str:
    """`status 3`, or the name of the signal."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
