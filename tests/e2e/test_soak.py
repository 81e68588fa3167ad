"""A whole stack under load and random faults for a long time: every promise kept, memory flat.

MILLRACE_TEST_SOAK_S sets how long (20 minutes, at least 2), MILLRACE_TEST_SEED the faults.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import nats
import pytest

from millrace.bus.subjects import REQUEST_STREAM
from millrace.testing.stack import Stack, start_stack
from tests.e2e.client import Client
from tests.e2e.process_memory import LEAST_WINDOW_S, SETTLING_MB, MemoryWatch
from tests.e2e.soak_clients import SoakClients
from tests.e2e.soak_faults import SoakFaults
from tests.e2e.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SEED = int(os.environ.get("MILLRACE_TEST_SEED", "1"))
LENGTH_S = float(os.environ.get("MILLRACE_TEST_SOAK_S", "1200"))
NUM_CLIENTS = 8
# The last seconds are without faults, so that what is under way can end.
CALM_S = 25.0
WARM_UP_SHARE = 0.2
MOST_MB_PER_MIN = 1.0
# gRPC's pollers, and connections on their way out.
FILES_BY_CHANCE = 4


@pytest.fixture
def soaked(tmp_path: Path) -> Iterator[Stack]:
    model = write_tiny_model(tmp_path / "tiny")
    settings = {"MILLRACE_WORKER_DTYPE": "float32", "MILLRACE_WORKER_NUM_THREADS": "1"}
    flags = ("--workers", "2", "--model", str(model))
    with start_stack(tmp_path / "home", tmp_path / "models", *flags, settings=settings) as stack:
        yield stack


async def test_soak_with_random_faults_keeps_every_promise_and_memory_flat(soaked: Stack) -> None:
    memory = MemoryWatch(soaked)
    faults = SoakFaults(soaked, SEED)
    async with aclosing(SoakClients(soaked, SEED)) as clients:
        await clients.learn()
        began_s = time.monotonic()
        end_s = began_s + LENGTH_S
        watching = asyncio.create_task(memory.run())
        await asyncio.gather(
            faults.run(end_s - CALM_S, began_s + WARM_UP_SHARE * LENGTH_S),
            *(clients.run(end_s) for _ in range(NUM_CLIENTS)),
        )
        await _check_nothing_left(soaked)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        memory.sample()
    _tell(clients, faults, memory)
    assert not clients.violations, f"seed {SEED}"
    assert clients.counts["answered"] > LENGTH_S
    assert not _growing(memory)
    assert not _with_more_files(memory)


async def _check_nothing_left(stack: Stack) -> None:
    client = Client(stack)
    await client.until_idle(timeout_s=30.0)
    await client.close()
    connection = await nats.connect(f"nats://{stack.address_of('nats')}")
    jetstream = connection.jetstream()
    try:
        async with asyncio.timeout(15.0):
            while (await jetstream.stream_info(REQUEST_STREAM)).state.messages:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        for consumer in await jetstream.consumers_info(REQUEST_STREAM):
            assert not consumer.num_ack_pending
    finally:
        await connection.close()


def _growing(memory: MemoryWatch) -> list[str]:
    """Processes whose memory rises, with their slopes."""
    warm_up_s = WARM_UP_SHARE * LENGTH_S
    return [
        f"{usage.name}: {slope:.2f} MB/min"
        for usage in memory.usages.values()
        if (slope := usage.slope_mb_per_min(warm_up_s)) is not None
        and slope >= MOST_MB_PER_MIN
        and usage.growth_mb(warm_up_s) > SETTLING_MB
    ]


def _with_more_files(memory: MemoryWatch) -> list[str]:
    """Processes that have more files open now, idle, than ever in the first half of their lives."""
    return [
        f"{usage.name}: {usage.num_files}"
        for usage in memory.alive()
        if usage.lived_s > LEAST_WINDOW_S
        and usage.num_files > usage.most_files(0.5) + FILES_BY_CHANCE
    ]


def _tell(clients: SoakClients, faults: SoakFaults, memory: MemoryWatch) -> None:
    print(f"\nseed {SEED}, {LENGTH_S:.0f} s: {dict(clients.counts)}; {dict(faults.counts)}")
    for usage in memory.usages.values():
        slope = usage.slope_mb_per_min(WARM_UP_SHARE * LENGTH_S)
        if slope is not None:
            last_mb = usage.samples[-1][1] / 1e6
            print(f"  {usage.name}: {last_mb:.1f} MB, {slope:+.2f} MB/min, {usage.num_files} files")
    print("  violations:", *clients.violations, sep="\n    ")
