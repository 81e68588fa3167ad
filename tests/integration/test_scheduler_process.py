"""The scheduler's process: its ready line, its end, and why it ends by itself."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from millrace.bus.configuration import ACK_WAIT_S
from millrace.bus.setup import init_bus
from millrace.scheduler.intake import FETCH_TIMEOUT_S, IN_PROGRESS_EVERY_S
from millrace.testing.servers import LocalServer, start_nats

WAIT_S = 30.0


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[LocalServer]:
    with start_nats(tmp_path) as server:
        # The fixture may be asked for inside a running event loop: its own loop needs a thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(init_bus(server.url, ["tiny"]))).result(WAIT_S)
        yield server


@contextmanager
def _scheduler(server: LocalServer, model: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "millrace.scheduler"]
    command += ["--nats-url", server.url, "--model", model]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert " ready scheduler 127.0.0.1:" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_process_ends_on_sigterm(nats: LocalServer) -> None:
    with _scheduler(nats, "tiny") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_missing_consumers_end_the_process_with_one_line(nats: LocalServer) -> None:
    with _scheduler(nats, "other") as process:
        assert process.wait(WAIT_S) == 1
        assert process.stderr is not None
        last = process.stderr.read().splitlines()[-1]
    assert last.startswith("millrace scheduler: no consumer ")
    assert "millrace bus init --model other" in last


def test_process_ends_on_sigterm_though_the_bus_has_gone(nats: LocalServer) -> None:
    with _scheduler(nats, "tiny") as process:
        nats.kill()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_the_open_fetch_of_a_frozen_scheduler_is_over_before_its_messages_come_again() -> None:
    """Else the queue would give the first of them to nobody; seen by F10 with real processes."""
    first_redelivery_s = ACK_WAIT_S - IN_PROGRESS_EVERY_S
    assert 0 < FETCH_TIMEOUT_S < first_redelivery_s
