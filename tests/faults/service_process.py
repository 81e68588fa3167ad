"""Services in processes of their own, to be killed: their real entry points, on a real bus."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.integration.gateway import MODEL

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0


_started: list[ServiceProcess] = []


async def end_all() -> None:
    """Ends what a test has started, whether it ended well or not."""
    while _started:
        await _started.pop().end()


@dataclass
class ServiceProcess:
    """`address` is what its ready line says."""

    address: str
    process: Process

    @classmethod
    async def start(cls, module: str, *arguments: str) -> ServiceProcess:
        """Returns when it is ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", module, *arguments),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdin=DEVNULL,
            stdout=PIPE,
        )
        assert process.stdout is not None
        made = cls("", process)
        _started.append(made)
        async with asyncio.timeout(START_TIMEOUT_S):
            line = (await process.stdout.readline()).decode()
        assert " ready " in line, f"{module} did not start"
        made.address = line.split()[-1]
        return made

    async def until_healthy(self) -> None:
        """A gateway: it can take requests."""
        async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient() as client:
            ready_url = f"http://{self.address}/ready"
            while (await client.get(ready_url)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    @classmethod
    async def gateway(cls, nats_url: str, tokenizer_address: str, grpc_port: int) -> ServiceProcess:
        """A gateway that can take requests."""
        made = await cls.start(
            "millrace.gateway",
            *("--nats-url", nats_url, "--tokenizer-addresses", tokenizer_address),
            *("--http-port", "0", "--grpc-port", str(grpc_port)),
        )
        await made.until_healthy()
        return made

    @classmethod
    async def scheduler(cls, nats_url: str) -> ServiceProcess:
        """A scheduler, active or standby."""
        return await cls.start("millrace.scheduler", "--nats-url", nats_url, "--model", MODEL)

    @classmethod
    async def worker(cls, nats_url: str, worker_id: str, step_s: float) -> ServiceProcess:
        """A worker without a model, which registers itself."""
        return await cls.start("tests.faults.worker_service", nats_url, worker_id, str(step_s))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(END_TIMEOUT_S):
            return await self.process.wait()

    async def end(self) -> None:
        """Kills it where it still runs."""
        if self.process.returncode is None:
            self.process.kill()
        await self.wait()
