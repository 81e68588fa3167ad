"""The full-stack tables: a stack as its clients see it, and what its processes take."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from millrace.cli.load.ask import Ask
from millrace.cli.load.grpc_target import GrpcTarget
from millrace.cli.load.http_target import HttpTarget
from millrace.cli.load.outcome import Load
from millrace.cli.load.prompts import Prompts
from millrace.cli.load.runner import LoadRun
from millrace.cli.load.statistics import load_figures
from millrace.config.home import millrace_home
from millrace.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from millrace.testing.stack import Stack, start_stack

from .hops import hop_medians, prefill_ms
from .machine import ReadProbe
from .memory import all_memory_mb
from .processes import cpu_percent, stack_pids
from .progress import show_progress
from .scale import Scale

PROMPT_TOKENS = (30, 700)
SETTLE_S = 3.0
OVERHEAD_TOKENS = 8
Target = GrpcTarget | HttpTarget


@dataclass(frozen=True, slots=True)
class StackFlags:
    """What the own stack is started with."""

    dtype: str = "auto"
    quantization: str = "none"
    workers: int = 1

    def flags(self, workers: int = 0) -> list[str]:
        """Flags of `millrace up`."""
        flags = ["--dtype", self.dtype, "--quantization", self.quantization]
        return [*flags, "--workers", str(workers or self.workers)]


def measure_own_stack(flags: StackFlags, scale: Scale) -> dict[str, Any]:
    """Starts stacks in a home of their own; the keys of the report that this fills."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        home, report = Path(folder), dict[str, Any]()
        start_up_s = report["start_up_s"] = {}
        if scale.measures_second_worker:
            show_progress("stack: first start, with two workers; builds kernels, packs weights")
            with timed_stack(home, flags.flags(2), start_up_s, "first") as stack:
                time.sleep(SETTLE_S)
                report["two_workers_mb"] = all_memory_mb(stack_pids(stack))
        show_progress("stack: start")
        name = "again" if start_up_s else "first"
        with timed_stack(home, flags.flags(), start_up_s, name) as stack:
            _measure(stack, scale, report)
    return report


def measure_running_stack(url: str, grpc_address: str, scale: Scale) -> dict[str, Any]:
    """Of a stack that somebody else started, only the clients' side can be seen."""
    return {"loads": asyncio.run(_loads(url, grpc_address, None, scale))}


@contextmanager
def timed_stack(
    home: Path, flags: Sequence[str], start_up_s: dict[str, float], name: str
) -> Iterator[Stack]:
    """A stack; the seconds until it is ready go into `start_up_s`."""
    started_s = time.monotonic()
    with start_stack(home, millrace_home().models, *flags, builds_kernels=True) as stack:
        start_up_s[name] = round(time.monotonic() - started_s, 2)
        yield stack


def _measure(stack: Stack, scale: Scale, report: dict[str, Any]) -> None:
    time.sleep(SETTLE_S)
    pids = stack_pids(stack)
    show_progress(f"stack: idle CPU for {scale.idle_s:.0f} s")
    report["idle_cpu_percent"] = cpu_percent(pids, scale.idle_s)
    show_progress("stack: one stream, what is not the model")
    report["overhead_ms"], request_ids = asyncio.run(_overheads(stack, scale.overhead_requests))
    report["hops_ms"] = hop_medians(_spans(stack), request_ids)
    report["loads"] = asyncio.run(_loads(stack.http_url, stack.grpc_address, stack, scale))
    report["memory_mb"] = all_memory_mb(pids)


def _spans(stack: Stack) -> Path:
    return stack.home / "run" / "spans.db"


async def _overheads(stack: Stack, count: int) -> tuple[dict[str, Any], list[str]]:
    """What of TTFT at one stream is not the prefill step, by wire; ids of the gRPC requests."""
    figures: dict[str, Any] = {}
    request_ids: dict[str, list[str]] = {}
    prompts = Prompts(time.time_ns())
    for target in (GrpcTarget(stack.grpc_address), HttpTarget(stack.http_url)):
        await closed_load(target, _asks(prompts, 2, 8), 2)
        load = await closed_load(target, _asks(prompts, count, OVERHEAD_TOKENS), 1)
        ids = [outcome.request_id for outcome in load.outcomes]
        prefills = await asyncio.to_thread(prefill_ms, _spans(stack), ids)
        ttfts = [1000 * outcome.ttft_s for outcome in load.outcomes]
        others = [ttft - step for ttft, step in zip(ttfts, prefills, strict=True)]
        figures[target.protocol] = {
            "ttft": round(median(ttfts), 2),
            "prefill": round(median(prefills), 2),
            "not_model": round(median(others), 2),
            "not_model_worst": round(max(others), 2),
        }
        request_ids[target.protocol] = ids
        await target.close()
    return figures, request_ids["grpc"]


async def _loads(
    url: str, grpc_address: str, stack: Stack | None, scale: Scale
) -> list[dict[str, Any]]:
    """The figures of every load."""
    prompts, read = Prompts(time.time_ns()), ReadProbe()
    targets: list[Target] = [GrpcTarget(grpc_address), HttpTarget(url)]
    loads = []
    for target in targets:
        await closed_load(target, _asks(prompts, 2, 8), 2)
    for num_streams, count in zip(scale.streams, scale.requests, strict=True):
        for target in targets:
            show_progress(f"stack: {num_streams} at once over {target.protocol}")
            bandwidth = round(read.gb_per_s(), 2)
            before = await decode_counts(stack)
            asks = _asks(prompts, count, scale.output_tokens)
            load = await closed_load(target, asks, num_streams)
            mean_batch = mean_decode_batch(before, await decode_counts(stack))
            figures = {"mean_decode_batch": mean_batch, "read_gb_per_s": bandwidth}
            loads.append({**load_figures(load), **figures})
    for target in targets:
        await target.close()
    return loads


def _asks(prompts: Prompts, count: int, num_tokens: int) -> list[Ask]:
    return [Ask(text, num_tokens) for text in prompts.draw_spread(count, *PROMPT_TOKENS)]


async def closed_load(target: Target, asks: Sequence[Ask], num_streams: int) -> Load:
    """A closed loop. Raises RuntimeError where a request failed: its figures would mislead."""
    return must_be_answered(await LoadRun(target).closed_loop(asks, num_streams))


def must_be_answered(load: Load) -> Load:
    """The load. Raises RuntimeError where a request failed."""
    if load.errors():
        raise RuntimeError(f"requests failed: {load.errors()}")
    return load


async def decode_counts(stack: Stack | None) -> tuple[int, int]:
    """Rows decoded and steps with any, over all workers; zeros where it is not our stack."""
    if stack is None:
        return 0, 0
    async with grpc.aio.insecure_channel(stack.address_of("scheduler")) as channel:
        stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        stats = await stub.GetStats(scheduler_pb2.GetStatsRequest(), timeout=5)
    num_rows = sum(worker.num_decode_rows for worker in stats.workers)
    return num_rows, sum(worker.num_decode_steps for worker in stats.workers)


def mean_decode_batch(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """Rows per step between two counts; None without steps."""
    num_rows, num_steps = after[0] - before[0], after[1] - before[1]
    return round(num_rows / num_steps, 2) if num_steps else None
