"""The claims about batching, measured on two stacks that take turns."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from millrace.cli.load.ask import Ask
from millrace.cli.load.grpc_target import GrpcTarget
from millrace.cli.load.runner import LoadRun, Target
from millrace.cli.load.statistics import percentile
from millrace.config.home import millrace_home
from millrace.testing.stack import Stack, start_stack

from .arrivals import at_once, poisson_asks, static_batches
from .progress import show_progress
from .scale import Scale
from .stack import closed_load, decode_counts, mean_decode_batch, must_be_answered

STATIC_SIZE = 8
# Of what static batches can do at most: below it no queue grows without end.
STATIC_LOAD = 0.7
NUM_STREAMS = 32
# Blocks of 32 tokens: both stacks fit beside each other, and every row has room.
NUM_BLOCKS = 1024
ONE_AT_A_TIME = {"MILLRACE_WORKER_MAX_NUM_SEQS": "1"}


@dataclass(frozen=True, slots=True)
class Side:
    """A stack and its client."""

    stack: Stack
    target: GrpcTarget


def measure_batching(scale: Scale) -> list[dict[str, Any]]:
    """The claims, each with its figure and how it was measured."""
    with _stack({}) as dynamic:
        with _stack(ONE_AT_A_TIME) as single:
            first = asyncio.run(_against_one_at_a_time(dynamic, single, scale))
        return [first, *asyncio.run(_on_one_stack(dynamic, scale))]


@contextmanager
def _stack(settings: Mapping[str, str]) -> Iterator[Stack]:
    show_progress(f"starting a stack, {dict(settings) or 'default settings'}")
    with ExitStack() as parts:
        home = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-")))
        # Kernels and packed weights are made once for both.
        millrace_home().cache.mkdir(parents=True, exist_ok=True)
        (home / "cache").symlink_to(millrace_home().cache.resolve(), target_is_directory=True)
        settings = {"MILLRACE_WORKER_NUM_BLOCKS": str(NUM_BLOCKS), **settings}
        yield parts.enter_context(start_stack(home, millrace_home().models, settings=settings))


async def _against_one_at_a_time(dynamic: Stack, single: Stack, scale: Scale) -> dict[str, Any]:
    sides = [Side(stack, GrpcTarget(stack.grpc_address)) for stack in (dynamic, single)]
    rates: list[tuple[float, float]] = []
    for number in range(scale.claim_rounds):
        show_progress(f"dynamic batching against one at a time, round {number + 1}")
        asks = at_once(poisson_asks(scale.claim_requests, 1.0, time.time_ns()))
        # The side that goes first changes, so that neither has the quieter half of the minute.
        order = sides if number % 2 else sides[::-1]
        found = {id(side): await _requests_per_s(side, asks) for side in order}
        rates.append((found[id(sides[0])], found[id(sides[1])]))
    for side in sides:
        await side.target.close()
    ratio = median(many / one for many, one in rates)
    many, one = (round(median(column), 2) for column in zip(*rates, strict=True))
    return {
        "claim": "dynamic batching against one request at a time",
        "figure": f"{ratio:.1f} times the requests/s ({many} against {one})",
        "how": (
            f"{scale.claim_requests} requests from {NUM_STREAMS} streams over gRPC, the same for "
            f"both stacks; one has MILLRACE_WORKER_MAX_NUM_SEQS=1; median of "
            f"{scale.claim_rounds} interleaved rounds"
        ),
        "ratio": round(ratio, 2),
        "rounds": [[round(many, 3), round(one, 3)] for many, one in rates],
    }


async def _requests_per_s(side: Side, asks: Sequence[Ask]) -> float:
    await _warm_up(side.target)
    load = await closed_load(side.target, asks, NUM_STREAMS)
    return len(load.outcomes) / load.elapsed_s


async def _warm_up(target: GrpcTarget) -> None:
    await closed_load(target, at_once(poisson_asks(1, 1.0, time.time_ns())), 1)


async def _on_one_stack(stack: Stack, scale: Scale) -> list[dict[str, Any]]:
    target = GrpcTarget(stack.grpc_address)
    try:
        static = await _against_static(target, scale)
        return [static, await _batch_sizes(Side(stack, target), scale)]
    finally:
        await target.close()


async def _against_static(target: GrpcTarget, scale: Scale) -> dict[str, Any]:
    capacity = await _static_capacity(target)
    rate = STATIC_LOAD * capacity
    latencies_s: dict[str, list[float]] = {"dynamic": [], "static": []}
    for number in range(2):
        asks = poisson_asks(scale.arrivals // 2, rate, time.time_ns())
        for name in ("dynamic", "static") if number else ("static", "dynamic"):
            show_progress(f"{name} batching, {len(asks)} arrivals at {rate:.2f}/s")
            send = dynamic_latencies_s if name == "dynamic" else static_latencies_s
            latencies_s[name] += await send(target, asks)
    p50 = {name: percentile(values, 50) or 0.0 for name, values in latencies_s.items()}
    p99 = {name: percentile(values, 99) or 0.0 for name, values in latencies_s.items()}
    return {
        "claim": f"dynamic batching against static batches of {STATIC_SIZE} at equal load",
        "figure": (
            f"P99 latency {p99['dynamic']:.2f} s against {p99['static']:.2f} s, "
            f"{p99['static'] / p99['dynamic']:.1f} times less "
            f"(P50 {p50['dynamic']:.2f} s against {p50['static']:.2f} s)"
        ),
        "how": (
            f"arrival to end of the answer over gRPC; {2 * (scale.arrivals // 2)} Poisson arrivals "
            f"each at {rate:.2f} requests/s, {100 * STATIC_LOAD:.0f} % of what static batches can "
            f"do; the static client waits for {STATIC_SIZE}, sends them together, and sends the "
            "next ones when all are answered"
        ),
        "rate": round(rate, 3),
        "p50_s": {name: round(value, 3) for name, value in p50.items()},
        "p99_s": {name: round(value, 3) for name, value in p99.items()},
    }


async def _static_capacity(target: GrpcTarget) -> float:
    """Requests per second of static batches one after another."""
    asks = at_once(poisson_asks(2 * STATIC_SIZE, 1.0, time.time_ns()))
    began_s = time.monotonic()
    await static_latencies_s(target, asks)
    return len(asks) / (time.monotonic() - began_s)


async def dynamic_latencies_s(target: Target, asks: Sequence[Ask]) -> list[float]:
    """Arrival to end, each request sent when it arrives."""
    load = must_be_answered(await LoadRun(target).open_loop(asks))
    return [outcome.e2e_s + outcome.late_s for outcome in load.outcomes]


async def static_latencies_s(target: Target, asks: Sequence[Ask]) -> list[float]:
    """Arrival to end, requests sent in batches that wait for each other."""
    began_s = time.monotonic()
    latencies_s = []
    for batch in static_batches(asks, STATIC_SIZE):
        await asyncio.sleep(max(0.0, began_s + batch.ready_at_s - time.monotonic()))
        load = must_be_answered(await LoadRun(target).open_loop(at_once(batch.asks)))
        # Outcomes come in the order in which the requests were given.
        for ask, outcome in zip(batch.asks, load.outcomes, strict=True):
            latencies_s.append(outcome.ended_s - began_s - ask.at_s)
    return latencies_s


async def _batch_sizes(side: Side, scale: Scale) -> dict[str, Any]:
    show_progress("batch size with one stream and at the peak")
    sizes = {}
    for num_streams, count in ((1, 2), (NUM_STREAMS, 3 * scale.claim_requests)):
        asks = at_once(poisson_asks(count, 1.0, time.time_ns()))
        before = await decode_counts(side.stack)
        await closed_load(side.target, asks, num_streams)
        sizes[num_streams] = mean_decode_batch(before, await decode_counts(side.stack))
    return {
        "claim": "the batch follows the load",
        "figure": f"{sizes[1]} rows per decode step with one stream, {sizes[NUM_STREAMS]} at "
        f"{NUM_STREAMS} streams",
        "how": "decode rows over decode steps as the scheduler counts them, from the first request "
        "to the last, answers of mixed length",
        "mean_rows": {str(streams): size for streams, size in sizes.items()},
    }
