"""Fault F26: the disk below JetStream is full. And a server that comes back without its data."""

from __future__ import annotations

import asyncio
import logging
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from nats import connect

from millrace.bus.nats import connect_bus
from millrace.bus.nats_errors import STORAGE_RETRY_AFTER_S
from millrace.bus.setup import init_bus
from millrace.bus.subjects import REQUEST_STREAM
from millrace.core.errors import Unavailable
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.servers import LocalServer, start_nats
from tests.faults.bus_stack import EdgeGateway, Reply, bus_stack, until
from tests.integration.gateway import MODEL, queued_request

ROOT = Path(__file__).parents[2]
STEP_S = 0.02
DISK_BYTES = 4 << 20
# Enough for the streams to be made and for a few dozen requests.
LEFT_BYTES = 24 << 10
# A publish that gets no answer, and the question why.
FIRST_REFUSAL_S = 7.0
NEXT_REFUSAL_S = 1.0


class FullDisk:
    """A file system of its own, whose space a ballast takes and gives back."""

    drains = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, server: LocalServer) -> None:
        free = shutil.disk_usage(self.folder).free
        (self.folder / "ballast").write_bytes(b"0" * (free - LEFT_BYTES))

    def free(self, server: LocalServer) -> None:
        (self.folder / "ballast").unlink()


class FullQuota:
    """Where nothing may be mounted: the server may write no file beyond a size.

    Then it can still write down that a message is acknowledged, and not that it is removed. After
    its next start the message lies there, settled, until `max_age`.
    """

    drains = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, server: LocalServer) -> None:
        self._limit(server, LEFT_BYTES)

    def free(self, server: LocalServer) -> None:
        self._limit(server, resource.RLIM_INFINITY)

    def _limit(self, server: LocalServer, num_bytes: int) -> None:
        assert server.process is not None
        limits = (num_bytes, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def _mounted(folder: Path) -> Iterator[FullDisk]:
    options = f"size={DISK_BYTES}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield FullDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["tmpfs", "file size limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FullDisk | FullQuota]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        with _mounted(folder) as disk:
            yield disk
    elif sys.platform != "linux":
        pytest.skip("prlimit is Linux's")
    else:
        yield FullQuota(folder)


async def _until_refused(edge: EdgeGateway) -> tuple[list[Reply], Reply]:
    """Sends one after the other: those that were accepted, and the first that was not."""
    accepted: list[Reply] = []
    for _ in range(1_000):
        begin_s = time.monotonic()
        reply = edge.send("fill", max_tokens=20)
        await until(lambda: bool(reply.request_id) or reply.error is not None)  # noqa: B023
        if reply.error is not None:
            assert time.monotonic() - begin_s < FIRST_REFUSAL_S
            return accepted, reply
        accepted.append(reply)
    raise AssertionError("the disk is never full")


@pytest.mark.slow
async def test_f26_full_disk_refuses_loses_nothing_and_is_over_when_there_is_space(
    disk: FullDisk | FullQuota, config: SchedulerConfig
) -> None:
    with start_nats(disk.folder) as server:
        async with bus_stack(server.url, config, step_s=STEP_S, drains=disk.drains) as stack:
            edge = await stack.add_edge()
            running = edge.send("running", max_tokens=200)
            await until(lambda: len(running.token_ids) > 3)
            disk.fill(server)
            accepted, refused = await _until_refused(edge)
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED, refused.error
            await _check_refusals(edge)
            disk.free(server)
            # The server keeps its write error until it is started again, as its /healthz says.
            server.kill()
            server.start()
            for reply in (running, *accepted):
                edge.check(await reply.done())
            await edge.until_ready()
            edge.check(await edge.send("room again").done())


async def _check_refusals(edge: EdgeGateway) -> None:
    for _ in range(3):
        begin_s = time.monotonic()
        response = await edge.complete()
        assert time.monotonic() - begin_s < NEXT_REFUSAL_S
        assert (response.status_code, response.json()["error"]["code"]) == (507, "out_of_storage")
        assert response.headers["retry-after"] == f"{STORAGE_RETRY_AFTER_S:g}"


def _start_empty(server: LocalServer) -> None:
    """A restart on a new volume."""
    server.kill()
    shutil.rmtree(server.log.parent / "jetstream")
    server.start()


def _bus_init(url: str) -> None:
    command = [sys.executable, "-m", "millrace.cli", "bus", "init", "--url", url]
    subprocess.run([*command, "--model", MODEL], check=True, timeout=60, capture_output=True)


@pytest.mark.slow
async def test_nats_that_comes_back_empty_is_told_and_used_again_after_bus_init(
    tmp_path: Path, config: SchedulerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with start_nats(tmp_path) as server:
        async with bus_stack(server.url, config, step_s=STEP_S) as stack:
            edge = await stack.add_edge()
            running = edge.send("running", max_tokens=200)
            await until(lambda: len(running.token_ids) > 3)
            with caplog.at_level(logging.WARNING):
                _start_empty(server)
                await _check_missing(edge, caplog)
            edge.check(await running.done())
            assert not stack._running.done(), "the scheduler ended"
            await asyncio.to_thread(_bus_init, server.url)
            await edge.until_ready()
            edge.check(await edge.send("after").done())


async def _check_missing(edge: EdgeGateway, caplog: pytest.LogCaptureFixture) -> None:
    """Every service says what is missing, and so does the answer."""
    what = (
        "lacks the stream MR_V1_REQ, the stream MR_V1_DLQ, the bucket mr_v1_workers, "
        "the bucket mr_v1_owners; run `millrace bus init`"
    )
    await until(lambda: caplog.text.count(what) >= 3)
    assert not edge.bus.is_connected
    response = await edge.complete()
    assert response.status_code == 503
    assert what in response.json()["error"]["message"]
    assert not (await edge.health.readiness()).checks["nats"]


async def test_consumers_that_are_gone_are_told_and_used_again(
    tmp_path: Path, config: SchedulerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """`bus init` without its model."""
    with start_nats(tmp_path) as server:
        async with bus_stack(server.url, config) as stack:
            edge = await stack.add_edge()
            with caplog.at_level(logging.WARNING):
                _start_empty(server)
                await init_bus(server.url)
                await until(lambda: f"run `millrace bus init --model {MODEL}`" in caplog.text)
            await edge.until_ready()
            reply = edge.send("waits on the queue")
            await until(lambda: bool(reply.request_id))
            await init_bus(server.url, [MODEL])
            edge.check(await reply.done())


async def test_message_of_a_lost_stream_does_not_settle_one_of_the_next(tmp_path: Path) -> None:
    """Both have sequence number one; the server would take the word of the old for the new."""
    with start_nats(tmp_path) as server:
        await init_bus(server.url, [MODEL])
        bus = await connect_bus(server.url, name="test")
        # The same number modulo three is the same priority.
        before, after = queued_request(3), queued_request(6)
        await bus.publish_request(before, {})
        queue = await bus.work_queue(MODEL, before.priority)
        (old,) = await queue.fetch(1, 5.0)
        _start_empty(server)
        await init_bus(server.url, [MODEL])
        await until(lambda: bus.is_connected)
        await bus.publish_request(after, {})
        new = None
        async with asyncio.timeout(15):
            while new is None:
                with suppress(Unavailable, ValueError):
                    (new,) = await queue.fetch(1, 2.0)
        await old.acknowledge()
        client = await connect(server.url)
        info = await client.jetstream().stream_info(REQUEST_STREAM)
        await client.close()
        assert info.state.messages == 1
        await new.acknowledge()
        await bus.close()
