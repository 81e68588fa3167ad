"""A trace tells the fault that its request met, by name and with the seconds that it took."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client import CollectorRegistry

from millrace.scheduler import intake, ownership
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.watchdog import WatchLimits
from millrace.telemetry.cause import Cause
from millrace.telemetry.diagnosis import Diagnosis
from millrace.testing.span_recorder import SpanRecorder
from millrace.worker import servicer
from tests.faults.client import GrpcClient, Reply, check_replies
from tests.faults.edge import Edge
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.in_process_cluster import FailingEngine, InProcessCluster
from tests.faults.traced import diagnosis_of
from tests.integration.gateway import MODEL, queued_request

STEP_S = 0.01
LIMITS = WatchLimits(check_every_s=0.05, silence_s=0.6, standstill_s=0.6)
CHAT = "/v1/chat/completions"


@pytest.fixture
def watch_limits(monkeypatch: pytest.MonkeyPatch) -> WatchLimits:
    monkeypatch.setattr(servicer, "PROGRESS_EVERY_S", 0.1)
    return LIMITS


@pytest.fixture
def recorder() -> Iterator[SpanRecorder]:
    made = SpanRecorder()
    made.install("gateway")
    yield made
    made.clear()


@pytest.fixture
async def cluster(
    no_descriptor_stays_open: None, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[InProcessCluster]:
    """Two schedulers and two workers, with the waits of a real bus in a fraction of the time."""
    monkeypatch.setattr(ownership, "RENEW_EVERY_S", 0.2)
    monkeypatch.setattr(ownership, "CLAIM_EVERY_S", 0.1)
    monkeypatch.setattr(intake, "IN_PROGRESS_EVERY_S", 0.2)
    made = InProcessCluster(config, WatchLimits(), STEP_S)
    await made.start()
    yield made
    await made.stop()


async def _has_begun(client: GrpcClient, max_tokens: int = 60) -> Reply:
    reply = client.generate(queued_request(max_tokens=max_tokens))
    await reply.until(lambda reply: len(reply.tokens) > 5)
    return reply


async def _verdict(reply: Reply, recorder: SpanRecorder, folder: Path) -> Diagnosis:
    """Of a request that came through."""
    await reply.until(lambda reply: reply.is_over, 30.0)
    check_replies([reply])
    return await diagnosis_of(recorder, reply.request_id, folder)


def _of(diagnosis: Diagnosis, cause: Cause) -> float:
    (fault,) = [fault for fault in diagnosis.faults if fault.cause is cause]
    assert fault.times == 1
    return fault.seconds


def _count(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"millrace_{name}_total", {"model_name": MODEL, **labels})


async def test_killed_worker_is_the_cause(
    stack: FaultStack, recorder: SpanRecorder, tmp_path: Path
) -> None:
    killed = await stack.add_process("a", step_s=STEP_S)
    edge = await stack.edge()
    async with GrpcClient(edge.grpc_address) as client:
        reply = await _has_begun(client)
        killed.signal(signal.SIGKILL)
        await stack.until(lambda: not stack.worker_ids())
        await asyncio.sleep(0.3)
        await stack.add_engine("b", FaultyEngine(step_s=STEP_S))
        diagnosis = await _verdict(reply, recorder, tmp_path)

    assert diagnosis.cause is Cause.WORKER_LOST
    assert diagnosis.sentence.startswith("cause: worker lost: a went away once, and getting back ")
    assert _of(diagnosis, Cause.WORKER_LOST) >= 0.3
    # It took its spans with it, but not to the gateway's account.
    assert diagnosis.seconds.get(Cause.GATEWAY, 0.0) < 0.1
    assert _count(stack.registry, "workers_lost", reason="worker_lost") == 1
    assert _count(stack.registry, "rows_lost", reason="worker_lost") == 1


async def test_stopped_worker_is_the_cause_from_its_last_sign_of_life_on(
    stack: FaultStack, recorder: SpanRecorder, tmp_path: Path
) -> None:
    stopped = await stack.add_process("a", step_s=STEP_S)
    edge = await stack.edge()
    async with GrpcClient(edge.grpc_address) as client:
        reply = await _has_begun(client)
        stopped.signal(signal.SIGSTOP)
        await stack.add_engine("b", FaultyEngine(step_s=STEP_S))
        diagnosis = await _verdict(reply, recorder, tmp_path)

    assert diagnosis.cause is Cause.WORKER_FROZEN
    assert "cause: worker frozen: a stood still once, and getting back took" in diagnosis.sentence
    assert _of(diagnosis, Cause.WORKER_FROZEN) >= LIMITS.silence_s


async def test_killed_scheduler_is_the_cause_and_not_the_queue(
    cluster: InProcessCluster, recorder: SpanRecorder, tmp_path: Path
) -> None:
    async with GrpcClient(cluster.edge.grpc_address) as client:
        reply = await _has_begun(client)
        await cluster.kill_scheduler()
        diagnosis = await _verdict(reply, recorder, tmp_path)
        await cluster.check_all()

    assert diagnosis.cause is Cause.SCHEDULER_LOST
    assert "cause: scheduler lost: the stream to its scheduler broke once" in diagnosis.sentence
    assert _of(diagnosis, Cause.SCHEDULER_LOST) > 0.2
    assert diagnosis.seconds.get(Cause.QUEUE, 0.0) < 0.1


async def test_stream_that_breaks_is_told_where_the_scheduler_goes_on(
    cluster: InProcessCluster, recorder: SpanRecorder, tmp_path: Path
) -> None:
    async with GrpcClient(cluster.edge.grpc_address) as client:
        reply = await _has_begun(client)
        await cluster.cut_attach()
        diagnosis = await _verdict(reply, recorder, tmp_path)
        await cluster.check_all()

    assert "scheduler lost: the stream to its scheduler broke once" in diagnosis.sentence
    assert diagnosis.cause in (Cause.SCHEDULER_LOST, Cause.WORKER)


async def test_failed_step_is_told_with_its_worker(
    cluster: InProcessCluster, recorder: SpanRecorder, tmp_path: Path
) -> None:
    async with GrpcClient(cluster.edge.grpc_address) as client:
        reply = await _has_begun(client)
        (busy,) = [
            worker_id
            for worker_id, node in cluster.workers.items()
            if isinstance(node.engine, FailingEngine) and node.engine.num_live_rows
        ]
        engine = cluster.engine(busy)
        assert engine is not None
        engine.num_broken_steps = 1
        diagnosis = await _verdict(reply, recorder, tmp_path)
        await cluster.check_all()

    assert f"step failed: it lost its row once on {busy}, and getting back" in diagnosis.sentence
    assert "KV blocks" not in diagnosis.sentence
    assert _of(diagnosis, Cause.STEP_FAILED) > 0
    active = cluster.active
    assert active is not None
    assert _count(active.registry, "rows_lost", reason="step_failed") == 1
    assert _count(active.registry, "preemptions") == 0, "no block was wanting"


async def test_every_fault_of_a_request_is_told(
    stack: FaultStack, recorder: SpanRecorder, tmp_path: Path
) -> None:
    killed = await stack.add_process("a", step_s=STEP_S)
    edge = await stack.edge()
    async with GrpcClient(edge.grpc_address) as client:
        reply = await _has_begun(client, max_tokens=100)
        killed.signal(signal.SIGKILL)
        stopped = await stack.add_process("b", step_s=STEP_S)
        await stack.until(lambda: bool(stack.members("b")))
        await reply.until(lambda reply: len(reply.tokens) > 50)
        stopped.signal(signal.SIGSTOP)
        await stack.add_engine("c", FaultyEngine(step_s=STEP_S))
        diagnosis = await _verdict(reply, recorder, tmp_path)

    told = [(fault.cause, fault.worker_ids) for fault in diagnosis.faults]
    assert told == [(Cause.WORKER_LOST, ("a",)), (Cause.WORKER_FROZEN, ("b",))]
    assert "worker lost: a went away" in diagnosis.sentence
    assert "worker frozen: b stood still" in diagnosis.sentence


async def _refused(edge: Edge, body: dict[str, object]) -> httpx.Response:
    host, port = edge.http_address
    async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
        return await client.post(f"http://{host}:{port}{CHAT}", json=body)


async def test_clients_mistake_is_told_and_nothing_else(
    stack: FaultStack, recorder: SpanRecorder, tmp_path: Path
) -> None:
    await stack.add_worker()
    edge = await stack.edge()
    messages = [{"role": "user", "content": "a"}]
    reply = await _refused(edge, {"messages": messages, "max_tokens": 99_999})

    diagnosis = await diagnosis_of(recorder, reply.headers["x-request-id"], tmp_path)
    assert reply.status_code == 400
    assert diagnosis.cause is Cause.CLIENT_ERROR
    assert diagnosis.sentence.startswith("refused: CONTEXT_LENGTH_EXCEEDED: messages has ")
    assert diagnosis.sentence.endswith("(client error)")


async def test_refusal_without_a_worker_is_told_and_nothing_else(
    stack: FaultStack, recorder: SpanRecorder, tmp_path: Path
) -> None:
    await stack.add_worker()
    edge = await stack.edge()
    await stack.stop_workers()
    await edge.until(lambda: edge.gateway._directory.num_workers(MODEL) == 0)
    async with GrpcClient(edge.grpc_address) as client:
        reply = client.generate(queued_request(), timeout_ms=10_000)
        await reply.until(lambda reply: reply.is_over, 20.0)
        assert reply.error is grpc.StatusCode.UNAVAILABLE
    http = await _refused(edge, {"messages": [{"role": "user", "content": "a"}]})

    diagnosis = await diagnosis_of(recorder, http.headers["x-request-id"], tmp_path)
    assert http.status_code == 503
    assert diagnosis.cause is Cause.REFUSED
    assert diagnosis.sentence.startswith("refused: UNAVAILABLE: no worker of model-worker")
