"""Random sequences of faults: every accepted request ends once, rightly, and leaves nothing.

MILLRACE_TEST_SEED plays one sequence alone: that of a seed which failed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import grpc
import pytest

from millrace.scheduler import intake, ownership
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.watchdog import WatchLimits
from millrace.worker import servicer
from tests.faults.client import GrpcClient, check_beginning, check_replies
from tests.faults.fault_schedule import FaultRun
from tests.faults.in_process_cluster import InProcessCluster

STEP_S = 0.005
LIMITS = WatchLimits(check_every_s=0.05, silence_s=1.5, standstill_s=1.5)
NUM_FAST = 3
NUM_ALL = 24


def _seeds() -> list[object]:
    if seed := os.environ.get("MILLRACE_TEST_SEED"):
        return [int(seed)]
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(NUM_FAST, NUM_ALL)]
    return [*range(NUM_FAST), *slow]


@pytest.fixture
async def cluster(
    no_descriptor_stays_open: None, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[InProcessCluster]:
    """With the waits of a real bus in a fraction of the time."""
    monkeypatch.setattr(servicer, "PROGRESS_EVERY_S", 0.1)
    monkeypatch.setattr(ownership, "RENEW_EVERY_S", 0.2)
    monkeypatch.setattr(ownership, "CLAIM_EVERY_S", 0.1)
    monkeypatch.setattr(intake, "IN_PROGRESS_EVERY_S", 0.2)
    monkeypatch.setattr(intake, "RETRY_S", 0.1)
    made = InProcessCluster(config, LIMITS, STEP_S)
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("seed", _seeds())
async def test_accepted_requests_outlive_any_sequence_of_faults(
    cluster: InProcessCluster, seed: int
) -> None:
    async with GrpcClient(cluster.edge.grpc_address) as client:
        run = FaultRun(cluster, client, seed)
        print(f"seed {seed}:", *run.faults, sep="\n  ")
        await run.play()
        await cluster.check_all()
    left = {id(reply) for reply in run.left}
    check_replies(reply for reply in run.replies if id(reply) not in left)
    for reply in run.left:
        check_beginning(reply)
        assert reply.num_terminals == 1
        assert reply.error in (None, grpc.StatusCode.CANCELLED)
