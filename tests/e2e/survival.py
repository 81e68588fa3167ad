"""Streams under a fault: what they must equal, how long they stood still, what was computed again.

Recomputing is the model's own time and depends on the machine, so it is measured: the steps that
are under way already (one runs, one waits), then the time for which a stream's worker was at the
prefill of any moved stream until the end of its own, by the `prefill` spans. The rest of a stream's
wait is the failover, and that is what is promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import grpc

from millrace.core.errors import RequestNotFound
from millrace.telemetry.names import ATTR_WORKER_ID, SPAN_PREFILL
from millrace.telemetry.span_record import NS_PER_S, SpanRecord
from millrace.telemetry.store import TraceStore
from millrace.testing.gaps import Gaps
from millrace.testing.stack import Stack
from tests.e2e.client import Answer, Client

WAIT_S = 120.0
POLL_S = 0.01
# Spans leave each process once a second.
SETTLE_S = 1.5
MIN_TOKENS_OUT = 3
NUM_STEPS_UNDER_WAY = 2


def crowd(
    client: Client, count: int, max_tokens: int
) -> tuple[list[Answer], list[asyncio.Task[Answer]]]:
    """`count` streams at once, with what they have said so far."""
    answers = [Answer() for _ in range(count)]
    tasks = [
        asyncio.create_task(
            client.ask(
                text=f"Tale {number}:",
                max_tokens=max_tokens,
                ignore_eos=True,
                temperature=1.0,
                seed=number,
                into=answer,
            )
        )
        for number, answer in enumerate(answers)
    ]
    return answers, tasks


async def until_live(answers: Iterable[Answer]) -> None:
    """Until every stream has some tokens out."""
    answers = list(answers)
    async with asyncio.timeout(WAIT_S):
        while min(len(answer.tokens) for answer in answers) < MIN_TOKENS_OUT:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


async def until_workers(client: Client, count: int) -> None:
    """Until the stack's scheduler is active and has so many workers, restarted ones included."""
    async with asyncio.timeout(WAIT_S):
        while await _num_workers(client) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def until_served(client: Client) -> None:
    """Until the gateway, too, knows of a worker: its scheduler tells it once a second."""
    async with asyncio.timeout(WAIT_S):
        while not await _is_served(client):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _is_served(client: Client) -> bool:
    try:
        return bool((await client.ask(text="Ready?", max_tokens=1)).tokens)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return False


async def _num_workers(client: Client) -> int:
    try:
        return len((await client.scheduler_stats()).workers)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return 0


@dataclass(frozen=True)
class Fault:
    """When it was, by both clocks."""

    unix_ns: int
    monotonic_s: float

    @classmethod
    def now(cls) -> Fault:
        return cls(time.time_ns(), time.monotonic())


@dataclass(frozen=True)
class Moved:
    """Streams that were computed again after a fault, and how long that took for each."""

    answers: list[Answer]
    recompute_s: list[float]

    @property
    def failover_s(self) -> list[float]:
        """Of each stream: what its longest wait was beyond recomputing."""
        pairs = zip(self.answers, self.recompute_s, strict=True)
        return [answer.longest_wait_s - recompute_s for answer, recompute_s in pairs]

    def __str__(self) -> str:
        waits = Gaps.of([answer.longest_wait_s for answer in self.answers])
        recompute, rest = Gaps.of(self.recompute_s), Gaps.of(self.failover_s)
        return (
            f"moved: {waits}; of it recompute median {recompute.median_s:.3f} s, "
            f"most {recompute.most_s:.3f} s; the rest median {rest.median_s:.3f} s, "
            f"p99 {rest.p99_s:.3f} s, most {rest.most_s:.3f} s"
        )


async def moved_streams(stack: Stack, answers: Sequence[Answer], fault: Fault) -> Moved:
    """Those of `answers`, all live at the fault, that were computed again after it."""
    again = [
        (answer, last)
        for answer, spans in zip(answers, await prefills(stack, answers), strict=True)
        if spans and (last := spans[-1]).start_ns > fault.unix_ns
    ]
    assert again, "the fault has moved nothing"
    steps_s = NUM_STEPS_UNDER_WAY * _step_s(answers, fault)
    return Moved(
        [answer for answer, _ in again],
        [steps_s + _busy_s([span for _, span in again], own) for _, own in again],
    )


def _busy_s(spans: Iterable[SpanRecord], own: SpanRecord) -> float:
    """How long the worker of `own` was at any of the prefills until the end of that one."""
    busy_ns = covered_ns = 0
    for span in sorted(spans, key=lambda span: span.start_ns):
        if span.attributes[ATTR_WORKER_ID] == own.attributes[ATTR_WORKER_ID]:
            end_ns = min(span.end_ns, own.end_ns)
            busy_ns += max(0, end_ns - max(span.start_ns, covered_ns))
            covered_ns = max(covered_ns, end_ns)
    return busy_ns / NS_PER_S


def _step_s(answers: Iterable[Answer], fault: Fault) -> float:
    """The median step before the fault, as the streams saw it."""
    return statistics.median(
        later - earlier
        for answer in answers
        for earlier, later in pairwise(answer.token_times_s)
        if later < fault.monotonic_s
    )


async def prefills(stack: Stack, answers: Sequence[Answer]) -> list[list[SpanRecord]]:
    """The `prefill` spans of each stream, in order, once no more come."""
    store = TraceStore(stack.home / "run" / "spans.db")
    found: list[list[SpanRecord]] = []
    deadline = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < deadline:
            await asyncio.sleep(SETTLE_S)
            with contextlib.suppress(RequestNotFound):
                newly = [_prefills_of(store, answer.request_id) for answer in answers]
                if newly == found:
                    return found
                found = newly
    finally:
        store.close()
    raise AssertionError(f"no complete traces in {WAIT_S} s")


def _prefills_of(store: TraceStore, request_id: str) -> list[SpanRecord]:
    spans = store.spans(store.find(request_id).trace_id)
    return [span for span in spans if span.name == SPAN_PREFILL]
